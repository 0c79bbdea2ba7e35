"""Outlines of many masks at once: the sides of their pixels' squares, and their boundary pixels.

Shape shorthand: M masks, T runs, S sides or pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from segzoo.geometry.runs import Runs, expand, touching_runs


class Sides(NamedTuple):
    """Maximal straight pieces of outlines that face one way, ordered by mask, then by `level`; all (S,) int64.

    mask: index of the mask. level: the x of a vertical side, the y of a horizontal one. start, end: where it begins
    and ends along the other axis.
    """

    mask: Tensor
    level: Tensor
    start: Tensor
    end: Tensor


class Outlines(NamedTuple):
    """The sides of masks' pixels' squares, by the direction from the mask to its outside."""

    left: Sides
    right: Sides
    top: Sides
    bottom: Sides


class Pixels(NamedTuple):
    """Single pixels of masks, ordered by mask, row, column.

    mask: (S,) int64. x_y: (S, 2) int64 column and row.
    """

    mask: Tensor
    x_y: Tensor


def outlines(runs: Runs) -> Outlines:
    """The outlines of masks, given as runs."""
    above, below = open_sides(runs)
    return Outlines(
        left=_vertical_sides(runs, runs.x0),
        right=_vertical_sides(runs, runs.x1),
        top=Sides(above.mask, above.row, above.x0, above.x1),
        bottom=Sides(below.mask, below.row + 1, below.x0, below.x1),
    )


def _vertical_sides(runs: Runs, x: Tensor) -> Sides:
    """Ends at one x in rows that follow each other, joined."""
    if len(x) == 0:
        return Sides(x, x, x, x)
    # One row more than there are keeps the last row of a column apart from the first one of the next.
    width, height = x.amax() + 1, runs.row.amax() + 2
    keys = ((runs.mask * width + x) * height + runs.row).sort().values
    breaks = (keys[1:] != keys[:-1] + 1).nonzero().squeeze(1)
    starts = keys.index_select(0, torch.cat((breaks.new_zeros(1), breaks + 1)))
    ends = keys.index_select(0, torch.cat((breaks, breaks.new_full((1,), len(keys) - 1))))
    column = starts // height
    return Sides(column // width, column % width, starts % height, ends % height + 1)


def open_sides(runs: Runs) -> tuple[Runs, Runs]:
    """The parts of runs without a pixel of the same mask above them, and those without one below, each in order."""
    contacts = touching_runs(runs, diagonal=False)
    num_above = torch.zeros_like(runs.row).index_add_(0, contacts.lower, torch.ones_like(contacts.lower))
    return _uncovered(runs, num_above, contacts.upper), _uncovered(runs, contacts.num_below, contacts.lower)


def _uncovered(runs: Runs, num_covers: Tensor, covers: Tensor) -> Runs:
    """The pieces of runs between those that cover them, (T,) many each, whose (Q,) indices follow each other."""
    if len(covers) == 0:
        return runs
    # A run with k covers has k + 1 pieces: the first one from its start, each other from the end of a cover.
    owner, position = expand(num_covers + 1)
    own, covering = runs.select(owner), runs.select(covers)
    next_cover = torch.arange(len(owner), device=owner.device) - owner
    end_of_previous = covering.x1.index_select(0, (next_cover - 1).clamp(min=0))
    start_of_next = covering.x0.index_select(0, next_cover.clamp(max=len(covers) - 1))
    x0 = torch.where(position == 0, own.x0, end_of_previous)
    x1 = torch.where(position == num_covers.index_select(0, owner), own.x1, start_of_next)
    return Runs(own.mask, own.row, x0, x1).select(x0 < x1)


def boundary_pixels(runs: Runs) -> Pixels:
    """The pixels of masks that have one of their four neighbours outside of the mask.

    On masks without holes these are the points of cv2.findContours with CHAIN_APPROX_NONE, each of them once.
    """
    if len(runs.row) == 0:
        return Pixels(runs.mask, torch.stack((runs.x0, runs.row), dim=1))
    height, width = runs.row.amax() + 1, runs.x1.amax()
    keys = []
    for side in open_sides(runs):
        owner, position = expand(side.x1 - side.x0)
        keys.append(((side.mask * height + side.row) * width + side.x0).index_select(0, owner) + position)
    line = runs.mask * height + runs.row
    pixels = torch.cat((*keys, line * width + runs.x0, line * width + runs.x1 - 1)).unique()
    row = pixels // width
    return Pixels(row // height, torch.stack((pixels % width, row % height), dim=1))
