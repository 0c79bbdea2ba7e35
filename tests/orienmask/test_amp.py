"""OrienMask in 16 bits: extreme maps, and a training curve beside that of fp32."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from orienmask.anchors import list_predictions
from orienmask.maps import OrienMaps
from orienmask.orienmask import OrienMask
from segzoo.modeling.fcos.locations import map_sizes
from tests.contract.toys import ellipse, keep_norm_statistics, make_input, toy_config

SIZE = (64, 96)
STEPS = 40
# Share of the fp32 loss, in the mean over the curve and at each of its points. bfloat16 rounds every activation to
# 2^-9 = 0.2 % of it, by which the first losses differ; training makes of that some 1.3 % in the mean, 3.2 % at worst.
MEAN_TOLERANCE, POINT_TOLERANCE = 0.03, 0.08
SMALL_DARKNET = [
    *("MODEL.BACKBONE.NAME", "build_darknet_backbone", "MODEL.BACKBONE.FREEZE_AT", "0"),
    *("MODEL.DARKNET.BLOCKS_PER_STAGE", "(1, 1, 1, 1, 1)", "MODEL.DARKNET.STEM_CHANNELS", "8"),
    *("MODEL.DARKNET.OUT_FEATURES", "['res2', 'res3', 'res4', 'res5']"),
]


def build_tiny(name: str = "OrienMask") -> OrienMask:
    torch.manual_seed(1)
    model = keep_norm_statistics(build_model(toy_config(name, *SMALL_DARKNET)))
    assert isinstance(model, OrienMask)
    return model


def two_images() -> list[dict]:
    masks = [ellipse(SIZE, (40, 30), (22, 17)), ellipse(SIZE, (70, 40), (12, 20)), ellipse(SIZE, (15, 50), (9, 9))]
    return [make_input(SIZE, masks, 0), make_input(SIZE, masks[:1], 1)]


def extreme_maps(model: OrienMask, sign: str, dtype: torch.dtype) -> OrienMaps:
    """Leaves of +-1e4, all of one sign or mixed."""
    with torch.no_grad():
        maps = model.dense_outputs(torch.zeros(2, 3, *SIZE))
    leaves = []
    for value in (*maps.boxes, maps.orientations):
        signs = {"+": torch.ones_like(value), "-": -torch.ones_like(value), "mixed": torch.randn_like(value).sign()}
        leaves.append((1e4 * signs[sign]).to(dtype).requires_grad_())
    return OrienMaps(leaves[:-1], leaves[-1])


@pytest.mark.parametrize("name", ["OrienMask", "OrienMask-base"])
@pytest.mark.parametrize("sign", ["+", "-", "mixed"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=["fp16", "bf16", "fp32"])
def test_losses_and_gradients_of_extreme_maps_are_finite(dtype: torch.dtype, sign: str, name: str) -> None:
    model = build_tiny(name)
    maps = extreme_maps(model, sign, dtype)
    rule = model.target_rule
    places = list_predictions(map_sizes(maps.boxes), rule.strides, rule.anchors_px, model.device)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype != torch.float32):
        losses = model.losses(maps, places, [sample["instances"] for sample in two_images()])
    assert {"loss_orien_pos", "loss_orien_neg"} < losses.keys()
    for key, loss in losses.items():
        assert loss.dtype == torch.float32, key
        assert torch.isfinite(loss), key
    assert min(losses["loss_orien_pos"], losses["loss_orien_neg"]) > 1e4
    torch.stack(list(losses.values())).sum().backward()
    for leaf in (*maps.boxes, maps.orientations):
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
    # Those of a box map may all be zero: no object is of its level, and -1e4 is as sure as it should be.
    assert maps.orientations.grad is not None
    assert maps.orientations.grad.any()


def with_statistics(model: OrienMask, batch: list[dict]) -> OrienMask:
    """Norms with the statistics of a batch, kept from then on: with those of the start the features vanish."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model(batch)
    keep_norm_statistics(model)
    return model


def training_curve(is_mixed: bool) -> torch.Tensor:
    """(STEPS,) total losses on the same two images."""
    batch, totals = two_images(), []
    model = with_statistics(build_tiny(), batch)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    for _ in range(STEPS):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_mixed):
            losses = model(batch)
        total = torch.stack([loss.float() for loss in losses.values()]).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.detach())
    return torch.stack(totals)


def test_bfloat16_stays_near_fp32_over_40_iterations() -> None:
    fp32, bf16 = training_curve(False), training_curve(True)
    assert not torch.equal(fp32, bf16), "autocast was not on"
    assert fp32[-1] < 0.6 * fp32[0]
    difference = (bf16 - fp32).abs()
    assert difference.sum() < MEAN_TOLERANCE * fp32.sum()
    assert (difference < POINT_TOLERANCE * fp32).all()
