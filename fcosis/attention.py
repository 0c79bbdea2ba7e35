"""Attention of colour groups: which pixels belong to their objects, which to others (section 3.2).

Shape shorthand: N images, R locations of all levels, M objects of all images, G colour groups, H, W size of the
stride-4 map, Q pairs of an object and a cell in its box.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from segzoo.geometry.box_cells import box_pixels, box_ranges
from segzoo.geometry.runs import bounded_blocks
from segzoo.geometry.soft_masks import MASK_STRIDE
from segzoo.geometry.tiles import neighbors
from segzoo.modeling.fcos.assign import MAX_PAIRS
from segzoo.modeling.fcos.locations import Locations


class Groups(NamedTuple):
    """Objects and their colour groups.

    boxes_px: (M, 4) xyxy. levels, images: (M,) int64 where an object's coarse segmentation is. groups: (M,) int64 its
    colour group among all G; boxes of a group do not overlap. num_groups: G.
    """

    boxes_px: Tensor
    levels: Tensor
    images: Tensor
    groups: Tensor
    num_groups: int


@torch.no_grad()
def group_locations(
    end_points_px: Tensor,
    centers_px: Tensor,
    stand_ins: Tensor,
    num_rivals: Tensor,
    counts: Sequence[int],
    *,
    max_pairs: int = MAX_PAIRS,
) -> Tensor:
    """Which locations belong to an object: those that point nearer to its centre than to any rival's.

    Rivals are of any colour: who loses to a neighbour of another colour is pushed back as much as who loses to one of
    its own.

    Args:
        end_points_px: (N, R, 2) location + way to its centre of mass.
        centers_px: (M, 2).
        stand_ins: (M,) int64 the object among all M whose centre an object competes by, mostly itself. Who has another
            one is nobody's rival.
        num_rivals: (M,) int64 >= 1: an object competes with so many of the first objects of its image.
        counts: objects of each of the N images.
        max_pairs: pairs of location and object held at once; the result does not depend on it.

    Returns:
        (M, R) bool. A location that is equally near to two objects belongs to both, one that points nowhere (NaN,
        infinity) to none.
    """
    num_locations = end_points_px.shape[1]
    is_own = torch.zeros(len(centers_px), num_locations, dtype=torch.bool, device=end_points_px.device)
    numbers = torch.arange(len(centers_px), device=centers_px.device)
    rival_centers = torch.where((stand_ins == numbers)[:, None], centers_px, float("inf")).float()
    start = 0
    for image, count in enumerate(counts):
        own = slice(start, start + count)
        step = max(1, max_pairs // max(count, 1))
        for first in range(0, num_locations if count else 0, step):
            part = slice(first, first + step)
            points = end_points_px[image, part].float()[None]
            distances = _squared_distances(centers_px[stand_ins[own]].float()[:, None], points)
            nearest = _squared_distances(rival_centers[own][:, None], points).cummin(dim=0).values
            is_own[own, part] = (distances <= nearest[num_rivals[own] - 1]) & distances.isfinite()
        start += count
    return is_own


def _squared_distances(centers: Tensor, points: Tensor) -> Tensor:
    return (points - centers).square().sum(dim=2)


def attention_maps(
    coarse: Tensor | None,
    is_own: Tensor | None,
    objects: Groups,
    locations: Locations,
    *,
    lam: Tensor,
    mu: Tensor,
    map_size: tuple[int, int],
    max_pairs: int = MAX_PAIRS,
) -> Tensor:
    """A = lambda m - mu (1 - m) in the boxes of a group's objects, 0 elsewhere.

    m is [location belongs to the object] x coarse segmentation on the map of the object's level, interpolated between
    the cells' centres (align_corners False; the border's value beyond them). Without a coarse segmentation m is 1.

    Args:
        coarse: (N, R) probabilities, or None.
        is_own: (M, R), see `group_locations`; None with `coarse`.
        objects: M objects.
        locations: R cells.
        lam, mu: scalars.
        map_size: (H, W).
        max_pairs: pairs of object and cell held at once; of more, blocks are computed again for the gradient. The
            result does not depend on it.

    Returns:
        (G, 1, H, W) float32, differentiable in `coarse`, `lam` and `mu`. Objects of a group whose boxes hold no cell's
        centre may meet in the nearest one; their attention is added there.
    """
    height, width = map_size
    boxes = objects.boxes_px.float() / MASK_STRIDE
    blocks = bounded_blocks(box_ranges(boxes, map_size)[1].prod(dim=1), max_pairs)
    # Keeps lambda and mu in the graph of a batch without objects.
    attention = ((lam + mu) * 0).float().expand(objects.num_groups * height * width)
    for block in blocks:
        arguments = (coarse, is_own, objects, locations, lam, mu, boxes, block, map_size)
        # What a checkpoint is given is kept until the gradient: boxes, not the cells in them.
        place, values = (
            checkpoint(_block_attention, *arguments, use_reentrant=False)
            if len(blocks) > 1
            else _block_attention(*arguments)
        )
        attention = attention.index_add(0, place, values)
    return attention.view(objects.num_groups, 1, height, width)


def _block_attention(
    coarse: Tensor | None,
    is_own: Tensor | None,
    objects: Groups,
    locations: Locations,
    lam: Tensor,
    mu: Tensor,
    boxes: Tensor,
    block: slice,
    map_size: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Of a block of the objects, at the Q cells of their boxes: (Q,) places among G x H x W, and attention there."""
    object_index, y, x = box_pixels(boxes[block], map_size)
    object_index = object_index + block.start
    place = (objects.groups[object_index] * map_size[0] + y) * map_size[1] + x
    if coarse is None or is_own is None:
        return place, lam.float().expand(len(place))
    membership = _sample_membership(coarse.float(), is_own, objects, locations, object_index, y, x)
    return place, (lam * membership - mu * (1 - membership)).float()


def _sample_membership(
    coarse: Tensor, is_own: Tensor, objects: Groups, locations: Locations, object_index: Tensor, y: Tensor, x: Tensor
) -> Tensor:
    """(Q,) m of objects at the centres of stride-4 cells."""
    sizes = torch.tensor(locations.map_sizes, device=coarse.device)
    cells = sizes.prod(dim=1)
    first = cells.cumsum(0) - cells
    level = objects.levels[object_index]
    height, width = sizes[level].unbind(dim=1)
    # Levels without a cell have no object; clamped, because their first cell is beyond the end.
    step = MASK_STRIDE / locations.strides_px[first.clamp(max=len(locations.strides_px) - 1)][level]
    start = first[level]
    top, bottom, share_y = neighbors((y + 0.5) * step, height)
    left, right, share_x = neighbors((x + 0.5) * step, width)
    flat_coarse, coarse_row = coarse.flatten(), objects.images[object_index] * coarse.shape[1]
    flat_own, own_row = is_own.flatten(), object_index * coarse.shape[1]

    def values(row: Tensor, column: Tensor) -> Tensor:
        place = start + row * width + column
        return flat_coarse[coarse_row + place] * flat_own[own_row + place]

    upper = torch.lerp(values(top, left), values(top, right), share_x)
    lower = torch.lerp(values(bottom, left), values(bottom, right), share_x)
    return torch.lerp(upper, lower, share_y)
