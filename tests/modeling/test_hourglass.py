"""Hourglasses: their features, their counts, and values that cannot work."""

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
from segzoo.evaluation.complexity import measure_complexity
from segzoo.modeling.backbones.hourglass import Hourglass, StackedHourglass

SMALL = {"NUM_STACKS": 2, "CHANNELS": (4, 6, 8), "BLOCKS": (1, 2, 1)}


def hourglass_cfg(**changes: Any) -> CfgNode:
    cfg = get_segzoo_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_hourglass_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.DEVICE = "cpu"
    for key, value in {**SMALL, **changes}.items():
        cfg.MODEL.HOURGLASS[key] = value
    return cfg


class Model(nn.Module):
    """A backbone where the counting of costs looks for it."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone


def test_hourglass_104_costs_what_its_papers_say() -> None:
    cost = measure_complexity(Model(StackedHourglass().eval()), (512, 512))
    assert cost.image_size == (512, 512)
    assert cost.parameters / 1e6 == pytest.approx(187.7, rel=0.01)
    assert cost.gmac == pytest.approx(234.3, rel=0.01)


@pytest.mark.parametrize("num_stacks", [1, 2, 3])
def test_build_hourglass_features_have_the_shapes_announced(num_stacks: int) -> None:
    backbone = build_backbone(hourglass_cfg(NUM_STACKS=num_stacks)).eval()
    assert backbone.size_divisibility == 16
    with torch.no_grad():
        features = backbone(torch.randn(2, 3, 32, 48))
    names = [f"stack{i}" for i in range(num_stacks)]
    assert backbone.output_shape() == dict.fromkeys(names, ShapeSpec(channels=4, stride=4))
    assert list(features) == names
    assert all(feature.shape == (2, 4, 8, 12) for feature in features.values())


def test_hourglass_104_needs_sides_of_128() -> None:
    with torch.device("meta"):
        assert StackedHourglass().size_divisibility == 128


@pytest.mark.parametrize("changes", [{}, {"NUM_STACKS": 1}, {"CHANNELS": (4, 4), "BLOCKS": (2, 3)}])
def test_hourglass_every_parameter_gets_a_gradient(changes: dict) -> None:
    # From the last stack alone already the convolutions of the first one do, as both merge.
    backbone = build_backbone(hourglass_cfg(**changes)).train()
    list(backbone(torch.randn(2, 3, 32, 32)).values())[-1].square().mean().backward()
    assert [name for name, parameter in backbone.named_parameters() if parameter.grad is None] == []


def test_hourglass_sees_far_and_near() -> None:
    # The middle of three halvings reaches over 32 pixels, the blocks beside them over 4 on either side.
    hourglass = Hourglass((2, 2, 2, 2), (1, 1, 1, 1), norm="BN").eval().double()
    feature = torch.rand(1, 2, 32, 32, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(hourglass(feature)[0, :, 0, 0].sum(), feature)
    assert gradient[..., :2, :2].any()
    assert gradient[..., 16:, 16:].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"NUM_STACKS": 0}, "NUM_STACKS is 0"),
        ({"CHANNELS": (256,), "BLOCKS": (2,)}, "two or more whole numbers from 2"),
        ({"CHANNELS": (256, 1, 384)}, r"MODEL.HOURGLASS.CHANNELS is \[256, 1, 384\]"),
        ({"BLOCKS": (2, 2, 0)}, r"MODEL.HOURGLASS.BLOCKS is \[2, 2, 0\]"),
        ({"BLOCKS": (2, 2)}, "CHANNELS has 3 numbers, BLOCKS has 2"),
        ({"NORM": "GN"}, "MODEL.HOURGLASS.NORM is 'GN'"),
    ],
)
def test_build_hourglass_impossible_config_raises_config_error(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_backbone(hourglass_cfg(**changes))


def test_build_hourglass_freeze_at_has_no_effect_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    cfg = hourglass_cfg()
    cfg.MODEL.BACKBONE.FREEZE_AT = 2
    with caplog.at_level(logging.WARNING, logger="segzoo"):
        build_backbone(cfg)
    assert "FREEZE_AT (2) has no effect on build_hourglass_backbone" in caplog.text


def test_hourglass_norms_have_the_same_entries() -> None:
    entries = [
        list(StackedHourglass(channels=(2, 2), blocks=(1, 1), norm=norm).state_dict())
        for norm in ("BN", "naiveSyncBN", "SyncBN")
    ]
    assert entries[0] == entries[1] == entries[2]
