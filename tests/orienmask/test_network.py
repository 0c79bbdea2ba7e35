"""OrienMask's neck and heads: shapes, parameters, gradients and precision."""

from __future__ import annotations

import pytest
import torch

from segzoo.modeling.backbones.timm_fpn import TimmBackbone
from tests.orienmask.networks import Network, full_network


@pytest.mark.parametrize(("orien_input", "parameters"), [("fpn_plus", 63_662_063), ("fpn", 63_596_143)])
def test_full_network_has_the_authors_parameters(orien_input: str, parameters: int) -> None:
    with torch.device("meta"):
        network = full_network(orien_input)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


@pytest.mark.parametrize("orien_input", ["fpn_plus", "fpn"])
@pytest.mark.parametrize("backbone", ["darknet", "timm"])
def test_network_gives_maps_of_each_stride_from_any_backbone(backbone: str, orien_input: str) -> None:
    extractor = TimmBackbone("efficientnet_lite0", out_strides=(4, 8, 16, 32)) if backbone == "timm" else None
    network = Network(extractor, orien_input=orien_input, neck_channels=(6, 10, 12)).eval()
    with torch.no_grad():
        maps = network(torch.randn(2, 3, 64, 96))
    assert [tuple(level.shape) for level in maps.boxes] == [(2, 27, 8, 12), (2, 27, 4, 6), (2, 27, 2, 3)]
    assert maps.orientations.shape == (2, 18, 16, 24)


@pytest.mark.parametrize("orien_input", ["fpn_plus", "fpn"])
def test_network_gradients_reach_every_parameter(orien_input: str) -> None:
    network = Network(orien_input=orien_input).train()
    maps = network(torch.randn(2, 3, 64, 64))
    sum(value.square().mean() for value in (*maps.boxes, maps.orientations)).backward()
    without = [name for name, value in network.named_parameters() if value.grad is None or not value.grad.any()]
    assert without == []


def test_network_orientations_see_the_coarse_levels_only_with_fpn_plus() -> None:
    for orien_input, expected in (("fpn_plus", True), ("fpn", False)):
        head = Network(orien_input=orien_input).eval().get_submodule("orien_head")
        feature, levels = torch.randn(1, 16, 16, 16), [torch.randn(1, c, s, s) for c, s in ((16, 8), (32, 4), (64, 2))]
        with torch.no_grad():
            before = head(feature, levels)
            after = head(feature, [levels[0], levels[1], levels[2] + 1])
        assert (not torch.equal(before, after)) is expected


def test_network_predictions_stay_in_fp32_under_autocast() -> None:
    network = Network().eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        maps = network(torch.randn(1, 3, 64, 64))
    assert {value.dtype for value in (*maps.boxes, maps.orientations)} == {torch.float32}
