"""ImageNet files of torchvision in Detectron2's ResNets: the same features, and errors where they do not fit."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.layers import ShapeSpec
from torch import Tensor, nn
from torchvision.models import resnet

from segzoo.config import get_segzoo_cfg, merge_config
from segzoo.engine import weights
from segzoo.engine.torchvision_weights import rename_resnet
from segzoo.engine.weights import load_weights
from segzoo.errors import CheckpointError
from segzoo.modeling.backbones import build_resnet_fpn_p2p7_backbone, build_resnet_fpn_p3p7_backbone

STRIDE_IN_3X3 = ["MODEL.RESNETS.STRIDE_IN_1X1", "False"]
RESNET18 = ["MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"]
RESNEXT50 = [*STRIDE_IN_3X3, "MODEL.RESNETS.NUM_GROUPS", "32", "MODEL.RESNETS.WIDTH_PER_GROUP", "4"]
DEFORMABLE = ["MODEL.RESNETS.DEFORM_ON_PER_STAGE", "[False, True, True, True]"]


class Detector(nn.Module):
    """A backbone as the methods have it, and a head that no ImageNet file knows."""

    def __init__(self, options: list[str], features: tuple[str, ...] = ("res3", "res4", "res5")) -> None:
        super().__init__()
        words = ["MODEL.FPN.OUT_CHANNELS", "8", "MODEL.RESNETS.OUT_FEATURES", str(list(features)), *options]
        cfg = merge_config(get_segzoo_cfg(), opts=[*words, "MODEL.FPN.IN_FEATURES", str(list(features))])
        build = build_resnet_fpn_p2p7_backbone if "res2" in features else build_resnet_fpn_p3p7_backbone
        self.backbone = build(cfg, ShapeSpec(channels=3))
        self.head = nn.Conv2d(8, 2, 1)
        self.eval()


def random_network(kind: str) -> nn.Module:
    """A network of torchvision with random batch norms, as after training."""
    network = resnet.__dict__[kind](weights=None).eval()
    for name, value in network.state_dict().items():
        if "running_var" in name or ("bn" in name and name.endswith("weight")):
            value.uniform_(0.5, 1.5)
        elif value.dim() == 1 and value.is_floating_point():
            value.uniform_(-0.5, 0.5)
    return network


def torchvision_features(network: Any, images: Tensor) -> dict[str, Tensor]:
    feature = network.maxpool(network.relu(network.bn1(network.conv1(images))))
    features = {}
    for stage in range(1, 5):
        feature = network.get_submodule(f"layer{stage}")(feature)
        features[f"res{stage + 1}"] = feature
    return features


def save(path: Path, state: dict[str, Any]) -> str:
    torch.save(state, path)
    return str(path)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("resnet18", RESNET18),
        ("resnet34", [*RESNET18, "MODEL.RESNETS.DEPTH", "34"]),
        ("resnet50", STRIDE_IN_3X3),
        ("resnext50_32x4d", RESNEXT50),
        ("resnext50_32x4d", [*RESNEXT50, "MODEL.RESNETS.NORM", "BN"]),
        ("resnext50_32x4d", [*RESNEXT50, *DEFORMABLE]),
    ],
    ids=["resnet18", "resnet34", "resnet50", "resnext50", "trained_norms", "deformable"],
)
def test_load_weights_of_torchvision_gives_its_features(
    kind: str, options: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    network, model = random_network(kind), Detector(options)
    head = model.head.weight.detach().clone()
    with caplog.at_level(logging.INFO):
        load_weights(model, save(tmp_path / "imagenet.pth", network.state_dict()))
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected, found = torchvision_features(network, images), model.backbone.bottom_up(images)
    assert set(found) == {"res3", "res4", "res5"}
    for name, feature in found.items():
        torch.testing.assert_close(feature, expected[name], rtol=1e-4, atol=1e-4 * float(expected[name].std()))
    assert torch.equal(model.head.weight, head)
    assert "2 entries dropped (ImageNet's classifier)" in caplog.text
    assert "STRIDE_IN_1X1" not in caplog.text


def test_load_weights_of_torchvision_fills_a_pyramid_from_p2_too(tmp_path: Path) -> None:
    network, model = random_network("resnet18"), Detector(RESNET18, ("res2", "res3", "res4", "res5"))
    load_weights(model, save(tmp_path / "imagenet.pth", network.state_dict()))
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected, found = torchvision_features(network, images), model.backbone.bottom_up(images)
    assert list(found) == list(expected)
    for name, feature in found.items():
        torch.testing.assert_close(feature, expected[name], rtol=1e-4, atol=1e-4 * float(expected[name].std()))


def test_rename_resnet_of_resnext101_64x4d_names_every_entry_of_detectron2s() -> None:
    options = ["MODEL.RESNETS.DEPTH", "101", "MODEL.RESNETS.NUM_GROUPS", "64", "MODEL.RESNETS.WIDTH_PER_GROUP", "4"]
    with torch.device("meta"):
        network, model = resnet.resnext101_64x4d(weights=None), Detector([*STRIDE_IN_3X3, *options])
    renamed = rename_resnet(network.state_dict(), model, "backbone.bottom_up.", "imagenet.pth")
    expected = {name: v.shape for name, v in model.state_dict().items() if name.startswith("backbone.bottom_up.")}
    assert {name: value.shape for name, value in renamed.items()} == expected


def test_load_weights_of_torchvision_downloads_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = random_network("resnet18")
    local = save(tmp_path / "resnet18-f37072fd.pth", network.state_dict())
    monkeypatch.setattr(weights.PathManager, "get_local_path", lambda path: local)
    model = Detector(RESNET18)
    load_weights(model, "https://download.pytorch.org/models/resnet18-f37072fd.pth")
    loaded = model.backbone.bottom_up.state_dict()
    assert torch.equal(loaded["res5.1.conv2.weight"], network.state_dict()["layer4.1.conv2.weight"])


def test_load_weights_of_torchvision_into_strides_of_caffe_warns(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = random_network("resnet50").state_dict()
    load_weights(Detector(["MODEL.RESNETS.STRIDE_IN_1X1", "True"]), save(tmp_path / "imagenet.pth", state))
    assert "set MODEL.RESNETS.STRIDE_IN_1X1 False unless" in caplog.text


@pytest.mark.parametrize("kind", ["resnet34", "resnext50_32x4d"])
def test_load_weights_of_another_depth_or_width_is_refused(kind: str, tmp_path: Path) -> None:
    path = save(tmp_path / "imagenet.pth", random_network(kind).state_dict())
    with pytest.raises(CheckpointError, match=r"MODEL\.RESNETS \(DEPTH, NUM_GROUPS") as caught:
        load_weights(Detector(RESNET18), path)
    assert "unexpected in the file" in str(caught.value)


def test_load_weights_of_torchvision_without_statistics_is_refused(tmp_path: Path) -> None:
    # Detectron2's frozen norms would take 0 and 1 for them.
    state = random_network("resnet18").state_dict()
    del state["layer2.0.bn1.running_mean"], state["layer2.0.bn1.running_var"]
    path = save(tmp_path / "imagenet.pth", state)
    with pytest.raises(CheckpointError, match=r"missing in the file \(2\): backbone\.bottom_up\.res3\.0\.conv1\.norm"):
        load_weights(Detector(RESNET18), path)
    load_weights(Detector(RESNET18), path, allow_head_mismatch=True)


def test_load_weights_of_torchvision_without_a_resnet_says_so(tmp_path: Path) -> None:
    path = save(tmp_path / "imagenet.pth", random_network("resnet18").state_dict())
    with pytest.raises(CheckpointError, match=r"imagenet\.pth: .*the Conv2d has 0 of Detectron2's ResNets"):
        load_weights(nn.Conv2d(3, 4, 3), path)
