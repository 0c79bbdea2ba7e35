"""Connected parts and holes of many masks at once, on any device, without walking along contours.

Everything works on the masks' runs and grows with their number (about the height of the objects), not with the pixels.
Touching runs of neighbouring rows are the edges of a graph, and the parts are its connected components, found by
letting every run point to the smallest run it can reach.

Shape shorthand: M masks, T runs, Q pairs of touching runs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from segzoo.geometry.runs import Contacts, Runs, expand, toggle, touching_runs

# Steps to the root of the own root between two looks at the graph: 2 ** 6 runs are passed, and steps are cheap.
JUMPS = 6


class FilledParts(NamedTuple):
    """All parts of masks, their holes filled.

    runs: of the masks. labels: (T,) the smallest index of a run in the same part, connected at corners too.
    contacts: of the runs, at corners too.
    """

    runs: Runs
    labels: Tensor
    contacts: Contacts


class Parts(NamedTuple):
    """The largest part of every mask, its holes filled.

    runs: of these parts. areas: (M,) pixels, 0 for an empty mask.
    centers_px: (M, 2) x and y of the mass centre in continuous pixels, 0 for an empty mask.
    contacts: of the runs, at corners too.
    """

    runs: Runs
    areas: Tensor
    centers_px: Tensor
    contacts: Contacts


def label_runs(runs: Runs, *, diagonal: bool) -> Tensor:
    """(T,) the smallest index of a run in the same connected part.

    Args:
        runs: T runs in order.
        diagonal: whether pixels that touch at a corner are connected (8-connectivity).
    """
    contacts = touching_runs(runs, diagonal=diagonal)
    return _smallest_reachable(contacts.upper, contacts.lower, len(runs.row))


def _smallest_reachable(upper: Tensor, lower: Tensor, num_nodes: int) -> Tensor:
    """Connected components of a graph: every node's label becomes the smallest node of its component.

    Labels only ever fall and never leave their component, so that they are done when no edge joins two of them.
    """
    labels = torch.arange(num_nodes, device=upper.device).scatter_reduce_(0, lower, upper, "amin")
    while True:
        for _ in range(JUMPS):
            labels = labels.index_select(0, labels)
        of_upper, of_lower = labels.index_select(0, upper), labels.index_select(0, lower)
        if torch.equal(of_upper, of_lower):
            return labels
        # Hook the roots of both ends below the smaller root.
        smallest = torch.minimum(of_upper, of_lower)
        labels.scatter_reduce_(0, of_upper, smallest, "amin").scatter_reduce_(0, of_lower, smallest, "amin")


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


def filled_parts(runs: Runs, num_masks: int) -> FilledParts:
    """The parts of masks with their holes filled.

    Touching runs make a graph whose parts are the mask's and whose cycles go around its holes, so that a mask has as
    many holes as it has parts, less runs, plus contacts. Only masks with holes are filled; most have none.

    Args:
        runs: of the masks.
        num_masks: M.
    """
    contacts = touching_runs(runs, diagonal=True)
    labels = _smallest_reachable(contacts.upper, contacts.lower, len(runs.row))
    is_root = labels == torch.arange(len(labels), device=labels.device)
    if int(is_root.sum()) - len(labels) + len(contacts.upper) == 0:
        return FilledParts(runs, labels, contacts)
    holes = labels.new_zeros(num_masks).index_add_(0, runs.mask, is_root.long() - 1 + contacts.num_below)
    is_filled = holes.index_select(0, runs.mask) > 0
    parts = zip(runs.select(~is_filled), fill_holes(runs.select(is_filled)), strict=True)
    joined = Runs(*(torch.cat(columns) for columns in parts))
    filled = joined.select(joined.mask.argsort(stable=True))
    contacts = touching_runs(filled, diagonal=True)
    return FilledParts(filled, _smallest_reachable(contacts.upper, contacts.lower, len(filled.row)), contacts)


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
    runs, labels, contacts = filled_parts(runs, num_masks)
    length = runs.x1 - runs.x0
    part_areas = torch.zeros_like(length).index_add_(0, labels, length)
    root = largest_labels(runs, labels, part_areas, num_masks)
    is_kept = labels == root.index_select(0, runs.mask)
    kept = runs.select(is_kept)
    # Twice the area and its moments, in integers: the order of the sum does not matter.
    double = 2 * (kept.x1 - kept.x0)
    sums = torch.stack((double, double * (kept.x0 + kept.x1), double * (2 * kept.row + 1)), dim=1)
    sums = sums.new_zeros(num_masks, 3).index_add_(0, kept.mask, sums)
    centers = sums[:, 1:].double() / (2 * sums[:, :1]).clamp(min=1)
    return Parts(kept, sums[:, 0] // 2, centers.float(), contacts.select(is_kept))


def largest_labels(runs: Runs, labels: Tensor, sizes: Tensor, num_masks: int) -> Tensor:
    """(M,) label of the largest part of every mask (the first one on ties), T for an empty mask.

    Args:
        runs: of the masks.
        labels: (T,) of the runs, the smallest index of a run of their part: a smaller one comes first.
        sizes: (T,) of the parts at their labels, at least 0.
        num_masks: M.
    """
    own_size = sizes.index_select(0, labels)
    largest = sizes.new_zeros(num_masks).scatter_reduce_(0, runs.mask, own_size, "amax")
    is_largest = own_size == largest.index_select(0, runs.mask)
    root = labels.new_full((num_masks,), len(labels))
    return root.scatter_reduce_(0, runs.mask, torch.where(is_largest, labels, len(labels)), "amin")
