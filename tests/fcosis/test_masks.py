"""Masks at output size against a loop over pixels, and there and back again from soft masks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fcosis.masks import cut_masks
from segzoo.geometry.masks import mask_boxes
from segzoo.geometry.soft_masks import soft_masks
from tests.contract.toys import ellipse

MAP_SIZE = (12, 16)
# Of an image in a map that is larger, because of the padding.
INPUT_SIZE = (43, 60)


def interpolate(logits: np.ndarray, x: float, y: float) -> float:
    """Oracle: bilinear between the centres of cells, in cells; the border's value beyond them."""
    height, width = logits.shape
    down, across = min(max(y - 0.5, 0), height - 1), min(max(x - 0.5, 0), width - 1)
    total = 0.0
    for i in (math.floor(down), math.floor(down) + 1):
        for j in (math.floor(across), math.floor(across) + 1):
            share = max(0, 1 - abs(down - i)) * max(0, 1 - abs(across - j))
            total += share * logits[min(i, height - 1), min(j, width - 1)]
    return total


def probabilities_slowly(
    logits: np.ndarray, box: list[float], input_size: tuple[int, int], output_size: tuple[int, int]
) -> np.ndarray:
    """(height, width) of the output; -1 outside of the box, whose centre's pixel is the only one if it has no other."""
    found = np.full(output_size, -1.0)
    step_y, step_x = (inner / outer for inner, outer in zip(input_size, output_size, strict=True))
    left, top, right, bottom = box[0] / step_x, box[1] / step_y, box[2] / step_x, box[3] / step_y
    columns = [x for x in range(output_size[1]) if left <= x + 0.5 < right]
    rows = [y for y in range(output_size[0]) if top <= y + 0.5 < bottom]
    columns = columns or [min(math.floor((left + right) / 2), output_size[1] - 1)]
    rows = rows or [min(math.floor((top + bottom) / 2), output_size[0] - 1)]
    for y in rows:
        for x in columns:
            logit = interpolate(logits, (x + 0.5) * step_x / 4, (y + 0.5) * step_y / 4)
            found[y, x] = 1 / (1 + math.exp(-logit))
    return found


def random_detections() -> tuple[Tensor, Tensor, Tensor]:
    """Maps of several images, which of them, and boxes: inside, at the border, of one pixel and less, all of it."""
    generator = torch.Generator().manual_seed(0)
    boxes = [
        [3.2, 5.7, 40.1, 30.3],
        [0.0, 0.0, 60.0, 43.0],
        [20.0, 10.0, 60.0, 43.0],
        [17.0, 11.0, 18.0, 12.0],
        [17.1, 11.2, 17.3, 11.3],
        [59.9, 42.9, 60.0, 43.0],
        [3.2, 5.7, 40.1, 30.3],
    ]
    logits = torch.randn(3, *MAP_SIZE, generator=generator) * 3
    return logits, torch.tensor([0, 1, 2, 2, 0, 1, 1]), torch.tensor(boxes)


@pytest.mark.parametrize("threshold", [0.5, 0.2, 0.9])
@pytest.mark.parametrize("output_size", [INPUT_SIZE, (86, 120), (31, 77), (9, 11), (1, 1)], ids=str)
def test_masks_equal_the_slow_oracle(output_size: tuple[int, int], threshold: float) -> None:
    logits, channels, boxes = random_detections()
    sizes: dict[str, Any] = {"input_size": INPUT_SIZE, "output_size": output_size}
    masks = [
        np.asarray(cut_masks(logits, channels, boxes, **sizes, threshold=threshold, budget_mb=budget_mb))
        for budget_mb in (64, 0.01, 1e-6)
    ]
    assert masks[0].dtype == bool
    assert masks[0].shape == (len(boxes), *output_size)
    # In blocks of columns down to a single one.
    assert np.array_equal(masks[0], masks[1])
    assert np.array_equal(masks[0], masks[2])
    for found, channel, box in zip(masks[0], channels.tolist(), boxes.tolist(), strict=True):
        probabilities = probabilities_slowly(logits[channel].double().numpy(), box, INPUT_SIZE, output_size)
        # What lies at the threshold may fall to either side by rounding.
        is_clear = np.abs(probabilities - threshold) > 1e-5
        assert is_clear.mean() > 0.99
        assert np.array_equal(found[is_clear], (probabilities >= threshold)[is_clear])


def test_a_probability_of_the_threshold_belongs_to_the_mask() -> None:
    masks = cut_masks(
        *(torch.zeros(1, 4, 4), torch.tensor([0]), torch.tensor([[0.0, 0.0, 16.0, 16.0]])),
        input_size=(16, 16),
        output_size=(16, 16),
        threshold=0.5,
        budget_mb=1,
    )
    assert np.asarray(masks).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_masks_of_half_precision_are_those_of_their_values(dtype: torch.dtype) -> None:
    logits, channels, boxes = random_detections()
    sizes: dict[str, Any] = {"input_size": INPUT_SIZE, "output_size": (86, 120)}
    found, expected = (
        np.asarray(cut_masks(maps, channels, boxes, **sizes, threshold=0.5, budget_mb=64))
        for maps in (logits.to(dtype), logits.to(dtype).float())
    )
    assert np.array_equal(found, expected)


def test_no_detections_have_no_masks() -> None:
    masks = cut_masks(
        *(torch.zeros(0, *MAP_SIZE), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4)),
        input_size=INPUT_SIZE,
        output_size=(20, 30),
        threshold=0.5,
        budget_mb=1,
    )
    assert len(masks) == 0


@pytest.mark.parametrize("enlargement", [1, 2])
def test_masks_of_large_objects_come_back_from_their_soft_masks(enlargement: int) -> None:
    """Drawn at the output's size, shown to a network at that size or half of it, and cut out again."""
    input_size = (160, 200)
    size = (input_size[0] * enlargement, input_size[1] * enlargement)
    drawn = [((60, 70), (50, 40)), ((140, 60), (45, 55)), ((110, 120), (80, 30))]
    shapes = [
        np.stack([ellipse(at, (x * k, y * k), (a * k, b * k)) for (x, y), (a, b) in drawn])
        for at, k in ((size, enlargement), (input_size, 1))
    ]
    original, shown = (torch.from_numpy(shape) for shape in shapes)
    shares = soft_masks([shown], (input_size[0] // 4, input_size[1] // 4))
    logits = torch.logit(shares.clamp(1e-3, 1 - 1e-3))
    found = cut_masks(
        *(logits, torch.arange(3), mask_boxes(original) / enlargement),
        input_size=input_size,
        output_size=size,
        threshold=0.5,
        budget_mb=64,
    )
    for mask, truth in zip(np.asarray(found), original.numpy(), strict=True):
        assert (mask & truth).sum() / (mask | truth).sum() > 0.95
