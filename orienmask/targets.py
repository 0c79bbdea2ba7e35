"""OrienMask's assignment of objects to anchors, and the targets of the box maps.

Shape shorthand: N images, M ground truths of the batch, R predictions of an image, P positives, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from detectron2.structures import Instances
from torch import Tensor
from torchvision.ops import box_iou

from orienmask.anchors import Predictions, cells_inside, decode_boxes, to_centers, to_corners

# Narrower boxes count as this wide.
MIN_SIDE_PX = 1e-2
# Predictions x objects of an image whose IoU is held at once; bounds the memory to some 100 MB.
MAX_PAIRS = 4_000_000


class TargetRule(NamedTuple):
    """How objects become targets.

    anchors_px: (width, height) of all anchors, smallest first. strides: of the box maps, finest first. base_position:
    "box" or "grid". expand_ratio: r. overlap_order: "large_first" or "given".
    """

    anchors_px: Sequence[Sequence[float]]
    strides: Sequence[int]
    base_position: str = "box"
    expand_ratio: float = 1.2
    overlap_order: str = "large_first"


class Objects(NamedTuple):
    """The M objects of a batch in the order in which they are painted: of two that claim one place the later has it.

    image: (M,) number of the image. boxes: (M, 4) centre x, y, width, height px. classes: (M,). image_sizes_px: (M, 2)
    width and height of the image. anchors: (M,) index of the anchor. strides: (M,) of its level, px. cells: (M, 2)
    column and row. cell_index: (M,) number of the prediction in its image. order: (M,) place among the batch's ground
    truths.
    """

    image: Tensor
    boxes: Tensor
    classes: Tensor
    image_sizes_px: Tensor
    anchors: Tensor
    strides: Tensor
    cells: Tensor
    cell_index: Tensor
    order: Tensor

    def base_px(self, base_position: str) -> Tensor:
        """(M, 2) x and y that orientations point at: the box's centre, or the centre of its cell."""
        if base_position == "grid":
            return (self.cells + 0.5) * self.strides[:, None]
        return self.boxes[:, :2]


def assign_anchors(
    gt_instances: Sequence[Instances], map_sizes: Sequence[tuple[int, int]], rule: TargetRule
) -> Objects:
    """Gives every object the one anchor of all levels whose width and height fit best (the first on ties; YOLOv3).

    Args:
        gt_instances: N times gt_boxes, gt_classes and the image's size, on the device.
        map_sizes: (height, width) of the box maps, finest first.
        rule: see `TargetRule`.
    """
    boxes = torch.cat([instances.gt_boxes.tensor for instances in gt_instances])
    sizes = [(width, height) for height, width in (instances.image_size for instances in gt_instances)]
    counts = torch.tensor([len(instances) for instances in gt_instances], device=boxes.device)
    image = torch.arange(len(gt_instances), device=boxes.device).repeat_interleave(counts, output_size=len(boxes))
    order = torch.arange(len(boxes), device=boxes.device)
    if rule.overlap_order == "large_first":
        # Stable, so that the result does not depend on the device.
        order = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).argsort(descending=True, stable=True)
    boxes, image = to_centers(boxes[order]), image[order]
    # A box without an extent, which no mask has, would have no logarithm.
    boxes[:, 2:].clamp_(min=MIN_SIDE_PX)
    anchors = _best_anchors(boxes[:, 2:], boxes.new_tensor(rule.anchors_px))
    per_level = len(rule.anchors_px) // len(rule.strides)
    level = anchors // per_level
    strides = torch.tensor(rule.strides, device=boxes.device)[level]
    heights, widths = torch.tensor(map_sizes, device=boxes.device).unbind(dim=1)
    height, width = heights[level], widths[level]
    cells = (boxes[:, :2] / strides[:, None]).floor().long().clamp(min=0)
    cells = cells.minimum(torch.stack((width, height), dim=1) - 1)
    # As `Predictions` are numbered.
    starts = torch.cat((heights.new_zeros(1), (per_level * heights * widths).cumsum(0)))
    cell_index = starts[level] + (anchors % per_level * height + cells[:, 1]) * width + cells[:, 0]
    return Objects(
        image=image,
        boxes=boxes,
        classes=torch.cat([instances.gt_classes for instances in gt_instances])[order],
        image_sizes_px=boxes.new_tensor(sizes)[image],
        anchors=anchors,
        strides=strides,
        cells=cells,
        cell_index=cell_index,
        order=order,
    )


def _best_anchors(sizes_px: Tensor, anchors_px: Tensor) -> Tensor:
    """(M,) the anchor of the largest IoU with each (M, 2) size, both laid on one corner."""
    overlap = torch.minimum(sizes_px[:, None], anchors_px).prod(dim=2)
    union = sizes_px.prod(dim=1)[:, None] + anchors_px.prod(dim=1) - overlap
    # An object without area has IoU 0 with all, hence the first anchor; argmax of equal values is not defined.
    best = (overlap / union.clamp(min=1e-12)).max(dim=1, keepdim=True).values
    return (overlap / union.clamp(min=1e-12) >= best).int().argmax(dim=1)


class BoxTargets(NamedTuple):
    """What the P positives of a batch have to predict.

    positives: (P,) index into the N * R predictions, ascending. owners: (P,) index into the Objects. offsets: (P, 2)
    of the centre in its cell, 0..1. log_sizes: (P, 2) log of size / anchor. scales: (P,) weight 2 - share of the
    image, of the box losses. classes: (P, K) 0 or 1, of all objects of the cell.
    """

    positives: Tensor
    owners: Tensor
    offsets: Tensor
    log_sizes: Tensor
    scales: Tensor
    classes: Tensor


def box_targets(
    objects: Objects, num_images: int, num_predictions: int, num_classes: int, rule: TargetRule
) -> BoxTargets:
    """YOLOv3's targets. Of objects that share an anchor and a cell the last gives the box; classes add up.

    Args:
        objects: M objects.
        num_images, num_predictions, num_classes: N, R, K.
        rule: see `TargetRule`.
    """
    place = objects.image * num_predictions + objects.cell_index
    number = torch.arange(len(place), device=place.device)
    owner = place.new_full((num_images * num_predictions,), -1).scatter_reduce_(0, place, number, "amax")
    positives = (owner >= 0).nonzero().squeeze(1)
    owners = owner[positives]
    classes = objects.boxes.new_zeros(len(positives), num_classes)
    classes[torch.searchsorted(positives, place), objects.classes] = 1.0
    boxes, strides = objects.boxes[owners], objects.strides[owners, None]
    anchors = boxes.new_tensor(rule.anchors_px)[objects.anchors[owners]]
    return BoxTargets(
        positives=positives,
        owners=owners,
        offsets=boxes[:, :2] / strides - objects.cells[owners],
        log_sizes=(boxes[:, 2:] / anchors).log(),
        scales=2 - (boxes[:, 2:] / objects.image_sizes_px[owners]).prod(dim=1),
        classes=classes,
    )


@torch.no_grad()
def objectness_negatives(
    raw: Tensor, places: Predictions, positives: Tensor, gt_instances: Sequence[Instances], ignore_threshold: float
) -> Tensor:
    """(N, R) bool: predictions of the image that are not positive and whose box overlaps no object too much.

    Cells in the padding of an image that is smaller than the batch learn nothing.

    Args:
        raw: (N, R, 5 + K) of the network.
        places: R predictions.
        positives: (P,) index into the N * R predictions.
        gt_instances: N times gt_boxes and the image's size.
        ignore_threshold: largest IoU of a negative.
    """
    sizes = [instances.image_size for instances in gt_instances]
    is_negative = torch.stack([cells_inside(places, size) for size in sizes])
    boxes = to_corners(decode_boxes(raw, places))
    for image, instances in enumerate(gt_instances):
        step = max(1, MAX_PAIRS // raw.shape[1])
        for part in instances.gt_boxes.tensor.split(step):
            # A NaN overlaps nothing: its loss is NaN too, and stops the training.
            is_negative[image] &= ~(box_iou(boxes[image], part) > ignore_threshold).any(dim=1)
    is_negative.view(-1)[positives] = False
    return is_negative
