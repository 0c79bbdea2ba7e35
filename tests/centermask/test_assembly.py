"""Shape times saliency against slow readable oracles: which cells, which values, which loss, which masks."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from centermask.assembly import (
    assemble_masks,
    mask_loss,
    product_log_probs,
    saliency_loss,
    sample_shapes,
)
from segzoo.evaluation.timing import peak_memory_mb
from segzoo.geometry import tiles
from segzoo.geometry.box_cells import box_pixels
from segzoo.geometry.rle import encode_masks
from tests.centermask.objects import choose, random_boxes

SIZE = (12, 17)


def pixels_of(box: list[float], size: tuple[int, int]) -> list[tuple[int, int]]:
    """Oracle of `box_pixels` for one box: (y, x), axis by axis."""
    axes = []
    for low, high, count in ((box[1], box[3], size[0]), (box[0], box[2], size[1])):
        inside = [cell for cell in range(count) if low <= cell + 0.5 < high]
        nearest = min(max(math.floor((low + high) / 2), 0), count - 1)
        axes.append(inside or [nearest])
    return [(y, x) for y in axes[0] for x in axes[1]]


def bilinear(table: np.ndarray, row: float, column: float) -> float:
    """Oracle of the interpolation: cell i has its centre at i + 0.5; beyond the outermost centres nothing changes."""
    total = 0.0
    row, column = (min(max(v - 0.5, 0.0), n - 1.0) for v, n in zip((row, column), table.shape, strict=True))
    for y, x in np.ndindex(*table.shape):
        total += table[y, x] * max(0.0, 1 - abs(y - row)) * max(0.0, 1 - abs(x - column))
    return total


def shape_at(shape: Tensor, box: list[float], y: float, x: float) -> float:
    """Oracle: the shape's logit at a point in the units of the box."""
    side = len(shape)
    row = (y - box[1]) / (box[3] - box[1]) * side
    column = (x - box[0]) / (box[2] - box[0]) * side
    return bilinear(shape.double().numpy(), row, column)


def test_box_pixels_equal_the_slow_oracle() -> None:
    boxes = torch.cat((random_boxes(200, SIZE), torch.tensor([[2.5, 3.5, 4.5, 5.5], [4, 4, 4, 4], [-9, -9, -5, -5]])))
    owner, y, x = box_pixels(boxes, SIZE)
    expected = [(number, *cell) for number, box in enumerate(boxes.tolist()) for cell in pixels_of(box, SIZE)]
    assert list(zip(owner.tolist(), y.tolist(), x.tolist(), strict=True)) == expected
    assert len(box_pixels(boxes[:0], SIZE)[0]) == 0


def test_box_pixels_of_whole_cells_are_those_cells() -> None:
    _, y, x = box_pixels(torch.tensor([[2.0, 3.0, 5.0, 5.0]]), SIZE)
    assert sorted({*zip(y.tolist(), x.tolist())}) == [(row, column) for row in (3, 4) for column in (2, 3, 4)]


def test_sampled_shapes_equal_the_slow_oracle() -> None:
    boxes, shapes = random_boxes(20, SIZE, seed=1), torch.randn(20, 5, 5)
    owner, y, x = box_pixels(boxes, SIZE)
    found = sample_shapes(shapes, boxes, owner, y, x)
    for value, number, row, column in zip(found.tolist(), owner.tolist(), y.tolist(), x.tolist(), strict=True):
        expected = shape_at(shapes[number], boxes[number].tolist(), row + 0.5, column + 0.5)
        assert value == pytest.approx(expected, abs=2e-4)


def test_a_shape_in_a_box_of_whole_cells_is_resized_as_interpolate_does() -> None:
    box, shape = torch.tensor([[2.0, 3.0, 13.0, 10.0]]), torch.randn(1, 6, 6)
    found = sample_shapes(shape, box, *box_pixels(box, SIZE)).view(7, 11)
    expected = functional.interpolate(shape[None], size=(7, 11), mode="bilinear", align_corners=False)[0, 0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


LOGITS = [-1e4, -700.0, -90.0, -17.0, -1.5, 0.0, 1e-3, 2.0, 17.0, 90.0, 700.0, 1e4]


def exact_logs(shape: float, saliency: float) -> tuple[float, float]:
    """Oracle of the product's logarithms in 60 digits: with a, b = exp(-logit) M is 1 / ((1 + a) (1 + b))."""
    with localcontext() as context:
        context.prec, context.Emin, context.Emax = 60, -(10**6), 10**6
        a, b = ((-Decimal(logit)).exp() for logit in (shape, saliency))
        whole = (1 + a) * (1 + b)
        return float((1 / whole).ln()), float(((a + b + a * b) / whole).ln())


@pytest.mark.parametrize("shape", LOGITS)
def test_product_log_probs_equal_exact_arithmetic_at_extreme_logits(shape: float) -> None:
    found = product_log_probs(torch.full((len(LOGITS),), shape), torch.tensor(LOGITS))
    expected = [exact_logs(shape, saliency) for saliency in LOGITS]
    for values, column in zip(found, zip(*expected, strict=True), strict=True):
        np.testing.assert_allclose(values.numpy(), column, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_product_log_probs_and_gradients_are_finite_for_logits_of_ten_thousand(dtype: torch.dtype) -> None:
    grid = torch.tensor(LOGITS).to(dtype)
    shape, saliency = (part.flatten().requires_grad_() for part in torch.meshgrid(grid, grid, indexing="ij"))
    log_mask, log_rest = product_log_probs(shape, saliency)
    assert log_mask.dtype == log_rest.dtype == torch.float32
    (log_mask + log_rest).sum().backward()
    for value in (log_mask, log_rest, shape.grad, saliency.grad):
        assert value is not None
        assert torch.isfinite(value).all()
    # Where one factor is sure to be 0 the other still cannot raise the loss of the background.
    assert (log_rest[shape == -1e4] == 0).all()


def test_product_without_a_map_is_the_sigmoid_of_the_other() -> None:
    logits = torch.tensor(LOGITS)
    for found in (product_log_probs(logits, None), product_log_probs(None, logits)):
        torch.testing.assert_close(found[0].exp(), logits.sigmoid())
        torch.testing.assert_close(found[1].exp(), (-logits).sigmoid())
    with pytest.raises(ValueError, match="neither"):
        product_log_probs(None, None)


def slow_loss(
    shapes: Tensor | None, saliency: Tensor | None, images: Tensor, channels: Tensor, boxes: Tensor, masks: Tensor
) -> Tensor:
    """Oracle of `mask_loss` from probabilities, cell by cell."""
    losses = []
    for number, box in enumerate(boxes.tolist()):
        terms = []
        for y, x in pixels_of(box, (masks.shape[1], masks.shape[2])):
            product: Tensor | float = 1.0
            if shapes is not None:
                side = shapes.shape[-1]
                row = min(max((y + 0.5 - box[1]) / (box[3] - box[1]) * side - 0.5, 0), side - 1)
                column = min(max((x + 0.5 - box[0]) / (box[2] - box[0]) * side - 0.5, 0), side - 1)
                rows = (1 - (torch.arange(side) - row).abs()).clamp(min=0).to(shapes.dtype)
                columns = (1 - (torch.arange(side) - column).abs()).clamp(min=0).to(shapes.dtype)
                product = product * (rows @ shapes[number] @ columns).sigmoid()
            if saliency is not None:
                product = product * saliency[images[number], channels[number], y, x].sigmoid()
            assert isinstance(product, Tensor)
            target = masks[number, y, x]
            terms.append(-(target * product.log() + (1 - target) * (1 - product).log()))
        losses.append(torch.stack(terms).mean())
    return torch.stack(losses)


def loss_inputs(count: int = 9, num_channels: int = 3) -> tuple[Tensor, ...]:
    shapes, saliency = torch.randn(count, 4, 4), torch.randn(2, num_channels, *SIZE)
    masks = (torch.rand(count, *SIZE) * 16).round() / 16
    return shapes, saliency, choose([0, 1], count), choose(range(num_channels), count), random_boxes(count, SIZE), masks


@pytest.mark.parametrize("kind", ["both", "shapes", "saliency"])
@pytest.mark.parametrize("max_pairs", [10**6, 40])
def test_mask_loss_and_gradients_equal_the_slow_oracle(kind: str, max_pairs: int) -> None:
    """With few pairs at once the blocks are computed again for the gradient: nothing may change."""
    shapes, saliency, images, channels, boxes, masks = loss_inputs()
    weights = torch.rand(len(shapes))
    results = []
    ways = ((partial(mask_loss, max_pairs=max_pairs), torch.float32), (slow_loss, torch.float64))
    for function, dtype in ways:
        leaves = [value.detach().to(dtype).clone().requires_grad_() for value in (shapes, saliency)]
        given = [leaf if kind in (name, "both") else None for leaf, name in zip(leaves, ("shapes", "saliency"))]
        losses = function(given[0], given[1], images, channels, boxes, masks)
        (losses * weights.to(dtype)).sum().backward()
        results.append([losses, *(leaf.grad for leaf, own in zip(leaves, given) if own is not None)])
    for ours, exact in zip(*results, strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-5)


def test_mask_loss_of_objects_that_share_a_mask_equals_that_of_copies() -> None:
    shapes, saliency, images, channels, boxes, masks = loss_inputs()
    owners = choose(range(3), len(boxes))
    found = mask_loss(shapes, saliency, images, channels, boxes, masks[:3], owners)
    torch.testing.assert_close(found, mask_loss(shapes, saliency, images, channels, boxes, masks[owners]))


def test_mask_loss_without_objects_gives_every_map_a_gradient() -> None:
    shapes, saliency, *rest = (value[:0] if name else value for name, value in zip((1, 0, 1, 1, 1, 1), loss_inputs()))
    leaves = [shapes.requires_grad_(), saliency.requires_grad_()]
    losses = mask_loss(*leaves, *rest)
    assert losses.shape == (0,)
    losses.sum().backward()
    assert all(leaf.grad is not None and not leaf.grad.any() for leaf in leaves)


def test_mask_loss_memory_is_bounded_whatever_the_objects() -> None:
    count, size = 40, (128, 128)
    saliency, shapes = torch.randn(1, 1, *size, requires_grad=True), torch.randn(count, 32, 32, requires_grad=True)
    zeros, boxes = torch.zeros(count).long(), torch.tensor([[0.0, 0, 128, 128]]).repeat(count, 1)
    masks = torch.rand(count, *size)

    def step(max_pairs: int) -> None:
        mask_loss(shapes, saliency, zeros, zeros, boxes, masks, max_pairs=max_pairs).sum().backward()

    at_once, bounded = peak_memory_mb(lambda: step(10**9)), peak_memory_mb(lambda: step(65_536))
    assert bounded < at_once / 5


def test_saliency_loss_is_the_sum_of_cross_entropies() -> None:
    saliency, unions = torch.randn(2, 3, 4, 5), torch.rand(2, 3, 4, 5)
    probability = saliency.double().sigmoid()
    expected = -(unions * probability.log() + (1 - unions) * (1 - probability).log()).sum()
    assert float(saliency_loss(saliency, unions)) == pytest.approx(float(expected), rel=1e-5)


def random_detections(count: int, input_size: tuple[int, int], side: int = 6) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    saliency = torch.randn(3, -(-input_size[0] // 32) * 8, -(-input_size[1] // 32) * 8) * 3
    return torch.randn(count, side, side) * 3, saliency, random_boxes(count, input_size), choose(range(3), count)


@pytest.mark.parametrize("kind", ["both", "shapes", "saliency"])
@pytest.mark.parametrize("output_size", [(40, 60), (31, 90), (25, 33)])
def test_masks_at_output_size_equal_the_slow_oracle(kind: str, output_size: tuple[int, int]) -> None:
    input_size = (40, 60)
    shapes, saliency, boxes, channels = random_detections(10, input_size)
    found = assemble_masks(
        *(None if kind == "saliency" else shapes, None if kind == "shapes" else saliency, boxes, channels),
        input_size=input_size,
        output_size=output_size,
        threshold=0.4,
        budget_mb=1.0,
    ).to_tensor()
    scale = np.array(input_size) / np.array(output_size)
    outputs = boxes / torch.tensor([scale[1], scale[0], scale[1], scale[0]])
    total = 0
    for number, box in enumerate(outputs.tolist()):
        inside = set(pixels_of(box, output_size))
        assert {*map(tuple, found[number].nonzero().tolist())} <= inside
        for y, x in inside:
            product = 1.0
            if kind != "saliency":
                product /= 1 + math.exp(-shape_at(shapes[number], box, y + 0.5, x + 0.5))
            if kind != "shapes":
                row, column = (y + 0.5) * scale[0], (x + 0.5) * scale[1]
                logit = bilinear(saliency[channels[number]].double().numpy(), row / 4, column / 4)
                product /= 1 + math.exp(-logit)
            if abs(product - 0.4) > 1e-4:
                assert found[number, y, x] == (product > 0.4), (number, y, x)
                total += product > 0.4
    assert total > 20


def test_masks_at_the_size_of_the_map_are_those_that_training_sees() -> None:
    """One convention: an output as coarse as the map has its pixels where the loss compares."""
    shapes, saliency, boxes, channels = random_detections(30, (64, 96))
    found = assemble_masks(
        *(shapes, saliency, boxes, channels), input_size=(64, 96), output_size=(16, 24), threshold=0.4, budget_mb=1.0
    ).to_tensor()
    owner, y, x = box_pixels(boxes / 4, (16, 24))
    shape_logits = sample_shapes(shapes, boxes / 4, owner, y, x)
    probability = product_log_probs(shape_logits, saliency[channels[owner], y, x])[0].exp()
    expected = torch.zeros(30, 16, 24, dtype=torch.bool)
    expected[owner, y, x] = probability >= 0.4
    is_clear = torch.ones_like(expected)
    is_clear[owner, y, x] = (probability - 0.4).abs() > 1e-5
    assert torch.equal(found & is_clear, expected & is_clear)
    assert found.any()


def stack_tiles(monkeypatch: pytest.MonkeyPatch, is_stacked: bool) -> None:
    """Stacks are what a GPU works on."""
    cut_tiles = tiles.cut_tiles
    monkeypatch.setattr(tiles, "cut_tiles", lambda *given, **_: cut_tiles(*given, is_stacked=is_stacked))


@pytest.mark.parametrize("budget_mb", [0.0, 0.02, 0.3, 64.0])
@pytest.mark.parametrize("is_stacked", [False, True])
def test_masks_do_not_depend_on_budget_or_stacks_and_are_pycocotools_own(
    budget_mb: float, is_stacked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = random_detections(25, (64, 96))
    sizes: dict[str, Any] = {"input_size": (64, 96), "output_size": (120, 150), "threshold": 0.4}
    whole = assemble_masks(*inputs, **sizes, budget_mb=64.0)
    stack_tiles(monkeypatch, is_stacked)
    assert assemble_masks(*inputs, **sizes, budget_mb=budget_mb).rles == whole.rles
    assert encode_masks(whole.to_tensor()) == whole.rles
    assert whole.to_tensor().any(dim=2).any(dim=1).sum() > 10


def test_masks_without_detections_are_none() -> None:
    shapes, _, boxes, channels = (value[:0] for value in random_detections(1, (64, 96)))
    sizes: dict[str, Any] = {"input_size": (64, 96), "output_size": (50, 60), "threshold": 0.4, "budget_mb": 1.0}
    masks = assemble_masks(shapes, torch.randn(3, 16, 24), boxes, channels, **sizes)
    assert masks.to_tensor().shape == (0, 50, 60)
    with pytest.raises(ValueError, match="neither"):
        assemble_masks(None, None, boxes, channels, **sizes)


def test_case_48_maps_that_are_not_finite_belong_to_no_mask() -> None:
    shapes, saliency, boxes, channels = random_detections(8, (64, 96))
    sizes: dict[str, Any] = {"input_size": (64, 96), "output_size": (64, 96), "threshold": 0.4, "budget_mb": 1.0}
    assert not assemble_masks(shapes * float("nan"), saliency, boxes, channels, **sizes).to_tensor().any()
    assert not assemble_masks(shapes, saliency * float("nan"), boxes, channels, **sizes).to_tensor().any()


@pytest.mark.parametrize("count", [3, pytest.param(100, marks=pytest.mark.slow)])
def test_case_49_masks_of_a_12_megapixel_image_stay_within_the_budget(count: int) -> None:
    shapes, saliency = torch.randn(count, 32, 32), torch.randn(1, 128, 128)
    boxes, channels = torch.tensor([[10.0, 20, 480, 500]]).repeat(count, 1), torch.zeros(count).long()
    sizes: dict[str, Any] = {"input_size": (512, 512), "output_size": (3000, 4000), "threshold": 0.4}
    peak = peak_memory_mb(lambda: assemble_masks(shapes, saliency, boxes, channels, **sizes, budget_mb=16.0))
    # Beside the budget the ends of the runs.
    assert peak < 24 + count * 0.8


@pytest.mark.parametrize("is_stacked", [False, True])
def test_case_49_small_objects_on_large_maps_stay_within_the_budget(
    is_stacked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each tile of a stack holds a map of its own, which may be much larger than its pixels."""
    stack_tiles(monkeypatch, is_stacked)
    size, count = (1000, 1000), 24
    shapes, saliency = torch.randn(count, 8, 8), torch.randn(1, 250, 250)
    corners = torch.rand(count, 2) * 900
    boxes = torch.cat((corners, corners + 40), dim=1)
    # As wide as the image, but low: few pixels, and all rows of the map in between.
    boxes[::8] = torch.tensor([0.0, 700, 1000, 703])
    sizes: dict[str, Any] = {"input_size": size, "output_size": size, "threshold": 0.4}
    channels = torch.zeros(count).long()
    peak = peak_memory_mb(lambda: assemble_masks(shapes, saliency, boxes, channels, **sizes, budget_mb=6.0))
    assert peak < 6
