"""DLA: its features, its up-sampling, its counts, and values that cannot work."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import timm
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from torch import nn

from segzoo.config import get_segzoo_cfg
from segzoo.engine.centernet_weights import dla_trunk_rules
from segzoo.engine.renaming import DROP_COUNTERS, rename
from segzoo.errors import ConfigError
from segzoo.evaluation.complexity import measure_complexity
from segzoo.modeling.backbones.dla import Dla, DlaTrunk, IdaUp, build_upsampling
from segzoo.modeling.deformable import ModulatedDeformConv

SMALL = {"TREE_DEPTHS": (1, 1, 2, 1), "CHANNELS": (2, 4, 6, 8, 10, 12)}


def dla_cfg(**changes: Any) -> CfgNode:
    cfg = get_segzoo_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_dla_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.DEVICE = "cpu"
    for key, value in {**SMALL, **changes}.items():
        cfg.MODEL.DLA[key] = value
    return cfg


class Model(nn.Module):
    """A backbone where the counting of costs looks for it."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone


def test_dla_34_costs_what_its_papers_say() -> None:
    cost = measure_complexity(Model(Dla().eval()), (512, 512))
    trunk = cost.parts["backbone.bottom_up"]
    assert trunk.parameters / 1e6 == pytest.approx(15.2, rel=0.01)
    assert trunk.macs / 1e9 == pytest.approx(16.0, rel=0.01)
    assert not any("not counted" in note for note in cost.notes)


@pytest.mark.parametrize("is_deformable", [True, False])
def test_build_dla_feature_has_the_shape_announced(is_deformable: bool) -> None:
    backbone = build_backbone(dla_cfg(DEFORMABLE=is_deformable)).eval()
    with torch.no_grad():
        features = backbone(torch.randn(2, 3, 64, 96))
        levels = backbone.bottom_up(torch.randn(2, 3, 64, 96))
    assert backbone.output_shape() == {"p2": ShapeSpec(channels=6, stride=4)}
    assert {name: feature.shape for name, feature in features.items()} == {"p2": (2, 6, 16, 24)}
    assert backbone.size_divisibility == 32
    assert {name: tuple(feature.shape) for name, feature in levels.items()} == {
        name: (2, shape.channels, 64 // shape.stride, 96 // shape.stride)
        for name, shape in backbone.bottom_up.output_shape().items()
    }
    assert [shape.channels for shape in backbone.bottom_up.output_shape().values()] == [2, 4, 6, 8, 10, 12]
    assert any(isinstance(module, ModulatedDeformConv) for module in backbone.modules()) == is_deformable


@pytest.mark.parametrize("tree_depths", [(1, 2, 2, 1), (2, 3, 1, 2)])
def test_dla_every_parameter_gets_a_gradient(tree_depths: tuple[int, ...]) -> None:
    # Otherwise a run on several GPUs stops.
    backbone = build_backbone(dla_cfg(TREE_DEPTHS=tree_depths)).train()
    backbone(torch.randn(2, 3, 64, 64))["p2"].square().mean().backward()
    without = [name for name, parameter in backbone.named_parameters() if parameter.grad is None]
    assert without == []


def test_dla_trunk_equals_timms() -> None:
    theirs: Any = timm.create_model("dla34", pretrained=False).eval()
    for name, value in theirs.state_dict().items():
        if "running_var" in name or ("bn" in name and name.endswith("weight")):
            value.uniform_(0.5, 1.5)
    renamed = rename(theirs.state_dict(), [*dla_trunk_rules("", ""), DROP_COUNTERS])
    assert renamed.unexpected == []
    trunk = DlaTrunk().eval()
    result = trunk.load_state_dict(renamed.weights, strict=False)
    assert result.unexpected_keys == []
    assert all(name.endswith("num_batches_tracked") for name in result.missing_keys)
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(trunk(images)["level5"], theirs.forward_features(images), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_build_upsampling_starts_as_bilinear_interpolation(factor: int) -> None:
    feature = torch.randn(2, 3, 6, 7)
    with torch.no_grad():
        found = build_upsampling(3, factor)(feature)
    expected = nn.functional.interpolate(feature, scale_factor=factor, mode="bilinear", align_corners=False)
    assert found.shape == expected.shape
    # At the border a transposed convolution sees zeros beyond, interpolation the last pixel once more.
    inside = (..., slice(factor // 2, -factor // 2), slice(factor // 2, -factor // 2))
    torch.testing.assert_close(found[inside], expected[inside])


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_build_upsampling_weights_of_an_output_sum_to_one(factor: int) -> None:
    weight = build_upsampling(2, factor).weight
    # An output lies below those filter positions that are a stride apart.
    sums = torch.stack([weight[..., i::factor, j::factor].sum((2, 3)) for i in range(factor) for j in range(factor)])
    torch.testing.assert_close(sums, torch.ones_like(sums))


def test_ida_up_leaves_its_input_as_it_is() -> None:
    ida = IdaUp(4, (4, 6, 8), (2, 4), is_deformable=True, norm="BN").train()
    features = [torch.randn(1, channels, 16 // 2**i, 24 // 2**i) for i, channels in enumerate((4, 6, 8))]
    given, values = list(features), [feature.clone() for feature in features]
    merged = ida(features)
    assert [feature.shape for feature in merged] == [(1, 4, 16, 24)] * 3
    assert merged[0] is features[0]
    assert all(now is before for now, before in zip(features, given, strict=True))
    assert all(torch.equal(now, before) for now, before in zip(features, values, strict=True))


def test_dla_up_merges_every_level_into_the_finest() -> None:
    dla_up = Dla(channels=SMALL["CHANNELS"]).dla_up.eval()
    features = [torch.randn(1, 6 + 2 * i, 16 // 2**i, 16 // 2**i, requires_grad=True) for i in range(4)]
    merged = dla_up(features)
    assert [tuple(feature.shape[1:]) for feature in merged] == [(6, 16, 16), (8, 8, 8), (10, 4, 4), (12, 2, 2)]
    assert merged[-1] is features[-1]
    gradients = torch.autograd.grad(merged[0].sum(), features)
    assert all(gradient.abs().max() > 0 for gradient in gradients)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"TREE_DEPTHS": (1, 2, 2)}, r"TREE_DEPTHS is \[1, 2, 2\]"),
        ({"TREE_DEPTHS": (0, 2, 2, 1)}, "4 whole numbers from 1, for level2..level5"),
        ({"CHANNELS": (16, 32, 64, 128, 256)}, "6 whole numbers from 1, for level0..level5"),
        ({"CHANNELS": (16, 32, 64, 128, 256, -1)}, "MODEL.DLA.CHANNELS"),
        ({"CHANNELS": (16, 32, 64.5, 128, 256, 512)}, "MODEL.DLA.CHANNELS"),
        ({"NORM": "GN"}, "MODEL.DLA.NORM is 'GN'"),
    ],
)
def test_build_dla_impossible_config_raises_config_error(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_backbone(dla_cfg(**changes))


def test_build_dla_freeze_at_has_no_effect_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    cfg = dla_cfg()
    cfg.MODEL.BACKBONE.FREEZE_AT = 2
    with caplog.at_level(logging.WARNING, logger="segzoo"):
        backbone = build_backbone(cfg)
    assert "FREEZE_AT (2) has no effect on build_dla_backbone" in caplog.text
    assert all(parameter.requires_grad for parameter in backbone.parameters())


def test_dla_frozen_norms_have_no_parameters() -> None:
    backbone = build_backbone(dla_cfg(NORM="FrozenBN"))
    norms = ("bn", "norm", "base_layer.1", "project.1", "level0.1", "level1.1")
    assert not [name for name, _ in backbone.named_parameters() if any(norm in name for norm in norms)]


@pytest.mark.gpu
def test_dla_cuda_equals_the_cpu() -> None:
    backbone = build_backbone(dla_cfg()).eval()
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = backbone(images)["p2"]
        found = backbone.cuda()(images.cuda())["p2"].cpu()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.std()))
