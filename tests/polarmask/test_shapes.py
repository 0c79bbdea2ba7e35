"""The shapes of masks made one after the other, and all at once, against each other and against OpenCV."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from polarmask.shapes import run_shapes, window_shapes
from segzoo.geometry.outlines import Sides


def random_masks(seed: int, count: int, size: tuple[int, int]) -> torch.Tensor:
    """Smoothed noise: many parts, holes, islands in holes, contacts at corners, equally large parts, empty masks."""
    rng = np.random.default_rng(seed)
    noise = [cv2.GaussianBlur(rng.random(size), (0, 0), float(rng.choice([0.3, 0.8, 1.5, 3.0]))) for _ in range(count)]
    masks = np.stack([plane > np.quantile(plane, rng.uniform(0.2, 0.999)) for plane in noise])
    masks[1] = False
    return torch.from_numpy(masks)


def rows(sides: Sides) -> list[tuple[int, ...]]:
    return sorted(zip(*(column.tolist() for column in sides), strict=True))


@pytest.mark.parametrize("parts", ["largest", "all"])
@pytest.mark.parametrize("size", [(23, 31), (40, 64), (57, 24)])
def test_shapes_one_by_one_equal_those_made_at_once(size: tuple[int, int], parts: str) -> None:
    for seed in range(12):
        masks = random_masks(seed, 9, size)
        # A view whose rows are no whole words of memory, and one of several images.
        for batch in ([masks], [masks[:4], masks[4:4], masks[4:]], [masks[:, :, 1:]], [masks.transpose(1, 2)]):
            ours, at_once = window_shapes(batch, parts), run_shapes(batch, parts)
            assert torch.equal(ours.centers_px, at_once.centers_px)
            assert rows(ours.sides) == rows(at_once.sides)
            # In the order that rays need.
            for column in (0, 1, 2):
                assert torch.equal(ours.sides[column], at_once.sides[column])


def test_shapes_of_no_mask_are_none() -> None:
    for masks in ([torch.zeros(0, 5, 6, dtype=torch.bool)], [torch.zeros(2, 5, 6, dtype=torch.bool)]):
        for shapes in (window_shapes(masks, "largest"), run_shapes(masks, "largest")):
            assert shapes.centers_px.tolist() == [[0, 0]] * len(masks[0])
            assert len(shapes.sides.mask) == 0


@pytest.mark.parametrize("find", [window_shapes, run_shapes])
def test_shapes_of_a_ring_beside_a_speck_are_those_of_the_filled_ring(find) -> None:
    mask = torch.zeros(1, 20, 30, dtype=torch.bool)
    mask[0, 2:10, 3:13] = True
    mask[0, 4:8, 5:11] = False
    mask[0, 15:17, 20:29] = True
    shapes = find([mask], "largest")
    assert shapes.centers_px.tolist() == [[8.0, 6.0]]
    assert rows(shapes.sides) == [(0, 0, 3, 2, 10), (1, 0, 13, 2, 10), (2, 0, 2, 3, 13), (3, 0, 10, 3, 13)]


@pytest.mark.parametrize("find", [window_shapes, run_shapes])
def test_shapes_of_equally_large_parts_are_those_of_the_first(find) -> None:
    mask = torch.zeros(1, 20, 30, dtype=torch.bool)
    mask[0, 12:15, 2:6] = mask[0, 3:6, 20:24] = True
    assert find([mask], "largest").centers_px.tolist() == [[22.0, 4.5]]
