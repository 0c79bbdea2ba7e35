"""Contours, centres and rays as the authors' program computes them: the targets of `TARGETS: official`.

There a contour is what cv2.findContours walks along, the boundary pixels of an 8-connected part, as a polygon through
the pixels' centres. Its area, its centroid and the set of its points follow from the part's runs alone, in exact
integers and for all masks at once: between two touching runs of neighbouring rows the polygon covers whole unit squares
and, at each end where the runs differ, half a one. Only where the authors' result depends on the order of a contour's
points (see `_is_ambiguous`) the contour itself is walked along, on the CPU.

Coordinates are those of that program: a pixel's centre lies at whole numbers.

Shape shorthand: M masks, T runs, P points, S boundary pixels, n rays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from polarmask.rays import MAX_PAIRS, NO_HIT_PX
from polarmask.walk import (
    DEGREE_OFFSETS,
    NUM_DEGREES,
    NUM_MISSES,
    WalkedContours,
    largest_contour,
    walk_contours,
    walked_center,
    walked_rays,
)
from segzoo.geometry.components import filled_parts, largest_labels
from segzoo.geometry.outlines import Pixels, boundary_pixels
from segzoo.geometry.runs import Contacts, Runs, bounded_blocks, expand_ranges, find_runs, join_runs, paint_runs


class OfficialContours(NamedTuple):
    """The contour of the largest area of every mask.

    centers_px: (M, 2) x and y of its centroid, truncated to whole pixels; 0 for an empty mask. pixels: its points.
    """

    centers_px: Tensor
    pixels: Pixels


def find_contours(masks: Sequence[Tensor]) -> OfficialContours | WalkedContours:
    """The contours that the authors' program takes rays to, and their truncated centroids.

    Args:
        masks: (Mi, H, W) bool of every image (at least one), all on one device.
    """
    return walk_contours(masks) if masks[0].device.type == "cpu" else run_contours(masks)


def run_contours(masks: Sequence[Tensor]) -> OfficialContours:
    """`find_contours` on any device, all masks at once."""
    counts = [len(of_image) for of_image in masks]
    return official_contours(join_runs([find_runs(of_image) for of_image in masks], counts), sum(counts))


def official_contours(runs: Runs, num_masks: int) -> OfficialContours:
    """The contours that the authors' program takes rays to, and their truncated centroids.

    Args:
        runs: of the masks.
        num_masks: M.
    """
    filled, labels, contacts = filled_parts(runs, num_masks)
    moments = _polygon_moments(filled, labels, contacts)
    root = largest_labels(filled, labels, moments[:, 0].contiguous(), num_masks)
    # One row more for masks without a run.
    chosen = torch.cat((moments, moments.new_zeros(1, 3))).index_select(0, root)
    divisor = 3 * chosen[:, :1]
    centers = torch.div(chosen[:, 1:], divisor.clamp(min=1), rounding_mode="floor")
    for mask in _is_ambiguous(filled, labels, moments[:, 0], chosen, divisor).nonzero().squeeze(1).tolist():
        center, start = _walk(runs.select(runs.mask == mask))
        centers[mask] = centers.new_tensor(center)
        root[mask] = labels[_run_of(filled, mask, start)]
    is_kept = labels == root.index_select(0, filled.mask)
    pixels = boundary_pixels(filled.select(is_kept), num_masks, contacts.select(is_kept))
    return OfficialContours(centers.float(), pixels)


def degree_bin_rays(
    contours: OfficialContours | WalkedContours, points_px: Tensor, point_masks: Tensor, num_rays: int
) -> Tensor:
    """The farthest contour point in the whole degree of every ray, else in a neighbouring one (SPEC of that program).

    Args:
        contours: of M masks.
        points_px: (P, 2) x and y.
        point_masks: (P,) int64 index of each point's mask.
        num_rays: n, a divisor of 360.

    Returns:
        (P, n) float32 px; `NO_HIT_PX` where no degree within 3 holds a point, 0 where only the point itself lies.
    """
    if isinstance(contours, WalkedContours):
        return walked_rays(contours, points_px, point_masks, num_rays)
    pixels = contours.pixels
    num_points, device = len(points_px), points_px.device
    first, count = (ranges.index_select(1, point_masks) for ranges in (pixels.first, pixels.num_pixels))
    # A row a degree, so that one ray of all points lies side by side.
    farthest = points_px.new_full((NUM_DEGREES + 2 * NUM_MISSES, num_points), -1.0)
    slots = torch.arange(num_points, device=device) + NUM_MISSES * num_points
    columns = pixels.x_y.T.to(points_px.dtype).contiguous()
    for block in bounded_blocks(count.sum(dim=0), MAX_PAIRS):
        viewer, pixel = expand_ranges(first[:, block].flatten(), count[:, block].flatten())
        x, y = (
            column.index_select(0, pixel).sub_(torch.cat((own, own)).index_select(0, viewer))
            for column, own in zip(columns, points_px[block].unbind(dim=1), strict=True)
        )
        degrees = torch.atan2(x, y).mul_(180).div_(math.pi)
        degrees = torch.where(degrees < 0, degrees + 360, degrees).long()
        slot = degrees.mul_(num_points).add_(torch.cat((slots[block], slots[block])).index_select(0, viewer))
        farthest.view(-1).scatter_reduce_(0, slot, x.square_().add_(y.square_()), "amax")
    squares = farthest.new_full((num_rays, num_points), -1.0)
    for offset in reversed(DEGREE_OFFSETS):
        start = NUM_MISSES + offset
        choice = farthest[start : start + 360 : 360 // num_rays]
        squares = torch.where(choice >= 0, choice, squares)
    return torch.where(squares >= 0, squares.sqrt(), NO_HIT_PX).T.contiguous()


def _polygon_moments(runs: Runs, labels: Tensor, contacts: Contacts) -> Tensor:
    """(T, 3) int64, in the row of a part's label: twice its polygon's area, and six times the integrals of x and of y.

    Exact: squares count 2, 6x + 3, 6y + 3, triangles 1 and the sums of their corners' x and y. Two corners of a
    triangle lie in the row that reaches farther, one of them beyond the other row's end.
    """
    upper_x0, lower_x0 = (runs.x0.index_select(0, index) for index in contacts[:2])
    upper_x1, lower_x1 = (runs.x1.index_select(0, index) for index in contacts[:2])
    left, right = torch.maximum(upper_x0, lower_x0), torch.minimum(upper_x1, lower_x1) - 1
    num_squares = right - left
    at_left, at_right = (upper_x0 != lower_x0).long(), (upper_x1 != lower_x1).long()
    area = 2 * num_squares + at_left + at_right
    x = 3 * (num_squares * (left + right) + at_left * left + at_right * right) + at_right - at_left
    num_below = (lower_x0 < upper_x0).long() + (lower_x1 > upper_x1)
    y = area * (3 * runs.row.index_select(0, contacts.upper) + 1) + num_squares + num_below
    # Nothing lies between runs that touch at a corner only.
    moments = torch.stack((area, x, y), dim=1) * (num_squares >= 0)[:, None]
    return moments.new_zeros(len(labels), 3).index_add_(0, labels.index_select(0, contacts.upper), moments)


def _is_ambiguous(runs: Runs, labels: Tensor, areas: Tensor, chosen: Tensor, divisor: Tensor) -> Tensor:
    """(M,) whether the order of a contour's points decides on a mask's centre.

    That is so when the exact centroid is a whole number, which rounding errors may push below; when the polygon has no
    area (the authors then take the mean of the points as they are walked along); and when two parts are equally large.
    """
    num_masks = len(chosen)
    is_root = labels == torch.arange(len(labels), device=labels.device)
    is_rival = is_root & (areas == chosen[runs.mask, 0])
    rivals = labels.new_zeros(num_masks).index_add_(0, runs.mask, is_rival.long())
    is_whole = (chosen[:, 1:] % divisor.clamp(min=1) == 0).any(dim=1)
    return (rivals > 1) | ((rivals > 0) & (is_whole | (chosen[:, 0] == 0)))


def _walk(runs: Runs) -> tuple[tuple[int, int], tuple[int, int]]:
    """The truncated centre of one mask by walking along its contours, and a point of the contour it belongs to."""
    left, top = int(runs.x0.min()), int(runs.row.min())
    part = Runs(torch.zeros_like(runs.mask), runs.row - top, runs.x0 - left, runs.x1 - left)
    size = (1, int(part.row.max()) + 1, int(part.x1.max()))
    mask = paint_runs(part, size)[0].byte().cpu().numpy()
    contour = largest_contour(mask, (left, top))
    return walked_center(contour.astype(float)), (int(contour[0, 0]), int(contour[0, 1]))


def _run_of(runs: Runs, mask: int, x_y: tuple[int, int]) -> Tensor:
    """Index of the run of a mask that holds a pixel."""
    x, y = x_y
    return ((runs.mask == mask) & (runs.row == y) & (runs.x0 <= x) & (x < runs.x1)).nonzero()[0, 0]
