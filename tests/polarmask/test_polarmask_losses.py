"""PolarMask's losses: values and gradients against float64 oracles, closed forms, and wild logits."""

from __future__ import annotations

import math

import pytest
import torch

from polarmask.losses import box_iou_loss, polar_centerness, polar_iou_loss, smooth_l1_ray_loss
from segzoo.modeling.fcos.head import exp_size


def random_rays(count: int, seed: int) -> torch.Tensor:
    return torch.rand(count, 36, generator=torch.Generator().manual_seed(seed)) * 60 + 0.5


def test_polar_iou_loss_equals_a_float64_oracle_in_value_and_gradient() -> None:
    pred, target = random_rays(7, 0).requires_grad_(), random_rays(7, 1)
    weights = torch.rand(7, generator=torch.Generator().manual_seed(2))
    loss = polar_iou_loss(pred, target, weights)
    loss.backward()
    value, gradient = 0.0, torch.zeros(7, 36, dtype=torch.float64)
    for i in range(7):
        pairs = list(zip(pred[i].tolist(), target[i].tolist(), strict=True))
        longer, shorter = sum(max(pair) for pair in pairs), sum(min(pair) for pair in pairs)
        value += float(weights[i]) * math.log(longer / shorter)
        for k, (d, d_star) in enumerate(pairs):
            gradient[i, k] = float(weights[i]) * (1 / longer if d > d_star else -1 / shorter)
    assert loss.item() == pytest.approx(value, rel=1e-5)
    torch.testing.assert_close(pred.grad.double(), gradient, rtol=1e-4, atol=1e-7)


def test_polar_iou_loss_is_zero_for_equal_rays_and_log_a_for_scaled_ones() -> None:
    rays, weights = random_rays(5, 3), torch.ones(5)
    assert float(polar_iou_loss(rays, rays, weights)) == 0.0
    for factor in (0.25, 3.0):
        assert float(polar_iou_loss(rays * factor, rays, weights)) == pytest.approx(5 * abs(math.log(factor)), rel=1e-5)


def test_smooth_l1_ray_loss_equals_a_float64_oracle() -> None:
    pred, target = random_rays(6, 4).requires_grad_(), random_rays(6, 4) + torch.linspace(-2, 2, 36)
    weights = torch.arange(6.0)
    loss = smooth_l1_ray_loss(pred, target, weights)
    loss.backward()
    difference = (pred - target).detach().double()
    expected = torch.where(difference.abs() < 1, 0.5 * difference**2, difference.abs() - 0.5).mean(dim=1)
    assert smooth_l1_ray_loss(pred, target, weights).item() == pytest.approx(
        float((expected * weights).sum()), rel=1e-5
    )
    gradient = difference.clamp(-1, 1) * weights[:, None] / 36
    torch.testing.assert_close(pred.grad.double(), gradient, rtol=1e-4, atol=1e-6)


def test_polar_centerness_is_the_root_of_the_ratio_and_one_for_a_circle() -> None:
    rays = torch.full((2, 36), 9.0)
    rays[1, 4], rays[1, 20] = 4.0, 16.0
    assert polar_centerness(rays).tolist() == [1.0, 0.5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loss", [polar_iou_loss, smooth_l1_ray_loss])
def test_ray_losses_are_finite_for_wild_logits(loss, dtype: torch.dtype) -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0, 5.0]], dtype=torch.float32).to(dtype).requires_grad_()
    value = loss(exp_size(logits), torch.full((1, 4), 10.0), torch.ones(1))
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(logits.grad).all()
    all_small = loss(exp_size(torch.full((1, 4), -1e4, dtype=dtype)), torch.full((1, 4), 1e-6), torch.ones(1))
    assert torch.isfinite(all_small)


@pytest.mark.parametrize("margin", [0.0, 1.0])
def test_box_iou_loss_equals_a_float64_oracle_in_value_and_gradient(margin: float) -> None:
    generator = torch.Generator().manual_seed(9)
    pred = (torch.rand(8, 4, generator=generator) * 50 + 0.1).requires_grad_()
    target, weights = torch.rand(8, 4, generator=generator) * 50, torch.rand(8, generator=generator)
    box_iou_loss(pred, target, weights, margin).backward()
    exact = pred.detach().double().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for i in range(8):
        # Boxes around the origin, corner by corner.
        ax0, ay0, ax1, ay1 = -exact[i, 0], -exact[i, 1], exact[i, 2] + margin, exact[i, 3] + margin
        left, top, right, bottom = target[i].tolist()
        bx0, by0, bx1, by1 = -left, -top, right + margin, bottom + margin
        overlap = (ax1.clamp(max=bx1) - ax0.clamp(min=bx0)) * (ay1.clamp(max=by1) - ay0.clamp(min=by0))
        union = (ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - overlap
        total = total - float(weights[i]) * (overlap / union).log()
    total.backward()
    assert box_iou_loss(pred, target, weights, margin).item() == pytest.approx(total.item(), rel=1e-5)
    torch.testing.assert_close(pred.grad.double(), exact.grad, rtol=1e-4, atol=1e-6)


def test_box_iou_loss_of_boxes_without_overlap_is_finite() -> None:
    pred = torch.zeros(1, 4, requires_grad=True)
    loss = box_iou_loss(pred, torch.full((1, 4), 5.0), torch.ones(1))
    loss.backward()
    assert float(loss) == pytest.approx(-math.log(1e-6), rel=1e-5)
    assert torch.isfinite(pred.grad).all()
