"""Connected parts and holes of many masks at once, on any device, without walking along contours.

A mask is cut into its horizontal runs; touching runs of neighbouring rows are the edges of a graph, and the parts
are its connected components, found by letting every run point to the smallest run it can reach. The work grows with
the number of runs (about the height of the objects), not with their pixels.

Shape shorthand: M masks, T runs, H, W.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Runs(NamedTuple):
    """Horizontal runs of set pixels, ordered by mask, row, column; all (T,) int64.

    A run covers the pixels x0 <= x < x1 of one row of one mask.
    """

    mask: Tensor
    row: Tensor
    x0: Tensor
    x1: Tensor

    def select(self, index: Tensor) -> Runs:
        """The runs of an index or boolean tensor."""
        return Runs(*(column[index] for column in self))


class Parts(NamedTuple):
    """The largest part of every mask, its holes filled.

    masks: (M, H, W) bool. areas: (M,) pixels, 0 for an empty mask.
    centers_px: (M, 2) x and y of the mass centre in continuous pixels, 0 for an empty mask.
    """

    masks: Tensor
    areas: Tensor
    centers_px: Tensor


def find_runs(masks: Tensor) -> Runs:
    """The horizontal runs of (M, H, W) boolean masks."""
    padded = torch.nn.functional.pad(masks.to(torch.uint8), (1, 1)).bool()
    before, after = padded[..., :-1], padded[..., 1:]
    # Starts and ends alternate in every row, so that the i-th start belongs to the i-th end.
    mask, row, x0 = (after & ~before).nonzero(as_tuple=True)
    x1 = (before & ~after).nonzero(as_tuple=True)[2]
    return Runs(mask, row, x0, x1)


def paint_runs(runs: Runs, size: tuple[int, int, int]) -> Tensor:
    """The (M, H, W) = `size` boolean masks that consist of the given runs (which must not overlap)."""
    num_masks, height, width = size
    steps = torch.zeros((num_masks, height, width + 1), dtype=torch.int8, device=runs.x0.device)
    one = torch.ones_like(runs.x0, dtype=torch.int8)
    steps.index_put_((runs.mask, runs.row, runs.x0), one, accumulate=True)
    steps.index_put_((runs.mask, runs.row, runs.x1), -one, accumulate=True)
    return steps.cumsum(dim=2, dtype=torch.int8)[..., :width] > 0


def label_runs(runs: Runs, size: tuple[int, int, int], *, diagonal: bool) -> Tensor:
    """(T,) the smallest index of a run in the same connected part.

    Args:
        runs: T runs in order.
        size: (M, H, W).
        diagonal: whether pixels that touch at a corner are connected (8-connectivity).
    """
    _, height, width = size
    line = runs.mask * height + runs.row
    spacing = width + 2
    starts, ends = line * spacing + runs.x0, line * spacing + runs.x1
    below = (line + 1) * spacing
    # Runs [c, d) of the next row touch [a, b) when c < b and d > a; at a corner also when c == b or d == a.
    first = torch.searchsorted(ends, below + runs.x0, right=not diagonal)
    last = torch.searchsorted(starts, below + runs.x1, right=diagonal)
    count = torch.where(runs.row + 1 < height, (last - first).clamp(min=0), 0)
    upper = torch.arange(len(line), device=line.device).repeat_interleave(count)
    offset = torch.arange(len(upper), device=line.device) - (count.cumsum(0) - count)[upper]
    lower = first[upper] + offset
    return _smallest_reachable(upper, lower, len(line))


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


def fill_holes(masks: Tensor) -> Tensor:
    """(M, H, W) boolean masks with every background part that does not reach the image border filled."""
    num_masks, height, width = masks.shape
    # A frame of background makes everything outside one part: that of the mask's first run.
    background = torch.nn.functional.pad(~masks, (1, 1, 1, 1), value=True)
    runs = find_runs(background)
    labels = label_runs(runs, (num_masks, height + 2, width + 2), diagonal=False)
    first_run = torch.searchsorted(runs.mask, torch.arange(num_masks, device=masks.device))
    is_hole = labels != first_run[runs.mask]
    if not bool(is_hole.any()):
        return masks
    holes = paint_runs(runs.select(is_hole), (num_masks, height + 2, width + 2))
    return masks | holes[:, 1:-1, 1:-1]


def largest_parts(masks: Tensor) -> Parts:
    """The part with the most pixels, holes included, of every mask (the first such part on ties).

    Parts are 8-connected, as in cv2.findContours, and holes count as filled, as in cv2.contourArea: this is the
    region enclosed by a mask's largest outer contour.

    Args:
        masks: (M, H, W) bool.
    """
    size = (masks.shape[0], masks.shape[1], masks.shape[2])
    filled = fill_holes(masks)
    runs = find_runs(filled)
    labels = label_runs(runs, size, diagonal=True)
    length = runs.x1 - runs.x0
    part_areas = torch.zeros_like(length).index_add_(0, labels, length)
    areas = part_areas.new_zeros(size[0]).scatter_reduce_(0, runs.mask, part_areas, "amax")
    is_largest = part_areas == areas[runs.mask]
    num_runs = len(labels)
    root = torch.full_like(areas, num_runs).scatter_reduce_(
        0, runs.mask, torch.where(is_largest, torch.arange(num_runs, device=labels.device), num_runs), "amin"
    )
    kept = runs.select(labels == root[runs.mask])
    length = (kept.x1 - kept.x0).double()
    moments = torch.stack((length * (kept.x0 + kept.x1) / 2, length * (kept.row + 0.5)), dim=1)
    centers = moments.new_zeros(size[0], 2).index_add_(0, kept.mask, moments) / areas.clamp(min=1)[:, None]
    return Parts(paint_runs(kept, size), areas, centers.float())
