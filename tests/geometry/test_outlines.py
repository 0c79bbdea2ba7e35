"""Sides and boundary pixels of masks against dense oracles."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from segzoo.geometry.outlines import BOTTOM, LEFT, RIGHT, TOP, Sides, boundary_pixels, outlines
from segzoo.geometry.runs import find_runs, touching_runs


def noise(seed: int, size: tuple[int, int] = (23, 30)) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random((5, *size)) < np.linspace(0.1, 0.95, 5)[:, None, None])


def unit_sides(sides: Sides) -> list[tuple[int, int, int]]:
    """(mask, level, position) of every pixel-long piece."""
    rows = zip(*(column.tolist() for column in sides[1:]), strict=True)
    return sorted((m, level, at) for m, level, start, end in rows for at in range(start, end))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_outlines_are_the_sides_between_set_and_clear_pixels(seed: int) -> None:
    masks = noise(seed)
    runs = find_runs(masks)
    found = outlines(runs)
    # Contacts at corners, which a caller may know already, change nothing.
    for column, expected in zip(outlines(runs, touching_runs(runs, diagonal=True)), found, strict=True):
        assert torch.equal(column, expected)
    assert torch.equal(found.facing, found.facing.sort().values)
    padded = torch.nn.functional.pad(masks, (1, 1, 1, 1))
    middle = padded[:, 1:-1, 1:-1]
    for facing, neighbour, shift, axis in (
        (LEFT, padded[:, 1:-1, :-2], 0, "x"),
        (RIGHT, padded[:, 1:-1, 2:], 1, "x"),
        (TOP, padded[:, :-2, 1:-1], 0, "y"),
        (BOTTOM, padded[:, 2:, 1:-1], 1, "y"),
    ):
        sides = Sides(*(column[found.facing == facing] for column in found))
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
    sides = list(zip(*(column.tolist() for column in outlines(find_runs(mask))), strict=True))
    assert sides == [(LEFT, 0, 2, 1, 2), (RIGHT, 0, 3, 1, 2), (TOP, 0, 1, 2, 3), (BOTTOM, 0, 2, 2, 3)]


def test_boundary_pixels_are_those_with_an_outer_neighbour() -> None:
    masks = noise(4, (30, 37))
    masks[0] = True
    masks[1] = False
    padded = torch.nn.functional.pad(masks, (1, 1, 1, 1))
    neighbours = [padded[:, 1 + dy : 31 + dy, 1 + dx : 38 + dx] for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0))]
    expected = (masks & ~torch.stack(neighbours).all(dim=0)).nonzero()
    runs = find_runs(masks)
    for contacts in (None, touching_runs(runs, diagonal=True)):
        pixels = boundary_pixels(runs, len(masks), contacts)
        found = torch.cat((pixels.mask[:, None], pixels.x_y.flip(1)), dim=1)
        assert torch.equal(found.unique(dim=0), expected)
        # Two lists, one after the other, in which every mask has its range.
        num_pixels = pixels.num_pixels.flatten()
        assert torch.equal(pixels.mask, torch.arange(len(masks)).repeat(2).repeat_interleave(num_pixels))
        assert torch.equal(pixels.first.flatten(), num_pixels.cumsum(0) - num_pixels)


def test_boundary_pixels_of_a_blob_come_once() -> None:
    y, x = torch.meshgrid(torch.arange(40), torch.arange(50), indexing="ij")
    pixels = boundary_pixels(find_runs(((x - 25) ** 2 + (y - 20) ** 2 < 200)[None]), 1)
    assert len(pixels.x_y) == len(pixels.x_y.unique(dim=0))


def test_boundary_pixels_of_no_mask_are_none() -> None:
    for num_masks in (0, 2):
        pixels = boundary_pixels(find_runs(torch.zeros(num_masks, 5, 5, dtype=torch.bool)), num_masks)
        assert len(pixels.mask) == 0
        assert pixels.x_y.shape == (0, 2)
        assert pixels.num_pixels.shape == (2, num_masks)
