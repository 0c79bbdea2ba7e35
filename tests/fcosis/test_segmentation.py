"""The segmentation heads against slow readable oracles: what is convolved and summed, and in how many parts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fcosis.segmentation import ContextHead, SegmentationHead, shrink

SIZES = [(16, 24), (8, 12), (4, 6)]
CHANNELS, HIDDEN = 5, 7


def make_levels(num_images: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(num_images, CHANNELS, *size, generator=generator) for size in SIZES]


def make_attention(num_groups: int, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return shrink(torch.randn(num_groups, 1, *SIZES[0], generator=generator), len(SIZES))


def make_head() -> SegmentationHead:
    torch.manual_seed(2)
    return SegmentationHead(channels=CHANNELS, hidden=HIDDEN, num_levels=len(SIZES))


def one_group(head: SegmentationHead, features: list[Tensor], attention: list[Tensor], image: int) -> Tensor:
    """Oracle: one forward of one group, coarse to fine, in the words of SPEC's topology."""
    total = None
    for level in (2, 1, 0):
        weighted = features[level][image] * attention[level]
        lateral = head.levels.laterals[level]
        assert isinstance(lateral, torch.nn.Conv2d)
        hidden = functional.conv2d(weighted[None], lateral.weight, lateral.bias, padding=1).clamp(min=0)
        if total is not None:
            hidden = hidden + functional.interpolate(total, scale_factor=2, mode="bilinear", align_corners=False)
        total = hidden
    assert total is not None
    assert head.pred.bias is not None
    return torch.einsum("chw,oc->ohw", total[0], head.pred.weight[:, :, 0, 0])[0] + head.pred.bias


def test_all_groups_in_one_batch_equal_one_forward_a_group() -> None:
    head, features, attention = make_head(), make_levels(3), make_attention(6)
    images = torch.tensor([0, 0, 1, 2, 2, 2])
    logits = head(features, attention, images, budget_mb=1000)
    assert logits.shape == (6, *SIZES[0])
    assert logits.dtype == torch.float32
    for group, image in enumerate(images.tolist()):
        expected = one_group(head, features, [level[group] for level in attention], image)
        torch.testing.assert_close(logits[group], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("groups_at_once", [1, 2, 5])
def test_parts_of_a_batch_give_its_logits_and_gradients(groups_at_once: int) -> None:
    head, images = make_head(), torch.tensor([0, 0, 1, 2, 2, 2])
    # Feature, convolution and sum, each twice for the gradient.
    channels = CHANNELS + 2 * head.pred.in_channels
    group_mb = 2 * sum(height * width for height, width in SIZES) * channels * 4 / 2**20
    calls: list[int] = []
    segment = head._segment

    def count(group_images: Tensor, *levels: Tensor) -> Tensor:
        calls.append(len(group_images))
        return segment(group_images, *levels)

    head._segment = count  # type: ignore[method-assign]
    found = []
    for budget_mb in (1000, groups_at_once * group_mb * 1.01):
        features = [level.requires_grad_() for level in make_levels(3)]
        attention = [level.requires_grad_() for level in make_attention(6)]
        logits = head(features, attention, images, budget_mb=budget_mb)
        leaves = [*head.parameters(), *features, *attention]
        found.append((logits, *torch.autograd.grad((logits * logits).sum(), leaves)))
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(parts, whole, atol=1e-4, rtol=1e-4)
    # All at once; then in parts, each of which is computed again for the gradient.
    assert calls[0] == 6
    assert max(calls[1:]) == groups_at_once
    assert sum(calls[1:]) == 2 * 6
    with torch.no_grad():
        calls.clear()
        head(make_levels(3), make_attention(6), images, budget_mb=groups_at_once * group_mb * 1.01)
    # Without a gradient twice as many fit.
    assert max(calls) == min(2 * groups_at_once, 6)


def kept_values(budget_mb: float) -> int:
    """How many numbers 40 groups hold for the gradient; what several of them hold counts once."""
    head, features, kept = make_head(), make_levels(1), {}

    def count(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        head(features, make_attention(40), torch.zeros(40, dtype=torch.int64), budget_mb)
    return sum(tensor.numel() for tensor in kept.values())


def test_parts_are_not_kept_for_the_gradient() -> None:
    assert kept_values(budget_mb=1e-6) < kept_values(budget_mb=1000) / 10


def test_no_group_gives_no_map_and_gradients_of_zero() -> None:
    head, features = make_head(), [level.requires_grad_() for level in make_levels(2)]
    logits = head(features, make_attention(0), torch.zeros(0, dtype=torch.int64), budget_mb=1)
    assert logits.shape == (0, *SIZES[0])
    logits.sum().backward()
    for leaf in (*head.parameters(), *features):
        assert leaf.grad is not None
        assert not leaf.grad.any()


def test_logits_are_fp32_under_autocast() -> None:
    head = make_head()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = head(make_levels(1), make_attention(2), torch.zeros(2, dtype=torch.int64), budget_mb=100)
    assert logits.dtype == torch.float32


def test_shrink_averages_cells() -> None:
    attention = torch.randn(2, 1, 8, 12)
    levels = shrink(attention, 3)
    assert [tuple(level.shape) for level in levels] == [(2, 1, 8, 12), (2, 1, 4, 6), (2, 1, 2, 3)]
    half = functional.interpolate(attention, scale_factor=0.5, mode="bilinear", align_corners=False)
    torch.testing.assert_close(levels[1], half)
    assert levels[2][1, 0, 1, 2] == pytest.approx(attention[1, 0, 4:8, 8:12].mean().item(), abs=1e-6)


def test_context_head_gives_a_map_of_each_class() -> None:
    torch.manual_seed(0)
    head = ContextHead(channels=CHANNELS, hidden=32, num_levels=3, num_classes=4)
    logits = head(make_levels(2))
    assert logits.shape == (2, 4, *SIZES[0])
    assert logits.dtype == torch.float32
    logits.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in head.parameters())
