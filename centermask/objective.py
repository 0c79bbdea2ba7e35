"""What CenterMask is trained on: the targets of a batch, and the losses of one supervised feature's maps against them.

Shape shorthand: N images, M ground truths, P objects, K classes, Cs channels of the saliency, S side of a shape, H, W
size of the maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from detectron2.structures import Instances
from torch import Tensor

from centermask.assembly import mask_loss, saliency_loss
from centermask.decode import center_boxes
from centermask.losses import L1_MARGIN, Counts, focal_loss, l1_loss
from centermask.maps import CenterMaps, gather_cells, saliency_channels_of
from centermask.targets import NotTrained, Objects, collect_objects, heatmap_targets, image_numbers
from centermask.unions import union_masks
from segzoo.geometry.soft_masks import soft_masks

# Cells that a predicted box has at least where masks are trained in it: early sizes may be negative.
MIN_CROP_SIDE = 1.0


class Objective(NamedTuple):
    """How a batch is trained on.

    num_classes: K. saliency_channels: Cs: K, 1, or 0 for no saliency. max_objects: of an image. crops_predicted: masks
    are trained in the predicted boxes, not in those of the objects. *_weight: factors of the losses; a saliency of
    weight 0 is not supervised directly.
    """

    num_classes: int
    saliency_channels: int
    max_objects: int
    crops_predicted: bool
    heatmap_weight: float
    offset_weight: float
    size_weight: float
    mask_weight: float
    saliency_weight: float


class Targets(NamedTuple):
    """What a batch is trained on, whichever feature it is predicted from.

    objects: P of them. heatmap: (N, K, H, W). masks: (M, H, W) soft, of the ground truths. unions: (N, Cs, H, W) of the
    saliency, or None. counts: what the losses are divided by. not_trained: ground truths that are no objects.
    """

    objects: Objects
    heatmap: Tensor
    masks: Tensor
    unions: Tensor | None
    counts: Counts
    not_trained: NotTrained


@torch.no_grad()
def build_targets(gt_instances: Sequence[Instances], map_size: tuple[int, int], objective: Objective) -> Targets:
    """The targets of a batch, with this rank's own counts.

    Args:
        gt_instances: N times gt_boxes, gt_classes and gt_masks (BitMasks), on the device.
        map_size: (H, W) of the batch's maps.
        objective: see `Objective`.
    """
    number = len(gt_instances)
    objects, not_trained = collect_objects(gt_instances, map_size, objective.max_objects)
    heatmap = heatmap_targets(objects, number, objective.num_classes, map_size)
    masks = soft_masks([instances.gt_masks.tensor for instances in gt_instances], map_size)
    unions, foreground = None, masks.new_zeros(())
    if objective.saliency_channels and objective.saliency_weight:
        classes = torch.cat([instances.gt_classes for instances in gt_instances])
        channels = saliency_channels_of(classes, objective.saliency_channels)
        images = image_numbers(gt_instances, masks.device)
        unions = union_masks(masks, images, channels, number, objective.saliency_channels)
        foreground = unions.sum()
    counts = Counts((heatmap == 1).sum(), foreground, foreground.new_tensor(len(objects.cells)))
    return Targets(objects, heatmap, masks, unions, counts, not_trained)


def feature_losses(
    maps: CenterMaps, shapes: Tensor | None, targets: Targets, counts: Counts, objective: Objective
) -> dict[str, Tensor]:
    """The losses of one supervised feature: of centres (Lp, Loff, Lsize), masks, and perhaps saliency.

    Args:
        maps: of the feature.
        shapes: (P, S, S) logits at the objects' cells, or None.
        targets: see `Targets`.
        counts: what the losses are divided by; no count of peaks or foreground may be 0.
        objective: see `Objective`.

    Returns:
        fp32 scalars by name.
    """
    objects = targets.objects
    offsets, sizes = (gather_cells(values, objects.images, objects.cells) for values in (maps.offset, maps.size))
    boxes = objects.boxes
    if objective.crops_predicted:
        boxes = center_boxes(objects.cells, offsets.detach(), sizes.detach().clamp(min=MIN_CROP_SIDE))
    channels = saliency_channels_of(objects.classes, objective.saliency_channels)
    mask_losses = mask_loss(shapes, maps.saliency, objects.images, channels, boxes, targets.masks, objects.order)
    num_coordinates = 2 * counts.objects + L1_MARGIN
    losses = {
        "loss_heatmap": objective.heatmap_weight * focal_loss(maps.heatmap, targets.heatmap) / counts.peaks,
        "loss_offset": objective.offset_weight * l1_loss(offsets, objects.offsets) / num_coordinates,
        "loss_size": objective.size_weight * l1_loss(sizes, objects.sizes) / num_coordinates,
        # Without an object the sum is 0, whatever it is divided by.
        "loss_mask": objective.mask_weight * mask_losses.sum() / torch.where(counts.objects > 0, counts.objects, 1.0),
    }
    if maps.saliency is not None and targets.unions is not None:
        saliency = saliency_loss(maps.saliency, targets.unions)
        losses["loss_saliency"] = objective.saliency_weight * saliency / counts.foreground
    return losses
