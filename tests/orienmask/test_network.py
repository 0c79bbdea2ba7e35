"""OrienMask's neck and heads: shapes, parameters, gradients and precision."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from segzoo.modeling.backbones.timm_fpn import TimmBackbone
from tests.orienmask.networks import SMALL, Network, full_network


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


def randomised(network: Network) -> Network:
    """Norms whose weights and statistics do something."""
    for name, value in network.state_dict().items():
        if name.endswith(("norm.weight", "norm.running_var")):
            value.copy_(torch.rand_like(value) + 0.5)
        elif name.endswith(("bias", "norm.running_mean")):
            value.copy_(torch.rand_like(value) - 0.5)
    return network


class Oracle:
    """The network's maps by its entries' names, without its modules."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state

    def block(self, name: str, feature: Tensor, stride: int = 1) -> Tensor:
        kernel = self.state[f"{name}.weight"]
        mean, var, scale, bias = (
            self.state[f"{name}.norm.{leaf}"] for leaf in ("running_mean", "running_var", "weight", "bias")
        )
        feature = F.conv2d(feature, kernel, stride=stride, padding=kernel.shape[-1] // 2)
        return F.leaky_relu(F.batch_norm(feature, mean, var, scale, bias, training=False, eps=1e-5), 0.1)

    def blocks(self, name: str, feature: Tensor) -> Tensor:
        for index in range(5):
            feature = self.block(f"{name}.{index}", feature)
        return feature

    def pred(self, name: str, feature: Tensor) -> Tensor:
        return F.conv2d(feature, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def backbone(self, image: Tensor) -> list[Tensor]:
        """res2..res5."""
        feature, features = self.block("backbone.stem", image), []
        for stage, num_blocks in enumerate(SMALL["blocks_per_stage"], start=1):
            feature = self.block(f"backbone.res{stage}.down", feature, stride=2)
            for index in range(num_blocks):
                name = f"backbone.res{stage}.blocks.{index}"
                feature = feature + self.block(f"{name}.conv2", self.block(f"{name}.conv1", feature))
            features.append(feature)
        return features[1:]

    def __call__(self, image: Tensor, orien_input: str) -> list[Tensor]:
        """The box maps of strides 8, 16 and 32, and the orientations."""
        c2, c3, c4, c5 = self.backbone(image)
        p5 = self.blocks("neck.p5", c5)
        p4 = self.blocks("neck.p4", torch.cat((enlarge(self.block("neck.lateral5", p5), 2), c4), dim=1))
        p3 = self.blocks("neck.p3", torch.cat((enlarge(self.block("neck.lateral4", p4), 2), c3), dim=1))
        if orien_input == "fpn":
            merged = torch.cat((enlarge(self.block("orien_head.lateral3", p3), 2), c2), dim=1)
        else:
            # Coarse to fine.
            sides = (("p5", p5, 8), ("p4", p4, 4), ("p3", p3, 2), ("p2", c2, 1))
            merged = torch.cat([enlarge(self.block(f"orien_head.fuse.{n}", f), times) for n, f, times in sides], dim=1)
        tower = self.blocks("orien_head.tower", self.blocks("orien_head.neck", merged))
        boxes = [
            self.pred(f"box_head.{i}.pred", self.block(f"box_head.{i}.conv", p)) for i, p in enumerate((p3, p4, p5))
        ]
        return [*boxes, self.pred("orien_head.pred", tower)]


def enlarge(feature: Tensor, times: int) -> Tensor:
    """Every value to a square of `times` x `times`."""
    return feature.repeat_interleave(times, dim=2).repeat_interleave(times, dim=3)


@pytest.mark.parametrize("orien_input", ["fpn_plus", "fpn"])
def test_network_equals_its_computation_written_out(orien_input: str) -> None:
    network = randomised(Network(orien_input=orien_input)).eval()
    image = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        maps, expected = network(image), Oracle(network.state_dict())(image, orien_input)
    for found, theirs in zip((*maps.boxes, maps.orientations), expected, strict=True):
        assert float(theirs.std()) > 0.01
        torch.testing.assert_close(found, theirs, rtol=1e-5, atol=1e-5)
