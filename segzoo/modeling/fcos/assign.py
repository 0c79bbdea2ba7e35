"""Which ground truth every location is responsible for: a dense rule, and a fast one for sampling around centres.

Shape shorthand: N images, R locations, M ground truths, L levels, Q pairs. All lengths in pixels.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from segzoo.modeling.fcos.locations import Locations

# Pairs of location and ground truth that are looked at together; bounds the memory to some 100 MB.
MAX_PAIRS = 2_000_000


def size_ranges(locations: Locations, sizes_of_interest: Sequence[float]) -> Tensor:
    """(R, 2) smallest and largest max(l, t, r, b) that a location of each level takes.

    Args:
        locations: the cells of all levels.
        sizes_of_interest: the L - 1 upper limits of all levels but the last, whose limit is infinite.
    """
    limits = torch.tensor([-1.0, *sizes_of_interest, float("inf")], device=locations.levels.device)
    return torch.stack((limits[locations.levels], limits[locations.levels + 1]), dim=1)


def box_distances(points_px: Tensor, boxes: Tensor) -> Tensor:
    """Distances (l, t, r, b) from points (..., 2) to the sides of xyxy boxes (..., 4), broadcast to (..., 4)."""
    return torch.cat((points_px - boxes[..., :2], boxes[..., 2:] - points_px), dim=-1)


def assign_locations(
    locations: Locations,
    sizes_of_interest: Sequence[float],
    gt_boxes: Tensor,
    *,
    gt_centers: Tensor | None = None,
    center_radius: float = 0.0,
    gt_areas: Tensor | None = None,
    max_pairs: int = MAX_PAIRS,
) -> Tensor:
    """The ground truth of each location of one image (FCOS, section 3.1; PolarMask, section 3.2).

    A location is positive for a ground truth when it lies strictly inside its box, strictly inside the square of
    half side `center_radius` strides around its centre (if asked for), and the largest of its four distances to
    the box lies in the level's range, both ends included. Of several ground truths it takes the smallest one, of
    equally small ones the first.

    Args:
        locations: R cells.
        sizes_of_interest: see `size_ranges`.
        gt_boxes: (M, 4) xyxy.
        gt_centers: (M, 2) centres of the sampling squares; the box centres when None.
        center_radius: in strides; 0 = the whole box.
        gt_areas: (M,) what "smallest" refers to; the box area when None.
        max_pairs: location-ground-truth pairs held at once; the result does not depend on it.

    Returns:
        (R,) int64 index of the ground truth, -1 for background.
    """
    points = locations.points_px
    best_index = torch.full((len(points),), -1, dtype=torch.int64, device=points.device)
    if len(gt_boxes) == 0:
        return best_index
    if gt_centers is None:
        gt_centers = (gt_boxes[:, :2] + gt_boxes[:, 2:]) / 2
    if gt_areas is None:
        gt_areas = (gt_boxes[:, 2:] - gt_boxes[:, :2]).prod(dim=1)
    ranges = size_ranges(locations, sizes_of_interest)
    best_area = torch.full_like(points[:, 0], float("inf"))
    step = max(1, max_pairs // len(points))
    for start in range(0, len(gt_boxes), step):
        block = slice(start, start + step)
        is_positive = find_candidates(locations, ranges, gt_boxes[block], gt_centers[block], center_radius)
        areas = torch.where(is_positive, gt_areas[None, block].to(points.dtype), float("inf"))
        area, index = areas.min(dim=1)
        # argmin of torch is not bound to give the first of equal values; a comparison is.
        index = (areas == area[:, None]).to(torch.uint8).argmax(dim=1)
        is_better = area < best_area
        best_index = torch.where(is_better, index + start, best_index)
        best_area = torch.minimum(area, best_area)
    return best_index


def find_candidates(
    locations: Locations, ranges: Tensor, gt_boxes: Tensor, gt_centers: Tensor | None = None, center_radius: float = 0.0
) -> Tensor:
    """(R, M) whether a location would be positive for a ground truth, when alone; see `assign_locations`.

    Args:
        locations: R cells.
        ranges: (R, 2), see `size_ranges`.
        gt_boxes: (M, 4) xyxy.
        gt_centers: (M, 2) centres of the sampling squares, of use with a `center_radius` alone.
        center_radius: in strides; 0 = the whole box.
    """
    points = locations.points_px
    distances = box_distances(points[:, None], gt_boxes[None])
    is_candidate = distances.amin(dim=-1) > 0
    reach = distances.amax(dim=-1)
    is_candidate &= (reach >= ranges[:, :1]) & (reach <= ranges[:, 1:])
    if center_radius > 0 and gt_centers is not None:
        offset = (points[:, None] - gt_centers[None]).abs().amax(dim=-1)
        is_candidate &= offset < center_radius * locations.strides_px[:, None]
    return is_candidate


def assign_batch(
    locations: Locations,
    sizes_of_interest: Sequence[float],
    gt_boxes: Tensor,
    num_gts: Sequence[int],
    *,
    gt_centers: Tensor | None = None,
    center_radius: float = 0.0,
    gt_areas: Tensor | None = None,
) -> Tensor:
    """`assign_locations` for all images of a batch.

    Args:
        locations: R cells, the same for all images.
        sizes_of_interest: see `size_ranges`.
        gt_boxes: (M, 4) xyxy of all images.
        num_gts: of each of the N images, M in all.
        gt_centers, center_radius, gt_areas: see `assign_locations`.

    Returns:
        (N * R,) int64 index of the ground truth among all M, -1 for background.
    """
    if gt_centers is None:
        gt_centers = (gt_boxes[:, :2] + gt_boxes[:, 2:]) / 2
    if gt_areas is None:
        gt_areas = (gt_boxes[:, 2:] - gt_boxes[:, :2]).prod(dim=1)
    if center_radius > 0:
        columns = torch.cat((gt_boxes, gt_centers, gt_areas[:, None]), dim=1)
        boxes, centers, areas = np.split(columns.to(locations.points_px.dtype).cpu().numpy(), [4, 6], axis=1)
        found = positives_around_centers(
            locations, sizes_of_interest, boxes, num_gts, centers=centers, radius=center_radius, areas=areas[:, 0]
        )
        places, owners = torch.from_numpy(found).to(gt_boxes.device)
        matched = owners.new_full((len(num_gts) * len(locations.points_px),), -1)
        return matched.index_copy_(0, places, owners)
    per_image, start = [], 0
    for count in num_gts:
        own = slice(start, start + count)
        owners = assign_locations(locations, sizes_of_interest, gt_boxes[own], gt_areas=gt_areas[own])
        per_image.append(torch.where(owners < 0, -1, owners + start))
        start += count
    return torch.cat(per_image)


def positives_around_centers(
    locations: Locations,
    sizes_of_interest: Sequence[float],
    boxes: np.ndarray,
    num_gts: Sequence[int],
    *,
    centers: np.ndarray,
    radius: float,
    areas: np.ndarray,
) -> np.ndarray:
    """`assign_batch` for sampling around centres, as the positives alone.

    A square of half side r strides covers at most 2 r + 1 cells of a row of a level. Only these are looked at: the cost
    grows with the ground truths and not with the locations. They are so few that numpy makes the positives on the host,
    whatever the device: some 50 calls on arrays of a few hundred numbers, for one copy of the boxes.

    Args:
        locations, sizes_of_interest, num_gts: see `assign_batch`.
        boxes, centers, areas: float32 (M, 4), (M, 2) and (M,) of all images.
        radius: in strides, > 0.

    Returns:
        (2, P) int64: places of the positives among the N * R locations, ascending, and their ground truths among all M.
    """
    gt, location = _positive_cells(locations, sizes_of_interest, boxes, centers, radius)
    place = np.repeat(np.arange(len(num_gts)), num_gts)[gt] * len(locations.points_px) + location
    # Of several ground truths a location takes the first one in this order: by size, of equally small ones by index.
    order = np.lexsort((gt, areas[gt], place))
    found = np.stack((place[order], gt[order]))
    is_first = np.ones(len(place), bool)
    np.not_equal(found[0, 1:], found[0, :-1], out=is_first[1:])
    return found[:, is_first]


def _positive_cells(
    locations: Locations, sizes_of_interest: Sequence[float], boxes: np.ndarray, centers: np.ndarray, radius: float
) -> tuple[np.ndarray, np.ndarray]:
    """(Q,) and (Q,): every ground truth with the locations that are positive for it, when alone.

    A location's distances to the sides, and to the centre, are looked at along x and along y before the cells near a
    centre are spread out into rows and columns.
    """
    sizes, ranges, first_cell = _level_tables(locations.map_sizes, tuple(sizes_of_interest))
    strides = locations.strides_px[first_cell.tolist()].cpu().numpy()[:, None]
    # One cell more on both sides than rounding errors can need.
    steps = np.arange(math.ceil(2 * radius) + 2)[:, None]
    corner = np.floor(centers[:, None] / strides - boxes.dtype.type(0.5 + radius))
    corner = corner.clip(-len(steps), sizes[:, 0]).astype(np.int64)
    # (M, L, steps, 2) columns and rows.
    cell = corner[:, :, None] + steps
    position = (cell + 0.5).astype(boxes.dtype) * strides[:, None]
    to_low, to_high = position - boxes[:, None, None, :2], boxes[:, None, None, 2:] - position
    is_near = np.abs(position - centers[:, None, None]) < boxes.dtype.type(radius) * strides[:, None]
    is_near &= (cell >= 0) & (cell < sizes) & (np.minimum(to_low, to_high) > 0)
    reach = np.maximum(to_low, to_high)
    # (M, L, rows, columns).
    reach = np.maximum(reach[..., 1][..., :, None], reach[..., 0][..., None, :])
    is_positive = (reach >= ranges[:, 0]) & (reach <= ranges[:, 1])
    is_positive &= is_near[..., 1][..., :, None] & is_near[..., 0][..., None, :]
    gt, level, row, column = is_positive.nonzero()
    return gt, first_cell[level] + cell[gt, level, row, 1] * sizes[level, 0, 0] + cell[gt, level, column, 0]


@functools.lru_cache(maxsize=256)
def _level_tables(
    map_sizes: tuple[tuple[int, int], ...], sizes_of_interest: tuple[float, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the L levels that have a cell: (L, 1, 2) width and height, (L, 2, 1, 1) float32 range of the largest distance
    to a side, and (L,) index of the first cell among all locations."""
    levels = [number for number, size in enumerate(map_sizes) if min(size) > 0]
    limits = [-1.0, *sizes_of_interest, math.inf]
    sizes = np.array([map_sizes[level][::-1] for level in levels])[:, None]
    ranges = np.array([limits[level : level + 2] for level in levels], np.float32)[..., None, None]
    first = list(itertools.accumulate((height * width for height, width in map_sizes), initial=0))
    first_cell = np.array([first[level] for level in levels])
    for table in (sizes, ranges, first_cell):
        table.setflags(write=False)
    return sizes, ranges, first_cell
