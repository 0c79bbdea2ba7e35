"""FCOSIS's own losses and their gradients against loops in double precision."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fcosis.losses import center_loss, coarse_losses, mask_loss
from fcosis.targets import InnerTargets

MAP_SIZE = (12, 16)


def entropy(logit: Tensor, target: float) -> Tensor:
    """Oracle: binary cross entropy in the words of its definition."""
    p = 1 / (1 + torch.exp(-logit))
    return -(target * torch.log(p) + (1 - target) * torch.log(1 - p))


def made_targets(count: int, places: list[int], shares: list[float], ignored: list[int]) -> InnerTargets:
    """Targets as far as the coarse segmentation looks at them."""
    is_outside = torch.ones(count, dtype=torch.bool)
    is_outside[ignored + places] = False
    index = torch.tensor(places, dtype=torch.int64)
    return InnerTargets(index, index, torch.tensor(shares), is_outside)


def test_coarse_losses_and_their_gradients_equal_the_slow_oracle() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(40, generator=generator) * 4).requires_grad_()
    places, shares, ignored = [3, 7, 8, 31], [0.0, 1.0, 0.4375, 0.9], [0, 4, 9, 39]
    losses = coarse_losses(logits, made_targets(40, places, shares, ignored))
    slow_logits = logits.detach().double().requires_grad_()
    within = torch.stack([entropy(slow_logits[place], share) for place, share in zip(places, shares, strict=True)])
    others = [place for place in range(40) if place not in ignored + places]
    outside = torch.stack([entropy(slow_logits[place], 0.0) for place in others])
    expected = (within.sum(), outside.sum())
    assert [float(loss.detach()) for loss in losses] == pytest.approx([float(e.detach()) for e in expected], rel=1e-5)
    (losses[0] + 2 * losses[1]).backward()
    (expected[0] + 2 * expected[1]).backward()
    assert logits.grad is not None
    assert slow_logits.grad is not None
    torch.testing.assert_close(logits.grad, slow_logits.grad.float())
    assert not logits.grad[ignored].any()


def test_center_loss_and_its_gradient_equal_the_slow_oracle() -> None:
    generator = torch.Generator().manual_seed(1)
    pred = (torch.randn(30, 2, generator=generator) * 3).requires_grad_()
    target = torch.randn(30, 2, generator=generator)
    # Both sides of beta, and beta itself.
    with torch.no_grad():
        pred[0], target[0] = torch.tensor([1.0, 0.5]), torch.tensor([0.0, 0.0])
    loss = center_loss(pred, target)
    total, gradients = 0.0, []
    for found, expected in zip(pred.flatten().tolist(), target.flatten().tolist(), strict=True):
        way = found - expected
        total += way**2 / 2 if abs(way) < 1 else abs(way) - 0.5
        gradients.append(max(-1.0, min(1.0, way)))
    assert float(loss.detach()) == pytest.approx(total, rel=1e-5)
    loss.backward()
    assert pred.grad is not None
    assert pred.grad.flatten().tolist() == pytest.approx(gradients, abs=1e-6)


def make_masks() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(3, H, W) logits, (7,) channels, (7, 4) boxes in cells, (7, H, W) soft masks."""
    rng = np.random.default_rng(2)
    boxes = [
        [1.2, 0.4, 9.7, 8.3],
        [0.0, 0.0, 16.0, 12.0],
        # Of one pixel, between the centres of cells.
        [5.0, 3.0, 5.25, 3.25],
        [12.5, 9.5, 16.0, 12.0],
        # The centres of a cell on a side: the left and upper one counts, the right and lower one does not.
        [2.5, 1.5, 6.5, 4.5],
        [1.2, 0.4, 9.7, 8.3],
        # Out of the map on all sides.
        [-3.0, -4.0, 20.0, 15.0],
    ]
    masks = torch.from_numpy(rng.integers(0, 17, (7, *MAP_SIZE)) / 16).float()
    logits = torch.from_numpy(rng.normal(0, 4, (3, *MAP_SIZE))).float()
    return logits, torch.tensor([0, 1, 2, 2, 0, 1, 2]), torch.tensor(boxes), masks


def mask_loss_slowly(logits: Tensor, channels: Tensor, boxes: Tensor, masks: Tensor) -> Tensor:
    losses = []
    for channel, (x0, y0, x1, y1), mask in zip(channels.tolist(), boxes.tolist(), masks.tolist(), strict=True):
        columns = [x for x in range(MAP_SIZE[1]) if x0 <= x + 0.5 < x1] or [math.floor((x0 + x1) / 2)]
        rows = [y for y in range(MAP_SIZE[0]) if y0 <= y + 0.5 < y1] or [math.floor((y0 + y1) / 2)]
        own = [entropy(logits[channel, y, x], mask[y][x]) for y in rows for x in columns]
        losses.append(torch.stack(own).mean())
    return torch.stack(losses)


@pytest.mark.parametrize("max_pairs", [10**6, 150, 1])
def test_mask_loss_and_its_gradient_equal_the_slow_oracle(max_pairs: int) -> None:
    logits, channels, boxes, masks = make_masks()
    leaf, slow_leaf = logits.clone().requires_grad_(), logits.double().requires_grad_()
    losses = mask_loss(leaf, channels, boxes, masks, max_pairs=max_pairs)
    expected = mask_loss_slowly(slow_leaf, channels, boxes, masks)
    assert losses.shape == (7,)
    torch.testing.assert_close(losses, expected.float())
    weights = torch.arange(1, 8)
    (losses * weights).sum().backward()
    (expected * weights).sum().backward()
    assert leaf.grad is not None
    assert slow_leaf.grad is not None
    torch.testing.assert_close(leaf.grad, slow_leaf.grad.float(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("num_maps", [0, 6])
def test_losses_of_no_object_are_zero_and_connected(num_maps: int) -> None:
    """No colour group at all, or the class maps of the baseline."""
    logits = torch.randn(num_maps, *MAP_SIZE, requires_grad=True)
    none = torch.zeros(0, dtype=torch.int64)
    losses = mask_loss(logits, none, torch.zeros(0, 4), torch.zeros(0, *MAP_SIZE))
    assert losses.shape == (0,)
    pred = torch.randn(9, 2, requires_grad=True)
    coarse = torch.randn(9, requires_grad=True)
    targets = made_targets(9, [], [], list(range(9)))
    found = [losses.sum(), center_loss(pred[none], torch.zeros(0, 2)), *coarse_losses(coarse, targets)]
    assert [float(loss.detach()) for loss in found] == [0.0] * 4
    torch.stack(found).sum().backward()
    for leaf in (logits, pred, coarse):
        assert leaf.grad is not None
        assert leaf.grad.shape == leaf.shape
        assert not leaf.grad.any()


@pytest.mark.parametrize("value", [1e4, -1e4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=["fp16", "bf16", "fp32"])
def test_losses_of_extreme_values_are_finite_and_fp32_under_autocast(dtype: torch.dtype, value: float) -> None:
    _, channels, boxes, masks = make_masks()
    logits = torch.full((3, *MAP_SIZE), value, dtype=dtype, requires_grad=True)
    coarse = torch.full((20,), value, dtype=dtype, requires_grad=True)
    pred = torch.full((4, 2), value, dtype=dtype, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = [
            mask_loss(logits, channels, boxes, masks),
            *coarse_losses(coarse, made_targets(20, [1, 2], [0.5, 1.0], [3])),
            center_loss(pred, torch.zeros(4, 2)),
        ]
    for loss in losses:
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss).all()
        loss.sum().backward()
    for leaf in (logits, coarse, pred):
        assert leaf.grad is not None
        assert torch.isfinite(leaf.grad).all()


def test_losses_of_half_precision_are_those_of_their_values() -> None:
    logits, channels, boxes, masks = make_masks()
    half = logits.half()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = mask_loss(half, channels, boxes, masks)
    torch.testing.assert_close(found, mask_loss(half.float(), channels, boxes, masks), atol=0, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dense_losses_of_half_precision_are_fp32_without_autocast(dtype: torch.dtype) -> None:
    """Autocast widens a cross entropy by itself: the losses may not rely on it."""
    coarse = torch.randn(40).to(dtype)
    pred, offsets = torch.randn(30, 2).to(dtype), torch.randn(30, 2)
    targets = made_targets(40, [3, 7, 31], [0.1, 1.0, 0.4375], [0, 4])
    for found, expected in (
        *zip(coarse_losses(coarse, targets), coarse_losses(coarse.float(), targets), strict=True),
        (center_loss(pred, offsets), center_loss(pred.float(), offsets)),
    ):
        assert found.dtype == torch.float32
        assert torch.equal(found, expected)
