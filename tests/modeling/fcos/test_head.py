"""Towers of plain and of modulated deformable convolutions."""

from __future__ import annotations

import logging

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from segzoo.modeling.deformable import ModulatedDeformConv
from segzoo.modeling.fcos.head import FCOSHead, build_tower
from tests.contract.toys import ellipse, losses_and_gradients, make_input, toy_config


def build_head(deformable: bool) -> FCOSHead:
    return FCOSHead(
        channels=32, num_classes=3, num_levels=1, num_convs=2, norm="GN", prior_prob=0.01, deformable=deformable
    )


def test_build_tower_deformable_keeps_the_order_of_its_layers_and_has_biases() -> None:
    kinds = [nn.Conv2d, nn.GroupNorm, nn.ReLU] * 2
    assert [type(layer) for layer in build_tower(32, 2, "GN")] == kinds
    assert [type(layer) for layer in build_tower(32, 2, "")] == [nn.Conv2d, nn.ReLU] * 2
    tower = build_tower(32, 2, "GN", deformable=True)
    assert [type(layer) for layer in tower] == [ModulatedDeformConv if kind is nn.Conv2d else kind for kind in kinds]
    keys = {f"{i}.{name}" for i in (0, 3) for name in ("weight", "bias", "offset.weight", "offset.bias")}
    assert {key for key in tower.state_dict() if key.split(".")[0] in ("0", "3")} == keys
    assert tower[0].offset.out_channels == 27


def test_init_head_gives_deformable_filters_the_normal_and_leaves_offsets_at_zero() -> None:
    head = build_head(deformable=True)
    layers = [layer for layer in head.modules() if isinstance(layer, ModulatedDeformConv)]
    assert len(layers) == 4
    for layer in layers:
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.05)
        assert not layer.bias.any()
        assert not layer.offset.weight.any()
        assert not layer.offset.bias.any()
    assert not any(isinstance(layer, ModulatedDeformConv) for layer in build_head(deformable=False).modules())


def test_deformable_head_starts_as_the_plain_one_with_halved_filters() -> None:
    deformable, plain = build_head(True), build_head(False)
    rest = plain.load_state_dict(deformable.state_dict(), strict=False)
    assert rest.missing_keys == []
    assert {key.split(".", 2)[2] for key in rest.unexpected_keys} == {"bias", "offset.weight", "offset.bias"}
    features = [torch.randn(1, 32, 6, 8)]
    with torch.no_grad():
        for tower in (plain.cls_tower, plain.box_tower):
            tower[0].weight *= 0.5
            tower[3].weight *= 0.5
        for found, expected in zip(deformable(features), plain(features), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["FCOS", "PolarMask"])
@pytest.mark.parametrize("is_autocast", [False, True])
def test_deformable_towers_train(name: str, is_autocast: bool) -> None:
    model = build_model(toy_config(name, "MODEL.FCOS.DEFORMABLE", True))
    batch = [make_input((64, 96), [ellipse((64, 96), (40, 30), (25, 20))])]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_autocast):
        losses_and_gradients(model, batch)
    layers = [layer for layer in model.modules() if isinstance(layer, ModulatedDeformConv)]
    assert layers
    assert all(layer.offset.weight.grad.any() and layer.weight.grad.any() for layer in layers)


def test_deformable_towers_survive_features_that_are_not_finite(caplog: pytest.LogCaptureFixture) -> None:
    # torchvision's operator alone would end the process.
    model = build_model(toy_config("FCOS", "MODEL.FCOS.DEFORMABLE", True, "MODEL.FCOS.SCORE_THRESH_TEST", 0.0)).eval()
    with torch.no_grad(), caplog.at_level(logging.WARNING, logger="segzoo"):
        model.backbone.fpn_output3.weight.fill_(float("nan"))
        instances = model([make_input((64, 96), [])])[0]["instances"]
    assert len(instances) > 0
    assert instances.scores.isfinite().all()
    assert "gave NaN" in caplog.text
