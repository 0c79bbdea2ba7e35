"""Mask regularisation: occupancy of the locations' cells says whom they belong to and how much they count (figure 6).

Shape shorthand: N images, M ground truths (of one image where it is said), R locations, P positives, L levels, H, W
size of the stride-4 map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from segzoo.geometry.soft_masks import MASK_STRIDE, soft_masks
from segzoo.modeling.fcos.assign import MAX_PAIRS, find_candidates, size_ranges
from segzoo.modeling.fcos.locations import Locations


@torch.no_grad()
def location_shares(masks: Sequence[Tensor], locations: Locations) -> list[Tensor]:
    """s(x, y): which share of each location's cell of stride x stride pixels an object covers.

    Args:
        masks: (m, h, w) bool of each of the N images. What lies beyond an image counts as background.
        locations: R cells, of levels whose strides begin with 4, 8 or 16, each next one twice the last.

    Returns:
        (m, R) float32 of each image.
    """
    size = _stride_4_size(locations)
    return average_shares(soft_masks(masks, size), [len(stack) for stack in masks], locations)


def average_shares(masks: Tensor, counts: Sequence[int], locations: Locations) -> list[Tensor]:
    """`location_shares` of soft masks that exist already.

    Args:
        masks: (M, H, W) at stride 4 of all images. What lies beyond them counts as background.
        counts: of each of the N images.
        locations: R cells.
    """
    sizes = locations.map_sizes
    height, width = _stride_4_size(locations)
    shares = functional.pad(masks[:, None], (0, width - masks.shape[2], 0, height - masks.shape[1]))
    shares = functional.avg_pool2d(shares, height // sizes[0][0])
    per_level = [shares.flatten(1)]
    for height, width in sizes[1:]:
        # A level's size is rounded up where the finer one's is odd.
        missing = (2 * width - shares.shape[3], 2 * height - shares.shape[2])
        shares = functional.avg_pool2d(functional.pad(shares, (0, missing[0], 0, missing[1])), 2)
        per_level.append(shares.flatten(1))
    return list(torch.cat(per_level, dim=1).split(list(counts)))


def _stride_4_size(locations: Locations) -> tuple[int, int]:
    """Size of a stride-4 map over the cells of the finest level."""
    # Levels of a pyramid double; their first cell tells the stride of the finest one.
    enlargement = int(locations.strides_px[0]) // MASK_STRIDE
    height, width = locations.map_sizes[0]
    return height * enlargement, width * enlargement


@torch.no_grad()
def assign_by_shares(
    locations: Locations,
    sizes_of_interest: Sequence[float],
    gt_boxes: Tensor,
    shares: Tensor,
    *,
    max_pairs: int = MAX_PAIRS,
) -> Tensor:
    """FCOS's assignment for one image, but that an ambiguous location goes to the object that covers most of its cell.

    Args:
        locations: R cells.
        sizes_of_interest: see `size_ranges`.
        gt_boxes, shares, max_pairs: see `largest_shares`.

    Returns:
        (R,) int64 index of the ground truth, -1 for background.
    """
    ranges = size_ranges(locations, sizes_of_interest)
    return largest_shares(
        lambda block: find_candidates(locations, ranges, gt_boxes[block]), gt_boxes, shares, max_pairs=max_pairs
    )


@torch.no_grad()
def largest_shares(
    find: Callable[[slice], Tensor], gt_boxes: Tensor, shares: Tensor, *, max_pairs: int = MAX_PAIRS
) -> Tensor:
    """The object that covers most of each location's cell.

    Of objects that cover equally much (often nothing) the smallest box takes it, of equally small ones the first.

    Args:
        find: for m of the M objects, (R, m) bool: whether a location may be an object's.
        gt_boxes: (M, 4) xyxy px.
        shares: (M, R), see `location_shares`.
        max_pairs: pairs of location and ground truth held at once; the result does not depend on it.

    Returns:
        (R,) int64 index of the ground truth, -1 where none may be asked.
    """
    best_index = torch.full((shares.shape[1],), -1, dtype=torch.int64, device=shares.device)
    areas = (gt_boxes[:, 2:] - gt_boxes[:, :2]).prod(dim=1)
    best_share = shares.new_full((shares.shape[1],), -1.0)
    best_area = torch.full_like(best_share, float("inf"))
    step = max(1, max_pairs // max(shares.shape[1], 1))
    for start in range(0, len(gt_boxes), step):
        block = slice(start, start + step)
        is_candidate = find(block)
        own = torch.where(is_candidate, shares[block].T, -1.0)
        share = own.amax(dim=1)
        own_areas = torch.where(is_candidate & (own == share[:, None]), areas[None, block], float("inf"))
        area = own_areas.amin(dim=1)
        # argmin of torch is not bound to give the first of equal values; a comparison is.
        index = (own_areas == area[:, None]).to(torch.uint8).argmax(dim=1)
        is_better = (share > best_share) | ((share == best_share) & (area < best_area))
        best_index = torch.where(is_better, index + start, best_index)
        best_share, best_area = torch.where(is_better, share, best_share), torch.where(is_better, area, best_area)
    return best_index


def regularized_weights(centerness: Tensor, shares: Tensor, rule: tuple[float, float, float]) -> Tensor:
    """w = alpha ctr + beta s + gamma sqrt(ctr s): weight of the box loss and target of the centerness.

    Args:
        centerness, shares: (P,) 0..1.
        rule: alpha, beta, gamma; (1, 0, 0) is FCOS's centerness.
    """
    alpha, beta, gamma = rule
    return alpha * centerness + beta * shares + gamma * (centerness * shares).sqrt()
