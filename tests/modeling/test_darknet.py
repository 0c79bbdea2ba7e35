"""Darknet: its features, what is frozen, and values that cannot work."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from torch import nn

from segzoo.config import get_segzoo_cfg
from segzoo.errors import ConfigError
from segzoo.modeling import norms
from segzoo.modeling.backbones.darknet import Darknet
from segzoo.modeling.norms import norm_of_run

SMALL = {"BLOCKS_PER_STAGE": (1, 0, 2, 1, 1), "STEM_CHANNELS": 4}


def darknet_cfg(**changes: Any) -> CfgNode:
    cfg = get_segzoo_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_darknet_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.DEVICE = "cpu"
    for key, value in {**SMALL, **changes}.items():
        node = cfg.MODEL if key == "WEIGHTS" else cfg.MODEL.BACKBONE if key == "FREEZE_AT" else cfg.MODEL.DARKNET
        node[key] = value
    return cfg


def test_darknet_53_has_the_papers_parameters() -> None:
    with torch.device("meta"):
        backbone = Darknet()
    # darknet53.conv.74 holds 40 620 640 values, the statistics of the norms among them.
    assert sum(parameter.numel() for parameter in backbone.parameters()) == 40_584_928
    assert sum(isinstance(module, nn.Conv2d) for module in backbone.modules()) == 52


@pytest.mark.parametrize("wanted", [["res2", "res3", "res4", "res5"], ["res3", "res1"]])
def test_build_darknet_features_have_the_shapes_announced(wanted: list[str]) -> None:
    backbone = build_backbone(darknet_cfg(OUT_FEATURES=wanted)).eval()
    with torch.no_grad():
        features = backbone(torch.randn(2, 3, 64, 96))
    expected = {name: ShapeSpec(channels=4 * 2 ** int(name[3]), stride=2 ** int(name[3])) for name in sorted(wanted)}
    assert backbone.output_shape() == expected
    assert list(features) == sorted(wanted)
    for name, shape in expected.items():
        assert features[name].shape == (2, shape.channels, 64 // shape.stride, 96 // shape.stride)
    assert backbone.size_divisibility == 32


def test_build_darknet_freeze_at_keeps_parameters_and_statistics() -> None:
    backbone = build_backbone(darknet_cfg(FREEZE_AT=2, WEIGHTS="model_final.pth")).train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    sum(feature.square().mean() for feature in backbone(torch.randn(2, 3, 64, 64)).values()).backward()
    frozen = {name.split(".")[0] for name, parameter in backbone.named_parameters() if parameter.grad is None}
    assert frozen == {"stem", "res1", "res2"}
    changed = {
        name.split(".")[0] for name, value in backbone.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed == {"res3", "res4", "res5"}


def test_build_darknet_freeze_at_from_scratch_is_ignored_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="segzoo"):
        backbone = build_backbone(darknet_cfg(FREEZE_AT=2)).train()
    assert "FREEZE_AT (2) has no effect" in caplog.text
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    assert all(module.training for module in backbone.modules())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"BLOCKS_PER_STAGE": (1, 2, 8, 8)}, r"BLOCKS_PER_STAGE is \[1, 2, 8, 8\]"),
        ({"BLOCKS_PER_STAGE": (1, 2, 8, 8, -4)}, "five numbers"),
        ({"BLOCKS_PER_STAGE": (True, 2, 8, 8, 4)}, "five numbers"),
        ({"OUT_FEATURES": ["res2", "res2"]}, "each once"),
        ({"STEM_CHANNELS": 0}, "STEM_CHANNELS is 0"),
        ({"OUT_FEATURES": ["res2", "res6"]}, r"OUT_FEATURES is .*'res6'"),
        ({"OUT_FEATURES": []}, "OUT_FEATURES"),
        ({"FREEZE_AT": 6}, "FREEZE_AT is 6"),
        ({"NORM": "GN"}, "MODEL.DARKNET.NORM is 'GN'"),
    ],
)
def test_build_darknet_impossible_config_raises_config_error(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_backbone(darknet_cfg(**changes))


@pytest.mark.parametrize("names", [[], ["res2", "res6"], ["stem"], ["res3", "res3"]])
def test_darknet_refuses_features_that_it_has_not(names: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"out_features is .*\n.*res1, res2"):
        Darknet(blocks_per_stage=(0,) * 5, stem_channels=1, out_features=names)


def test_build_darknet_works_with_a_single_channel() -> None:
    backbone = build_backbone(darknet_cfg(STEM_CHANNELS=1)).train()
    features = backbone(torch.randn(2, 3, 64, 64))
    assert [feature.shape[1] for feature in features.values()] == [2**index for index in range(2, 6)]
    sum(feature.square().mean() for feature in features.values()).backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())


@pytest.mark.parametrize(
    ("ranks", "device", "expected"),
    [(1, "cuda", "BN"), (1, "cpu", "BN"), (2, "cpu", "naiveSyncBN"), (2, "cuda:1", "SyncBN")],
)
def test_norm_of_run_synchronises_where_it_can(
    ranks: int, device: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(norms.comm, "get_world_size", lambda: ranks)
    assert norm_of_run("MODEL.DARKNET.NORM", "SyncBN", device) == expected
    assert norm_of_run("MODEL.DARKNET.NORM", "FrozenBN", device) == "FrozenBN"


def test_darknet_norms_have_the_same_entries() -> None:
    entries = [
        list(Darknet(blocks_per_stage=(1,) * 5, stem_channels=2, norm=norm).state_dict())
        for norm in ("BN", "naiveSyncBN", "SyncBN")
    ]
    assert entries[0] == entries[1] == entries[2]


def test_build_timm_backbone_gives_the_features_of_its_strides() -> None:
    cfg = get_segzoo_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_timm_backbone"
    cfg.MODEL.TIMM.WEIGHTS = ""
    cfg.MODEL.TIMM.OUT_STRIDES = (4, 8, 16, 32)
    # Of no meaning without a pyramid.
    cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4"]
    backbone = build_backbone(cfg).eval()
    with torch.no_grad():
        features = backbone(torch.randn(1, 3, 64, 64))
    assert backbone.size_divisibility == 32
    assert {name: tuple(feature.shape[1:]) for name, feature in features.items()} == {
        "res2": (24, 16, 16),
        "res3": (40, 8, 8),
        "res4": (112, 4, 4),
        "res5": (320, 2, 2),
    }
