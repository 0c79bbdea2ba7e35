"""Which ground truth every location is responsible for.

Shape shorthand: R locations, M ground truths, L levels. All lengths in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

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
    smallest, largest = size_ranges(locations, sizes_of_interest).unsqueeze(-1).unbind(dim=1)
    best_area = torch.full_like(points[:, 0], float("inf"))
    step = max(1, max_pairs // len(points))
    for start in range(0, len(gt_boxes), step):
        block = slice(start, start + step)
        distances = box_distances(points[:, None], gt_boxes[None, block])
        is_positive = distances.amin(dim=-1) > 0
        reach = distances.amax(dim=-1)
        is_positive &= (reach >= smallest) & (reach <= largest)
        if center_radius > 0:
            offset = (points[:, None] - gt_centers[None, block]).abs().amax(dim=-1)
            is_positive &= offset < center_radius * locations.strides_px[:, None]
        areas = torch.where(is_positive, gt_areas[None, block].to(points.dtype), float("inf"))
        area, index = areas.min(dim=1)
        # argmin of torch is not bound to give the first of equal values; a comparison is.
        index = (areas == area[:, None]).to(torch.uint8).argmax(dim=1)
        is_better = area < best_area
        best_index = torch.where(is_better, index + start, best_index)
        best_area = torch.minimum(area, best_area)
    return best_index
