"""Outlines of many masks at once: the sides of their pixels' squares, and their boundary pixels.

Shape shorthand: M masks, T runs, S sides or pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from segzoo.geometry.runs import Contacts, Runs, expand, touching_runs

# Where the outside lies, seen from a side: the values of `Sides.facing`.
LEFT, RIGHT, TOP, BOTTOM = range(4)


class Sides(NamedTuple):
    """Maximal straight pieces of outlines, ordered by facing, mask and level; all (S,) int64.

    facing: LEFT, RIGHT, TOP or BOTTOM. mask: index of the mask. level: the x of a vertical side, the y of a horizontal
    one. start, end: where it begins and ends along the other axis.
    """

    facing: Tensor
    mask: Tensor
    level: Tensor
    start: Tensor
    end: Tensor


class Pixels(NamedTuple):
    """Boundary pixels of masks in two lists, one after the other, each ordered by mask; a pixel may be in both.

    mask: (S,) int64. x_y: (S, 2) int64 column and row. first, num_pixels: (2, M) where a mask's pixels begin in
    either list, and their number.
    """

    mask: Tensor
    x_y: Tensor
    first: Tensor
    num_pixels: Tensor


class Pieces(NamedTuple):
    """Pieces of runs between the runs that touch them from above, then those between the ones from below.

    T runs with Q contacts have 2 (T + Q) pieces, in order; those between runs that only touch at a corner of theirs
    are empty (x0 >= x1).

    runs: the T runs, twice. owner: index of a piece's run there. run_x0, run_x1: where that run begins and ends.
    x0, x1: where the piece does.
    """

    runs: Runs
    owner: Tensor
    run_x0: Tensor
    run_x1: Tensor
    x0: Tensor
    x1: Tensor


def outlines(runs: Runs, contacts: Contacts | None = None) -> Sides:
    """The outlines of masks, given as runs.

    Args:
        runs: of the masks.
        contacts: `touching_runs` with or without corners, where they are known already.
    """
    vertical, horizontal = _vertical_sides(runs), _horizontal_sides(runs, contacts)
    return Sides(*(torch.cat(columns) for columns in zip(vertical, horizontal, strict=True)))


def _vertical_sides(runs: Runs) -> Sides:
    """Ends of runs at one x in rows that follow each other, joined."""
    num_runs = len(runs.row)
    if num_runs == 0:
        return Sides(runs.row, runs.mask, runs.x0, runs.row, runs.row)
    x, row = torch.cat((runs.x0, runs.x1)), torch.cat((runs.row, runs.row))
    # One row more than there are keeps the last row of a column apart from the first one of the next.
    width, height = runs.x1.amax() + 1, runs.row.amax() + 2
    line = runs.mask * width
    line = torch.cat((line, line + (runs.mask[-1] + 1) * width))
    keys, order = ((line + x) * height + row).sort()
    is_start = torch.ones_like(keys, dtype=torch.bool)
    torch.ne(keys[1:], keys[:-1] + 1, out=is_start[1:])
    start = is_start.nonzero().squeeze(1)
    end = torch.cat((start[1:], start.new_full((1,), len(keys)))) - 1
    place = order.index_select(0, start)
    return Sides(
        facing=torch.where(place < num_runs, LEFT, RIGHT),
        mask=torch.cat((runs.mask, runs.mask)).index_select(0, place),
        level=x.index_select(0, place),
        start=row.index_select(0, place),
        end=row.index_select(0, order.index_select(0, end)) + 1,
    )


def _horizontal_sides(runs: Runs, contacts: Contacts | None) -> Sides:
    """The pieces of runs without a pixel above or below them."""
    pieces = _pieces(runs, contacts)
    place = (pieces.x0 < pieces.x1).nonzero().squeeze(1)
    owner = pieces.owner.index_select(0, place)
    is_below = (owner >= len(runs.row)).long()
    return Sides(
        facing=is_below + TOP,
        mask=pieces.runs.mask.index_select(0, owner),
        level=pieces.runs.row.index_select(0, owner) + is_below,
        start=pieces.x0.index_select(0, place),
        end=pieces.x1.index_select(0, place),
    )


def _pieces(runs: Runs, contacts: Contacts | None) -> Pieces:
    if contacts is None:
        contacts = touching_runs(runs, diagonal=False)
    twice = Runs(*(torch.cat((column, column)) for column in runs))
    num_above = torch.zeros_like(runs.row).index_add_(0, contacts.lower, torch.ones_like(contacts.lower))
    num_covers = torch.cat((num_above, contacts.num_below))
    covers = torch.cat((contacts.upper, contacts.lower))
    # A run with k covers has k + 1 pieces: the first one from its start, each other from the end of a cover.
    owner, position = expand(num_covers + 1)
    run_x0, run_x1 = twice.x0.index_select(0, owner), twice.x1.index_select(0, owner)
    x0 = run_x0.masked_scatter(position != 0, runs.x1.index_select(0, covers))
    is_inner = position != num_covers.index_select(0, owner)
    x1 = run_x1.masked_scatter(is_inner, runs.x0.index_select(0, covers))
    return Pieces(twice, owner, run_x0, run_x1, x0, x1)


def boundary_pixels(runs: Runs, num_masks: int, contacts: Contacts | None = None) -> Pixels:
    """The pixels of masks that have one of their four neighbours outside of the mask.

    On masks without holes these are the points of cv2.findContours with CHAIN_APPROX_NONE.

    Args:
        runs: of the masks.
        num_masks: M.
        contacts: `touching_runs` with or without corners, where they are known already.
    """
    pieces = _pieces(runs, contacts)
    is_below = (pieces.owner >= len(runs.row)).long()
    # Both ends of a run belong to its pieces without a pixel above, and for that to none of those without one below.
    x0 = pieces.x0.clamp(pieces.run_x0 + is_below, pieces.run_x1 - 1)
    x1 = pieces.x1.clamp(pieces.run_x0 + 1, pieces.run_x1 - is_below)
    piece, position = expand((x1 - x0).clamp(min=0))
    owner = pieces.owner.index_select(0, piece)
    mask = pieces.runs.mask.index_select(0, owner)
    x_y = torch.stack((x0.index_select(0, piece) + position, pieces.runs.row.index_select(0, owner))).T
    keys = mask + is_below.index_select(0, piece) * num_masks
    bounds = torch.searchsorted(keys, torch.arange(2 * num_masks + 1, device=keys.device))
    return Pixels(mask, x_y, bounds[:-1].view(2, -1), bounds.diff().view(2, -1))
