"""Targets of the orientation maps: inside an object's area its pixels point to its base position, the others away.

Pixels lie at whole numbers here, as in the authors' program whose weights need it: pixel (i, j) of the network input is
the point (j, i). Maps exist only for the pairs of image and anchor that have an object.

Shape shorthand: N images, M ground truths, G pairs of image and anchor, H, W size of the network input, T pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from detectron2.structures import Instances
from torch import Tensor
from torch.nn import functional

from orienmask.targets import Objects, TargetRule
from segzoo.geometry.runs import bounded_blocks, expand_ranges

# Pixels of objects' areas that are worked on at once; bounds the memory to some 200 MB.
MAX_PIXELS = 2_000_000


class OrientationTargets(NamedTuple):
    """What the orientation maps of G pairs of image and anchor have to show, at the size of the network input.

    image, anchor: (G,). vectors: (2, G, H, W) x and y in half anchors. is_positive, is_negative: (G, H, W) bool, the
    pixels that have a target, never both.
    """

    image: Tensor
    anchor: Tensor
    vectors: Tensor
    is_positive: Tensor
    is_negative: Tensor


class Areas(NamedTuple):
    """The rectangles around M base positions that have targets, cut at the image's border.

    base_px: (M, 2). reach_px: (M, 2) half width and half height before the cut. first, last: (M, 2) first and last
    pixel (column, row).
    """

    base_px: Tensor
    reach_px: Tensor
    first: Tensor
    last: Tensor


def valid_areas(objects: Objects, rule: TargetRule) -> Areas:
    """The area of every object: its box times the expand ratio and half a cell more on each side."""
    base = objects.base_px(rule.base_position)
    reach = rule.expand_ratio / 2 * objects.boxes[:, 2:] + objects.strides[:, None] / 2
    limit = objects.image_sizes_px - 1
    first = (base - reach).clamp(min=0).minimum(limit).round().long()
    last = (base + reach).clamp(min=0).minimum(limit).round().long()
    return Areas(base, reach, first, last)


@torch.no_grad()
def orientation_targets(
    objects: Objects, gt_instances: Sequence[Instances], input_size: tuple[int, int], num_anchors: int, rule: TargetRule
) -> OrientationTargets:
    """Paints the vectors of all objects of a batch (section 3.2).

    A pixel of the mask points to the base position; where masks overlap, to that of the last object. A pixel beside
    the mask points away, to the border of the area; where areas overlap, by the mean of their vectors. Positives win.

    Args:
        objects: M objects in the order of painting.
        gt_instances: N times gt_masks (bit masks), on the device.
        input_size: (H, W) of the batch.
        num_anchors: of all levels together.
        rule: see `TargetRule`.
    """
    height, width = input_size
    areas = valid_areas(objects, rule)
    pair, slot = torch.unique(objects.image * num_anchors + objects.anchors, return_inverse=True)
    half_anchor = objects.boxes.new_tensor(rule.anchors_px)[objects.anchors] / 2
    masks = _join_masks(gt_instances, input_size)
    num_pixels = len(pair) * height * width
    owner = torch.full((num_pixels,), -1, dtype=torch.int32, device=slot.device)
    sums = objects.boxes.new_zeros(2, num_pixels)
    count = objects.boxes.new_zeros(num_pixels)
    for number, x, y in _area_pixels(areas):
        place = (slot[number] * height + y) * width + x
        is_mask = masks.view(-1)[(objects.order[number] * height + y) * width + x]
        inside, outside = is_mask.nonzero().squeeze(1), (~is_mask).nonzero().squeeze(1)
        owner.scatter_reduce_(0, place[inside], number[inside].int(), "amax")
        number, place = number[outside], place[outside]
        vectors = _outward(areas, number, x[outside], y[outside]) / half_anchor[number].T
        sums.index_add_(1, place, vectors)
        count.index_add_(0, place, torch.ones_like(vectors[0]))
    is_positive = owner >= 0
    vectors = sums.div_(count.clamp(min=1))
    chosen = is_positive.nonzero().squeeze(1)
    number = owner[chosen].long()
    x, y = chosen % width, chosen // width % height
    vectors[:, chosen] = (areas.base_px[number].T - torch.stack((x, y))) / half_anchor[number].T
    shape = (len(pair), height, width)
    is_negative = (count > 0) & ~is_positive
    return OrientationTargets(
        image=pair // num_anchors,
        anchor=pair % num_anchors,
        vectors=vectors.view(2, *shape),
        is_positive=is_positive.view(shape),
        is_negative=is_negative.view(shape),
    )


def _join_masks(gt_instances: Sequence[Instances], input_size: tuple[int, int]) -> Tensor:
    """(M, H, W) bool, images smaller than the batch padded at the right and the bottom."""
    masks = [instances.gt_masks.tensor for instances in gt_instances]
    height, width = input_size
    padding = [(0, width - mask.shape[2], 0, height - mask.shape[1]) for mask in masks]
    return torch.cat(
        [functional.pad(mask, pad) if any(pad) else mask for mask, pad in zip(masks, padding, strict=True)]
    )


def _area_pixels(areas: Areas) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Blocks of the areas' pixels: (T,) number of the object, x, y."""
    width, height = (areas.last - areas.first + 1).unbind(dim=1)
    owner, row = expand_ranges(areas.first[:, 1], height)
    row_width, row_left = width[owner], areas.first[owner, 0]
    for block in bounded_blocks(row_width, MAX_PIXELS):
        line, x = expand_ranges(row_left[block], row_width[block])
        yield owner[block][line], x, row[block][line]


def _outward(areas: Areas, number: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """(2, T) vectors that lengthen the way from the base position to a pixel until it leaves the area, px."""
    away = torch.stack((x, y)) - areas.base_px.T[:, number]
    reach = areas.reach_px.T[:, number]
    stretch = (reach / away.abs()).amin(dim=0).clamp(min=1)
    # The base position itself, in a ring's hole, has no way to lengthen: it points to the right border.
    is_base = (away == 0).all(dim=0)
    rightward = torch.stack((reach[0], torch.zeros_like(reach[1])))
    return torch.where(is_base, rightward, (stretch - 1) * away)
