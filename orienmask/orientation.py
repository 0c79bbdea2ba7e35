"""Targets of the orientation maps: inside an object's area its pixels point to its base position, the others away.

Pixels lie at whole numbers here, as in the authors' program whose weights need it: pixel (i, j) of the network input is
the point (j, i). Maps exist only for the pairs of image and anchor that have an object.

Shape shorthand: N images, M ground truths, G pairs of image and anchor, H, W size of the network input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from detectron2.structures import Instances
from torch import Tensor

from orienmask.painting import Areas, paint
from orienmask.targets import Objects, TargetRule


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
    pair, slot = torch.unique(objects.image * num_anchors + objects.anchors, return_inverse=True)
    half_anchor = objects.boxes.new_tensor(rule.anchors_px)[objects.anchors] / 2
    masks = [instances.gt_masks.tensor for instances in gt_instances]
    shape = (len(pair), *input_size)
    canvas = paint(valid_areas(objects, rule), masks, objects.order, slot, half_anchor, shape)
    return OrientationTargets(pair // num_anchors, pair % num_anchors, *canvas)
