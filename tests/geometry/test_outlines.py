"""Sides and boundary pixels of masks against dense oracles."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from segzoo.geometry.outlines import Sides, boundary_pixels, open_sides, outlines
from segzoo.geometry.runs import find_runs, paint_runs


def noise(seed: int, size: tuple[int, int] = (23, 30)) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random((5, *size)) < np.linspace(0.1, 0.95, 5)[:, None, None])


def unit_sides(sides: Sides) -> list[tuple[int, int, int]]:
    """(mask, level, position) of every pixel-long piece."""
    rows = zip(*(column.tolist() for column in sides), strict=True)
    return sorted((m, level, at) for m, level, start, end in rows for at in range(start, end))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_outlines_are_the_sides_between_set_and_clear_pixels(seed: int) -> None:
    masks = noise(seed)
    found = outlines(find_runs(masks))
    padded = torch.nn.functional.pad(masks, (1, 1, 1, 1))
    middle = padded[:, 1:-1, 1:-1]
    for sides, neighbour, shift, axis in (
        (found.left, padded[:, 1:-1, :-2], 0, "x"),
        (found.right, padded[:, 1:-1, 2:], 1, "x"),
        (found.top, padded[:, :-2, 1:-1], 0, "y"),
        (found.bottom, padded[:, 2:, 1:-1], 1, "y"),
    ):
        open_pixels = (middle & ~neighbour).nonzero().tolist()
        expected = [(m, (x if axis == "x" else y) + shift, y if axis == "x" else x) for m, y, x in open_pixels]
        assert unit_sides(sides) == sorted(expected)
        order = list(zip(sides.mask.tolist(), sides.level.tolist(), sides.start.tolist(), strict=True))
        assert order == sorted(order)
        # Maximal: no side begins where another one of its line ends.
        ends = set(zip(sides.mask.tolist(), sides.level.tolist(), sides.end.tolist(), strict=True))
        assert not ends & set(order)


def test_outlines_of_one_pixel_are_its_four_sides() -> None:
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, 1, 2] = True
    sides = [tuple(int(column) for column in side) for side in outlines(find_runs(mask))]
    assert sides == [(0, 2, 1, 2), (0, 3, 1, 2), (0, 1, 2, 3), (0, 2, 2, 3)]


def test_open_sides_are_the_pixels_without_one_above_or_below() -> None:
    masks = noise(3)
    above, below = (paint_runs(side, tuple(masks.shape)) for side in open_sides(find_runs(masks)))
    padded = torch.nn.functional.pad(masks, (0, 0, 1, 1))
    assert torch.equal(above, masks & ~padded[:, :-2])
    assert torch.equal(below, masks & ~padded[:, 2:])


def test_boundary_pixels_are_those_with_an_outer_neighbour() -> None:
    masks = noise(4, (30, 37))
    masks[0] = True
    masks[1] = False
    pixels = boundary_pixels(find_runs(masks))
    padded = torch.nn.functional.pad(masks, (1, 1, 1, 1))
    neighbours = [padded[:, 1 + dy : 31 + dy, 1 + dx : 38 + dx] for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0))]
    expected = (masks & ~torch.stack(neighbours).all(dim=0)).nonzero()
    assert torch.equal(torch.cat((pixels.mask[:, None], pixels.x_y.flip(1)), dim=1), expected)


def test_boundary_pixels_of_no_mask_are_none() -> None:
    pixels = boundary_pixels(find_runs(torch.zeros(2, 5, 5, dtype=torch.bool)))
    assert len(pixels.mask) == 0
    assert pixels.x_y.shape == (0, 2)
