"""ResNets and ResNeXts, plain and deformable, with their pyramids P3..P7 and P2..P7."""

from __future__ import annotations

import logging
import pickle
import re
from pathlib import Path

import pytest
import torch
import torchvision
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone import FPN, build_resnet_backbone
from detectron2.modeling.backbone.resnet import BottleneckBlock
from torch import Tensor, nn

from segzoo.config import get_segzoo_cfg
from segzoo.engine.weights import load_weights
from segzoo.errors import ConfigError
from segzoo.modeling.backbones.deformable_resnet import DeformableBottleneck
from segzoo.modeling.backbones.resnet_fpn import check_resnet_fpn

RES3_TO_5 = [False, True, True, True]
RES5 = [False, False, False, True]
TINY = {"STEM_OUT_CHANNELS": 8, "RES2_OUT_CHANNELS": 16, "WIDTH_PER_GROUP": 4}
X101 = {"DEPTH": 101, "NUM_GROUPS": 64, "WIDTH_PER_GROUP": 4, "STRIDE_IN_1X1": False}


def resnet_cfg(freeze_at: int = 0, **resnets: object) -> CfgNode:
    cfg = get_segzoo_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = "not loaded"  # no warning of frozen random weights
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_p3p7_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = freeze_at
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    for key, value in resnets.items():
        cfg.MODEL.RESNETS[key] = value
    return cfg


def tiny_backbone(**changes: object) -> FPN:
    return build_backbone(resnet_cfg(**{**TINY, **changes}))


def p2p7_cfg(**resnets: object) -> CfgNode:
    cfg = resnet_cfg(**resnets)
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_p2p7_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    return cfg


def norms_shaken(model: nn.Module) -> nn.Module:
    """`model` in eval mode with frozen norms that do something."""
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(std=0.1)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def test_without_deformable_stages_the_bottom_up_network_is_detectron2s_own() -> None:
    torch.manual_seed(3)
    found = tiny_backbone(NUM_GROUPS=2).bottom_up
    torch.manual_seed(3)
    expected = build_resnet_backbone(resnet_cfg(**TINY, NUM_GROUPS=2), ShapeSpec(channels=3))
    assert not any(isinstance(module, DeformableBottleneck) for module in found.modules())
    states = found.state_dict(), expected.state_dict()
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*(state.values() for state in states)))


@pytest.mark.parametrize("stride_in_1x1", [True, False])
@pytest.mark.parametrize(("groups", "offset_groups", "stages"), [(1, 1, RES3_TO_5), (4, 2, [True] * 4)])
def test_zero_offsets_give_the_features_of_the_plain_network(
    stride_in_1x1: bool, groups: int, offset_groups: int, stages: list[bool]
) -> None:
    options = {"STRIDE_IN_1X1": stride_in_1x1, "NUM_GROUPS": groups}
    plain = norms_shaken(tiny_backbone(**options))
    deformable = tiny_backbone(**options, DEFORM_ON_PER_STAGE=stages, DEFORM_NUM_GROUPS=offset_groups).eval()
    rest = deformable.load_state_dict(plain.state_dict(), strict=False)
    assert rest.unexpected_keys == []
    assert all(re.search(r"\.conv2_offset\.(weight|bias)$", key) for key in rest.missing_keys)

    images = torch.randn(2, 3, 64, 128)
    with torch.no_grad():
        expected, found = plain(images), deformable(images)
    assert list(found) == ["p3", "p4", "p5", "p6", "p7"]
    for name, feature in found.items():
        torch.testing.assert_close(feature, expected[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("top", ["p5", "c5"])
def test_p2p7_is_p3p7_with_one_level_more(top: str) -> None:
    cfgs = [resnet_cfg(**TINY), p2p7_cfg(**TINY)]
    for cfg in cfgs:
        cfg.MODEL.FPN.TOP_IN_FEATURE = top
    small, large = (norms_shaken(build_backbone(cfg)) for cfg in cfgs)
    rest = large.load_state_dict(small.state_dict(), strict=False)
    assert rest.unexpected_keys == []
    assert {key.split(".")[0] for key in rest.missing_keys} == {"fpn_lateral2", "fpn_output2"}
    images = torch.randn(2, 3, 128, 192)
    with torch.no_grad():
        expected, found = small(images), large(images)
    assert large.output_shape() == {f"p{i}": ShapeSpec(channels=16, stride=2**i) for i in range(2, 8)}
    assert {name: tuple(level.shape) for name, level in found.items()} == {
        f"p{i}": (2, 16, 128 // 2**i, -(-192 // 2**i)) for i in range(2, 8)
    }
    for name, level in expected.items():
        torch.testing.assert_close(found[name], level)


def test_p2p7_of_resnet50_has_28_million_parameters() -> None:
    cfg = p2p7_cfg()
    cfg.MODEL.FPN.OUT_CHANNELS = 256
    with torch.device("meta"):
        backbone = build_backbone(cfg)
    # 1x1 convolutions of res2..res5 to 256 channels, and 3x3 ones of P2..P5, P6 and P7.
    pyramid = (256 + 512 + 1024 + 2048 + 4) * 256 + (4 + 2) * (9 * 256 + 1) * 256
    count = sum(value.numel() for key, value in backbone.state_dict().items() if "running" not in key)
    assert count == 23_508_032 + pyramid


def test_p2p7_takes_imagenet_weights(tmp_path: Path) -> None:
    plain = norms_shaken(tiny_backbone()).bottom_up
    arrays = {key: value.numpy() for key, value in plain.state_dict().items()}
    file = tmp_path / "imagenet.pkl"
    file.write_bytes(pickle.dumps({"model": arrays, "__author__": "test", "matching_heuristics": True}))
    model = nn.Module()
    model.backbone = build_backbone(p2p7_cfg(**TINY))
    load_weights(model, str(file))
    for key, value in model.backbone.bottom_up.state_dict().items():
        assert torch.equal(value, plain.state_dict()[key]), key


@pytest.mark.parametrize("names", [["res3", "res4", "res5"], ["res2", "res3", "res4"]])
def test_p2p7_without_its_four_features_is_refused(names: list[str]) -> None:
    cfg = p2p7_cfg(**TINY)
    cfg.MODEL.FPN.IN_FEATURES = names
    with pytest.raises(ConfigError, match=r"(?s)MODEL.FPN.IN_FEATURES is .*p2p7.*\['res2', 'res3', 'res4', 'res5'\]"):
        build_backbone(cfg)
    cfg = p2p7_cfg(**TINY)
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4", "res5"]
    with pytest.raises(ConfigError, match=r"(?s)MODEL.RESNETS.OUT_FEATURES.*'res2', 'res3'"):
        build_backbone(cfg)


@pytest.mark.parametrize(("modulated", "channels"), [(False, 18), (True, 27)])
def test_deformable_stages_are_those_of_the_config_with_detectron2s_names(modulated: bool, channels: int) -> None:
    backbone = tiny_backbone(DEFORM_ON_PER_STAGE=RES3_TO_5, DEFORM_MODULATED=modulated, DEFORM_NUM_GROUPS=2)
    offsets = {key: value for key, value in backbone.state_dict().items() if "conv2_offset" in key}
    stages = {key.split(".")[1] for key in offsets}
    assert stages == {"res3", "res4", "res5"}
    assert len(offsets) == 2 * (4 + 6 + 3)
    assert offsets["bottom_up.res4.5.conv2_offset.weight"].shape == (2 * channels, 16, 3, 3)
    assert offsets["bottom_up.res4.5.conv2_offset.bias"].shape == (2 * channels,)
    assert not any(value.any() for value in offsets.values())
    assert all(type(block) is BottleneckBlock for block in backbone.bottom_up.res2)


def test_modulated_block_with_open_masks_equals_the_plain_one_and_starts_with_half_its_convolution() -> None:
    options = dict(bottleneck_channels=8, stride=2, dilation=2, num_groups=2, norm="")
    plain = BottleneckBlock(16, 32, **options)
    block = DeformableBottleneck(16, 32, **options, deform_modulated=True)
    block.load_state_dict(plain.state_dict(), strict=False)
    feature = torch.randn(1, 16, 9, 12)
    with torch.no_grad():
        nn.init.constant_(block.conv2_offset.bias[18:], 50.0)
        torch.testing.assert_close(block(feature), plain(feature))
        nn.init.zeros_(block.conv2_offset.bias)
        plain.conv2.weight *= 0.5
        torch.testing.assert_close(block(feature), plain(feature))


def test_offsets_of_a_block_move_its_samples_down() -> None:
    block = DeformableBottleneck(8, 8, bottleneck_channels=4, norm="")
    feature = torch.randn(1, 8, 12, 12)
    with torch.no_grad():
        expected = branch(block, feature.roll(-1, dims=2))
        nn.init.constant_(block.conv2_offset.bias[0::2], 1.0)
        found = branch(block, feature)
    # Without the rows at the rim, where one pads with zeros what the other has rolled in.
    torch.testing.assert_close(found[..., 1:-2, :], expected[..., 1:-2, :])
    assert found.abs().max() > 0.1


def branch(block: DeformableBottleneck, feature: Tensor) -> Tensor:
    """A block without its shortcut and last ReLU."""
    out = block.conv1(feature).relu()
    return block.conv3(block.conv2(out, block.conv2_offset(out)).relu())


@pytest.mark.parametrize("is_autocast", [False, True])
def test_a_training_step_moves_the_offsets(is_autocast: bool) -> None:
    backbone = tiny_backbone(DEFORM_ON_PER_STAGE=RES3_TO_5, freeze_at=2).train()
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_autocast):
        features = backbone(torch.randn(1, 3, 128, 128))
        loss = sum(feature.float().square().mean() for feature in features.values())
    loss.backward()
    optimizer.step()
    offsets = {key: value for key, value in backbone.named_parameters() if "conv2_offset" in key}
    assert all(value.isfinite().all() and value.any() for value in offsets.values())
    assert features["p3"].dtype == (torch.bfloat16 if is_autocast else torch.float32)


def test_freeze_at_reaches_offsets_and_norms_of_deformable_stages_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, logger="segzoo"):
        tiny_backbone(DEFORM_ON_PER_STAGE=RES3_TO_5, freeze_at=2)
        assert "offsets stay" not in caplog.text
        backbone = tiny_backbone(DEFORM_ON_PER_STAGE=RES3_TO_5, freeze_at=3, NORM="BN")
    assert "FREEZE_AT 3 freezes the deformable res3:" in caplog.text
    assert isinstance(backbone.bottom_up.res3[0].conv2.norm, FrozenBatchNorm2d)
    assert not any(parameter.requires_grad for parameter in backbone.bottom_up.res3.parameters())
    assert all(parameter.requires_grad for parameter in backbone.bottom_up.res4.parameters())


@pytest.mark.parametrize("resnets", [{"DEPTH": 101, "STRIDE_IN_1X1": False}, X101], ids=["resnet101", "resnext101"])
def test_resnets_of_101_layers_equal_torchvisions(resnets: dict[str, object]) -> None:
    with torch.device("meta"):
        ours = build_backbone(resnet_cfg(**resnets)).bottom_up.eval()
        theirs = torchvision.models.resnext101_64x4d() if resnets is X101 else torchvision.models.resnet101()
        theirs.fc = nn.Identity()
        theirs.eval()
    state = {key: random_value(key, value) for key, value in theirs.state_dict().items()}
    theirs.load_state_dict(state, assign=True)
    ours.load_state_dict({rename(k): v for k, v in state.items() if "num_batches" not in k}, assign=True)
    images = torch.randn(1, 3, 32, 64)
    with torch.no_grad():
        found = ours(images)["res5"]
        expected = theirs.layer1(theirs.maxpool(theirs.bn1(theirs.conv1(images)).relu()))
        expected = theirs.layer4(theirs.layer3(theirs.layer2(expected)))
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def random_value(key: str, value: Tensor) -> Tensor:
    if key.endswith(("num_batches_tracked", "running_mean", "bias")):
        return torch.zeros(value.shape, dtype=value.dtype)
    return torch.randn(value.shape) * value[0].numel() ** -0.5 if value.dim() == 4 else torch.ones(value.shape)


def rename(key: str) -> str:
    """Detectron2's name of torchvision's parameter."""
    key = key if key.startswith("layer") else f"stem.{key}"
    key = re.sub(r"^layer(\d)", lambda match: f"res{int(match[1]) + 1}", key)
    key = key.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
    return re.sub(r"\bbn(\d)", r"conv\1.norm", key)


# Plain networks: torchvision's counts without the classifier. Deformable ones: an offset convolution of 18 x (9 w + 1)
# values a block, w = 128, 256, 512 in the 4, 6 or 23, and 3 blocks of ResNet, four times as much in ResNeXt-64x4d.
@pytest.mark.parametrize(
    ("resnets", "expected"),
    [
        ({}, 23_508_032),
        ({"DEPTH": 101}, 42_500_160),
        (X101, 81_406_272),
        ({"DEFORM_ON_PER_STAGE": RES3_TO_5}, 23_508_032 + 18 * (4 * 1153 + 6 * 2305 + 3 * 4609)),
        ({"DEPTH": 101, "DEFORM_ON_PER_STAGE": RES3_TO_5}, 42_500_160 + 18 * (4 * 1153 + 23 * 2305 + 3 * 4609)),
        ({**X101, "DEFORM_ON_PER_STAGE": RES3_TO_5}, 81_406_272 + 18 * (4 * 4609 + 23 * 9217 + 3 * 18433)),
    ],
)
def test_resnets_have_the_expected_number_of_values(resnets: dict[str, object], expected: int) -> None:
    with torch.device("meta"):
        bottom_up = build_backbone(resnet_cfg(**resnets)).bottom_up
    assert sum(value.numel() for key, value in bottom_up.state_dict().items() if "running" not in key) == expected


def test_imagenet_weights_fill_everything_but_the_offsets(tmp_path: Path) -> None:
    plain = norms_shaken(tiny_backbone()).bottom_up
    arrays = {key: value.numpy() for key, value in plain.state_dict().items()}
    file = tmp_path / "imagenet.pkl"
    file.write_bytes(pickle.dumps({"model": arrays, "__author__": "test", "matching_heuristics": True}))
    model = nn.Module()
    model.backbone = tiny_backbone(DEFORM_ON_PER_STAGE=RES3_TO_5)
    load_weights(model, str(file))
    for key, value in model.backbone.bottom_up.state_dict().items():
        expected = torch.zeros_like(value) if "conv2_offset" in key else plain.state_dict()[key]
        assert torch.equal(value, expected), key


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"DEFORM_ON_PER_STAGE": [True]}, r"DEFORM_ON_PER_STAGE is \[True\].*four of True and False"),
        ({"DEFORM_ON_PER_STAGE": [0, 1, 1, 1]}, r"DEFORM_ON_PER_STAGE is \[0, 1, 1, 1\].*\[False, True, True, True\]"),
        ({"DEFORM_MODULATED": "yes"}, "DEFORM_MODULATED is 'yes'.*True"),
        ({"DEFORM_ON_PER_STAGE": RES5, "DEFORM_NUM_GROUPS": 0}, "DEFORM_NUM_GROUPS is 0.*divisor of the 512"),
        ({"DEFORM_ON_PER_STAGE": RES5, "DEFORM_NUM_GROUPS": 3}, "DEFORM_NUM_GROUPS is 3.*divisor of the 512"),
        (
            {"DEFORM_ON_PER_STAGE": RES5, "DEPTH": 18, "RES2_OUT_CHANNELS": 64},
            "DEFORM_ON_PER_STAGE.*DEPTH 18 are no bottlenecks.*50, 101, 152",
        ),
        ({"DEPTH": 34}, "RES2_OUT_CHANNELS is 256 with MODEL.RESNETS.DEPTH 34.*64"),
        ({"DEPTH": 34, "RES2_OUT_CHANNELS": 64, "NUM_GROUPS": 2}, "NUM_GROUPS is 2 with"),
        ({"DEPTH": 99}, "DEPTH is 99.*18, 34, 50, 101, 152"),
        ({"RES5_DILATION": 2}, "RES5_DILATION is 2.*must be 1"),
        ({"OUT_FEATURES": ["res3", "res4"]}, "MODEL.FPN.IN_FEATURES is"),
    ],
)
def test_check_resnet_fpn_names_key_value_and_remedy(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        check_resnet_fpn(resnet_cfg(**changes))
    with pytest.raises(ConfigError):
        build_backbone(resnet_cfg(**changes))


def test_resnet18_builds() -> None:
    backbone = build_backbone(resnet_cfg(DEPTH=18, RES2_OUT_CHANNELS=64))
    assert backbone.output_shape()["p7"].stride == 128
