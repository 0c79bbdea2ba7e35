"""Connected parts and holes of many masks at once, on any device, without walking along contours.

Everything works on the masks' runs and grows with their number (about the height of the objects), not with the pixels.
Touching runs of neighbouring rows are the edges of a graph, and the parts are its connected components, found by
letting every run point to the smallest run it can reach.

Shape shorthand: M masks, T runs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from segzoo.geometry.runs import Runs, expand, toggle, touching_runs


class Parts(NamedTuple):
    """The largest part of every mask, its holes filled.

    runs: of these parts. areas: (M,) pixels, 0 for an empty mask.
    centers_px: (M, 2) x and y of the mass centre in continuous pixels, 0 for an empty mask.
    """

    runs: Runs
    areas: Tensor
    centers_px: Tensor


def label_runs(runs: Runs, *, diagonal: bool) -> Tensor:
    """(T,) the smallest index of a run in the same connected part.

    Args:
        runs: T runs in order.
        diagonal: whether pixels that touch at a corner are connected (8-connectivity).
    """
    contacts = touching_runs(runs, diagonal=diagonal)
    return _smallest_reachable(contacts.upper, contacts.lower, len(runs.row))


def _smallest_reachable(upper: Tensor, lower: Tensor, num_nodes: int) -> Tensor:
    """Connected components of a graph: every node's label becomes the smallest node of its component."""
    labels = torch.arange(num_nodes, device=upper.device)
    while True:
        previous = labels
        of_upper, of_lower = labels.index_select(0, upper), labels.index_select(0, lower)
        smallest = torch.minimum(of_upper, of_lower)
        # Hook the roots of both ends below the smaller root, then let every node skip to its root's root.
        labels = labels.scatter_reduce(0, of_upper, smallest, "amin").scatter_reduce(0, of_lower, smallest, "amin")
        labels = labels.index_select(0, labels)
        labels = labels.index_select(0, labels)
        if torch.equal(labels, previous):
            return labels


def fill_holes(runs: Runs) -> Runs:
    """The runs of the same masks with every background part that does not reach a mask's outside filled."""
    gaps, is_open = _gaps(runs)
    labels = label_runs(gaps, diagonal=False)
    is_outside = torch.zeros_like(is_open)
    is_outside[labels[is_open]] = True
    holes = gaps.select(~is_outside.index_select(0, labels))
    if len(holes.row) == 0:
        return runs
    both = Runs(*(torch.cat(columns) for columns in zip(runs, holes, strict=True)))
    height = both.row.max() + 1
    line, x0, x1 = toggle(both.mask * height + both.row, both.x0, both.x1)
    return Runs(line // height, line % height, x0, x1)


def filled_parts(runs: Runs, num_masks: int) -> tuple[Runs, Tensor]:
    """The runs of the same masks with their holes filled, and their `label_runs` with diagonals.

    Touching runs make a graph whose parts are the mask's and whose cycles go around its holes, so that a mask has as
    many holes as it has parts, less runs, plus contacts. Only masks with holes are filled; most have none.

    Args:
        runs: of the masks.
        num_masks: M.
    """
    contacts = touching_runs(runs, diagonal=True)
    labels = _smallest_reachable(contacts.upper, contacts.lower, len(runs.row))
    is_root = labels == torch.arange(len(labels), device=labels.device)
    holes = labels.new_zeros(num_masks).index_add_(0, runs.mask, is_root.long() - 1 + contacts.num_below)
    if not bool(holes.any()):
        return runs, labels
    is_filled = holes.index_select(0, runs.mask) > 0
    parts = zip(runs.select(~is_filled), fill_holes(runs.select(is_filled)), strict=True)
    joined = Runs(*(torch.cat(columns) for columns in parts))
    filled = joined.select(joined.mask.argsort(stable=True))
    return filled, label_runs(filled, diagonal=True)


def _gaps(runs: Runs) -> tuple[Runs, Tensor]:
    """The background of every row that has runs, and whether each gap is open to the outside.

    Open are the gaps at both ends of a row (which reach to -1 and far beyond any image), and all gaps of a row above
    or below which the mask has no runs.
    """
    far = torch.iinfo(torch.int32).max
    line = runs.mask * (runs.row.max() + 2 if len(runs.row) else 1) + runs.row
    step = line.diff(prepend=line.new_full((1,), -far), append=line.new_full((1,), far))
    is_first, is_last = step[:-1] != 0, step[1:] != 0
    lines, line_of_run = line.unique_consecutive(return_inverse=True)
    gap_above = lines.diff(prepend=lines.new_full((1,), -far)) != 1
    gap_below = lines.diff(append=lines.new_full((1,), far)) != 1
    # Every run is followed by a gap; the first run of a row is preceded by one as well.
    owner, position = expand(1 + is_first.long())
    own = runs.select(owner)
    is_before = is_first.index_select(0, owner) & (position == 0)
    next_x0 = torch.where(is_last, far, runs.x0.roll(-1)).index_select(0, owner)
    x0 = torch.where(is_before, -1, own.x1)
    x1 = torch.where(is_before, own.x0, next_x0)
    is_edge = is_last | (gap_above | gap_below).index_select(0, line_of_run)
    return Runs(own.mask, own.row, x0, x1), is_before | is_edge.index_select(0, owner)


def largest_parts(runs: Runs, num_masks: int) -> Parts:
    """The part that encloses the most pixels of every mask (the first such part on ties).

    Parts are 8-connected and their holes are filled: the regions inside the outer contours of cv2.findContours, but
    ranked by pixels. cv2.contourArea measures between pixel centres and calls a line one pixel wide empty.

    Args:
        runs: of the masks.
        num_masks: M.
    """
    runs, labels = filled_parts(runs, num_masks)
    length = runs.x1 - runs.x0
    part_areas = torch.zeros_like(length).index_add_(0, labels, length)
    areas = part_areas.new_zeros(num_masks).scatter_reduce_(0, runs.mask, part_areas, "amax")
    # Labels are smallest run indices: the smallest label of a largest part is the first such part.
    num_runs = len(labels)
    is_largest = part_areas.index_select(0, labels) == areas.index_select(0, runs.mask)
    root = torch.full_like(areas, num_runs)
    root.scatter_reduce_(0, runs.mask, torch.where(is_largest, labels, num_runs), "amin")
    kept = runs.select(labels == root.index_select(0, runs.mask))
    length = (kept.x1 - kept.x0).double()
    moments = torch.stack((length * (kept.x0 + kept.x1) / 2, length * (kept.row + 0.5)), dim=1)
    centers = moments.new_zeros(num_masks, 2).index_add_(0, kept.mask, moments) / areas.clamp(min=1)[:, None]
    return Parts(kept, areas, centers.float())
