"""CenterNet's losses against the same written out cell by cell, and for extreme maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from centermask.losses import focal_loss, l1_loss, replace_zeros
from tests.centermask.center_oracle import focal_of


def random_heatmap(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(2, 3, 6, 7) logits and targets, some of which are peaks."""
    rng = torch.Generator().manual_seed(seed)
    logits, heatmap = torch.randn(2, 3, 6, 7, generator=rng) * 6, torch.rand(2, 3, 6, 7, generator=rng)
    heatmap[torch.rand(2, 3, 6, 7, generator=rng) < 0.1] = 1
    return logits, torch.where(heatmap < 0.3, 0.0, heatmap)


def test_focal_loss_equals_the_oracle() -> None:
    logits, heatmap = random_heatmap()
    expected = focal_of(logits.numpy(), heatmap.numpy())
    assert float(focal_loss(logits, heatmap)) == pytest.approx(expected, rel=1e-5)


def test_focal_loss_has_the_gradient_of_finite_differences() -> None:
    logits, heatmap = random_heatmap(1)
    logits = logits.clamp(-8, 8).requires_grad_()
    focal_loss(logits, heatmap).backward()
    assert logits.grad is not None
    step, values, targets = 1e-4, logits.detach().double().numpy(), heatmap.numpy()
    for place in [(0, 0, 0, 0), (1, 2, 5, 6), *map(tuple, (heatmap == 1).nonzero()[:5].tolist())]:
        sides = []
        for sign in (-1, 1):
            moved = values.copy()
            moved[place] += sign * step
            sides.append(focal_of(moved, targets))
        assert float(logits.grad[place]) == pytest.approx((sides[1] - sides[0]) / (2 * step), abs=2e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [-1e4, 1e4, 0.0])
def test_case_33_34_focal_loss_of_extreme_logits_is_finite_and_fp32(dtype: torch.dtype, value: float) -> None:
    logits = torch.full((1, 2, 4, 4), value, dtype=dtype, requires_grad=True)
    heatmap = torch.zeros(1, 2, 4, 4)
    heatmap[0, 0, 1, 1], heatmap[0, 0, 1, 2] = 1, 0.9
    loss = focal_loss(logits, heatmap)
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_l1_loss_sums_both_coordinates_of_every_object() -> None:
    values, targets = torch.tensor([[1.0, -2.0], [0.5, 3.0]]), torch.tensor([[0.0, 1.0], [0.5, 3.5]])
    assert float(l1_loss(values, targets)) == pytest.approx(1 + 3 + 0 + 0.5)
    assert float(l1_loss(torch.zeros(0, 2), torch.zeros(0, 2))) == 0


def test_counts_of_batches_without_objects_are_replaced_by_the_running_mean() -> None:
    running = torch.zeros(2)
    # Nothing has been seen yet: at least 1.
    divisors, running = replace_zeros(torch.tensor([0.0, 0.0]), running, 1.0)
    assert divisors.tolist() == [1.0, 1.0]
    assert running.tolist() == [0.0, 0.0]
    # The first counts are the mean, later ones move it by a hundredth.
    divisors, running = replace_zeros(torch.tensor([10.0, 300.0]), running, 1.0)
    assert divisors.tolist() == [10.0, 300.0]
    assert running.tolist() == [10.0, 300.0]
    divisors, running = replace_zeros(torch.tensor([20.0, 0.0]), running, 1.0)
    assert divisors.tolist() == [20.0, 300.0]
    np.testing.assert_allclose(running, [10.1, 300.0], rtol=1e-6)
    # Half an object a rank is one object of two ranks.
    divisors, _ = replace_zeros(torch.tensor([0.5, 0.0]), torch.tensor([0.0, 0.1]), 0.5)
    assert divisors.tolist() == [0.5, 0.5]
