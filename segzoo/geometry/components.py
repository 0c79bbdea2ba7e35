"""Connected parts, holes and outlines of many masks at once, on any device, without walking along contours.

A mask is cut into its horizontal runs, once; everything else works on the runs and grows with their number (about the
height of the objects), not with the pixels. Touching runs of neighbouring rows are the edges of a graph, and the parts
are its connected components, found by letting every run point to the smallest run it can reach.

Shape shorthand: M masks, T runs, S segments, H, W.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Pixels of masks that are looked at together; the work on them holds some three bytes a pixel more.
MAX_PIXELS = 32_000_000


class Runs(NamedTuple):
    """Horizontal runs of set pixels, ordered by mask, row, column; all (T,) int64.

    A run covers the pixels x0 <= x < x1 of one row of one mask; runs of a row do not touch.
    """

    mask: Tensor
    row: Tensor
    x0: Tensor
    x1: Tensor

    def select(self, index: Tensor) -> Runs:
        """The runs of an index or boolean tensor."""
        return Runs(*(column[index] for column in self))


class Segments(NamedTuple):
    """Maximal axis-parallel pieces of the outlines of masks, ordered by mask.

    mask: (S,) int64. start_px, end_px: (S, 2) float32 x and y.
    """

    mask: Tensor
    start_px: Tensor
    end_px: Tensor


class Parts(NamedTuple):
    """The largest part of every mask, its holes filled.

    runs: of these parts. areas: (M,) pixels, 0 for an empty mask.
    centers_px: (M, 2) x and y of the mass centre in continuous pixels, 0 for an empty mask.
    """

    runs: Runs
    areas: Tensor
    centers_px: Tensor


def find_runs(masks: Tensor, *, max_pixels: int = MAX_PIXELS) -> Runs:
    """The horizontal runs of (M, H, W) boolean masks.

    Args:
        masks: M masks; the only pass over their pixels.
        max_pixels: pixels looked at together; the result does not depend on it.
    """
    step = max(1, max_pixels // max(1, masks.shape[1] * masks.shape[2]))
    return join_runs([_find_runs(block) for block in masks.split(step)], [step] * -(-len(masks) // step))


def _find_runs(masks: Tensor) -> Runs:
    padded = torch.nn.functional.pad(masks, (1, 1))
    # Starts and ends alternate, so that two neighbouring changes bound a run.
    mask, row, x = (padded[..., 1:] ^ padded[..., :-1]).nonzero(as_tuple=True)
    return Runs(mask[::2], row[::2], x[::2], x[1::2])


def join_runs(runs: Sequence[Runs], num_masks: Sequence[int]) -> Runs:
    """The runs of several sets of masks (at least one) as those of one set.

    Args:
        runs: one for each set, whose images may differ in size.
        num_masks: masks in each set.
    """
    first = [0, *itertools.accumulate(num_masks)]
    return Runs(
        torch.cat([part.mask + start for part, start in zip(runs, first)]),
        *(torch.cat(columns) for columns in list(zip(*runs, strict=True))[1:]),
    )


def paint_runs(runs: Runs, size: tuple[int, int, int]) -> Tensor:
    """The (M, H, W) = `size` boolean masks that consist of the given runs."""
    num_masks, height, width = size
    steps = torch.zeros((num_masks, height, width + 1), dtype=torch.int8, device=runs.x0.device)
    steps[runs.mask, runs.row, runs.x0] = 1
    steps[runs.mask, runs.row, runs.x1] = -1
    return steps.cumsum(dim=2, dtype=torch.int8)[..., :width] > 0


def label_runs(runs: Runs, *, diagonal: bool) -> Tensor:
    """(T,) the smallest index of a run in the same connected part.

    Args:
        runs: T runs in order.
        diagonal: whether pixels that touch at a corner are connected (8-connectivity).
    """
    if len(runs.row) == 0:
        return runs.row
    # Keys that leave a line empty between two masks, so that no run reaches into the next mask.
    width, height = runs.x1.max() + 2, runs.row.max() + 2
    line = (runs.mask * height + runs.row) * width
    starts, ends, below = line + runs.x0, line + runs.x1, line + width
    # Runs [c, d) of the next row touch [a, b) when c < b and d > a; at a corner also when c == b or d == a.
    first = torch.searchsorted(ends, below + runs.x0, right=not diagonal)
    last = torch.searchsorted(starts, below + runs.x1, right=diagonal)
    count = (last - first).clamp(min=0)
    upper, offset = expand(count)
    return _smallest_reachable(upper, first[upper] + offset, len(line))


def expand(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Ragged pairs: every index i repeated counts[i] times, and the position 0 .. counts[i] - 1 of each repetition."""
    owner = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    position = torch.arange(len(owner), device=counts.device) - (counts.cumsum(0) - counts)[owner]
    return owner, position


def _smallest_reachable(upper: Tensor, lower: Tensor, num_nodes: int) -> Tensor:
    """Connected components of a graph: every node's label becomes the smallest node of its component."""
    labels = torch.arange(num_nodes, device=upper.device)
    while True:
        previous = labels
        smallest = torch.minimum(labels[upper], labels[lower])
        # Hook the roots of both ends below the smaller root, then let every node skip to its root's root.
        labels = labels.scatter_reduce(0, previous[upper], smallest, "amin")
        labels = labels.scatter_reduce(0, previous[lower], smallest, "amin")
        labels = labels[labels]
        labels = labels[labels]
        if torch.equal(labels, previous):
            return labels


def fill_holes(runs: Runs) -> Runs:
    """The runs of the same masks with every background part that does not reach a mask's outside filled."""
    gaps, is_open = _gaps(runs)
    labels = label_runs(gaps, diagonal=False)
    is_outside = torch.zeros_like(is_open)
    is_outside[labels[is_open]] = True
    holes = gaps.select(~is_outside[labels])
    if len(holes.row) == 0:
        return runs
    both = Runs(*(torch.cat(columns) for columns in zip(runs, holes, strict=True)))
    height = both.row.max() + 1
    line, x0, x1 = _toggle(both.mask * height + both.row, both.x0, both.x1)
    return Runs(line // height, line % height, x0, x1)


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
    is_before = is_first[owner] & (position == 0)
    next_x0 = torch.where(is_last, far, runs.x0.roll(-1))
    x0 = torch.where(is_before, -1, runs.x1[owner])
    x1 = torch.where(is_before, runs.x0[owner], next_x0[owner])
    is_open = is_before | is_last[owner] | (gap_above | gap_below)[line_of_run][owner]
    return Runs(runs.mask[owner], runs.row[owner], x0, x1), is_open


def _toggle(line: Tensor, start: Tensor, end: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The symmetric difference of integer intervals [start, end) on lines, as maximal intervals in order.

    An interval's ends switch its line on and off; two ends at one place cancel.
    """
    span = end.max() + 1 if len(end) else 1
    keys = torch.cat((line * span + start, line * span + end)).sort().values
    is_pair = keys[1:] == keys[:-1]
    is_single = torch.ones_like(keys, dtype=torch.bool)
    is_single[1:] &= ~is_pair
    is_single[:-1] &= ~is_pair
    keys = keys[is_single]
    return keys[::2] // span, keys[::2] % span, keys[1::2] % span


def outline_segments(runs: Runs) -> Segments:
    """The maximal horizontal and vertical pieces of the outlines of masks, given as runs."""
    if len(runs.row) == 0:
        none = runs.x0.new_zeros(0, 2).float()
        return Segments(runs.mask, none, none)
    width, height = runs.x1.max() + 1, runs.row.max() + 2
    # A row's runs are seen from its upper and from its lower side; where both rows are set nothing is left.
    upper = runs.mask * height + runs.row
    line, x0, x1 = _toggle(torch.cat((upper, upper + 1)), runs.x0.repeat(2), runs.x1.repeat(2))
    column = runs.mask * width + torch.stack((runs.x0, runs.x1))
    x_line, y0, y1 = _toggle(column.flatten(), runs.row.repeat(2), runs.row.repeat(2) + 1)
    mask = torch.cat((line // height, x_line // width))
    start = torch.cat((torch.stack((x0, line % height), dim=1), torch.stack((x_line % width, y0), dim=1)))
    end = torch.cat((torch.stack((x1, line % height), dim=1), torch.stack((x_line % width, y1), dim=1)))
    order = mask.argsort(stable=True)
    return Segments(mask[order], start[order].float(), end[order].float())


def largest_parts(runs: Runs, num_masks: int) -> Parts:
    """The part that encloses the most pixels of every mask (the first such part on ties).

    Parts are 8-connected and their holes are filled: the regions inside the outer contours of cv2.findContours, but
    ranked by pixels. cv2.contourArea measures between pixel centres and calls a line one pixel wide empty.

    Args:
        runs: of the masks.
        num_masks: M.
    """
    runs = fill_holes(runs)
    labels = label_runs(runs, diagonal=True)
    length = runs.x1 - runs.x0
    part_areas = torch.zeros_like(length).index_add_(0, labels, length)
    areas = part_areas.new_zeros(num_masks).scatter_reduce_(0, runs.mask, part_areas, "amax")
    # Labels are smallest run indices: the smallest label of a largest part is the first such part.
    num_runs = len(labels)
    is_largest = part_areas[labels] == areas[runs.mask]
    root = torch.full_like(areas, num_runs)
    root.scatter_reduce_(0, runs.mask, torch.where(is_largest, labels, num_runs), "amin")
    kept = runs.select(labels == root[runs.mask])
    length = (kept.x1 - kept.x0).double()
    moments = torch.stack((length * (kept.x0 + kept.x1) / 2, length * (kept.row + 0.5)), dim=1)
    centers = moments.new_zeros(num_masks, 2).index_add_(0, kept.mask, moments) / areas.clamp(min=1)[:, None]
    return Parts(kept, areas, centers.float())
