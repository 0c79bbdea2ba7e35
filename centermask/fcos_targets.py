"""CenterMask-FCOS's training targets for a whole batch: FCOS's assignment, and which positives have a mask loss.

Whose a location is, see `assign_locations`: of several objects around it the smallest one's, of equally small ones the
first one's. So of two objects with one centre and class the smaller has the locations in its box and the larger the
rest; of two equal ones the second has none. Nor has an object that no location lies strictly inside of, such as a
single pixel. Objects without a location have no box, centerness and mask loss, but they are in the saliency's target.

Shape shorthand: N images, M ground truths, R locations, P positives, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from detectron2.structures import Instances
from torch import Tensor

from segzoo.modeling.fcos.assign import assign_batch, box_distances
from segzoo.modeling.fcos.locations import Locations


class FCOSTargets(NamedTuple):
    """What a batch's locations have to predict.

    classes: (N * R,) in 0..K, K = background. positives: (P,) index into the N * R locations, ascending. owners: (P,)
    their ground truths among all M. box_distances_px: (P, 4) l, t, r, b to the ground-truth box.
    """

    classes: Tensor
    positives: Tensor
    owners: Tensor
    box_distances_px: Tensor


@torch.no_grad()
def fcos_targets(
    locations: Locations,
    gt_instances: Sequence[Instances],
    num_classes: int,
    sizes_of_interest: Sequence[float],
    *,
    center_radius: float,
) -> FCOSTargets:
    """FCOS's assignment, with the ground truth of every positive.

    Args:
        locations: R cells, the same for every image of the batch.
        gt_instances: N times gt_boxes and gt_classes, on the device.
        num_classes: K.
        sizes_of_interest, center_radius: see `assign_batch`.
    """
    boxes = torch.cat([instances.gt_boxes.tensor for instances in gt_instances])
    gt_classes = torch.cat([instances.gt_classes for instances in gt_instances])
    counts = [len(instances) for instances in gt_instances]
    matched = assign_batch(locations, sizes_of_interest, boxes, counts, center_radius=center_radius)
    positives = (matched >= 0).nonzero().squeeze(1)
    owners = matched[positives]
    classes = gt_classes.new_full((len(matched),), num_classes)
    classes[positives] = gt_classes[owners]
    points = locations.points_px[positives % len(locations.points_px)]
    return FCOSTargets(classes, positives, owners, box_distances(points, boxes[owners]))


def draw_positives(images: Tensor, seeds: Sequence[int], max_masks: int) -> Tensor:
    """At most `max_masks` positives of each image, drawn without preference.

    The draw depends on an image's seed and on the number of its positives, but neither on the other images nor on the
    device: a run can be resumed, or spread over other ranks, without another outcome.

    Args:
        images: (P,) number of each positive's image, ascending.
        seeds: of the N images.
        max_masks: of an image.

    Returns:
        (Q,) int64 ascending indices into the P.
    """
    counts = torch.bincount(images, minlength=len(seeds)).tolist()
    if max(counts) <= max_masks:
        return torch.arange(len(images), device=images.device)
    drawn, start = [], 0
    for count, seed in zip(counts, seeds, strict=True):
        own = torch.arange(count)
        if count > max_masks:
            own = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:max_masks].sort().values
        drawn.append(own + start)
        start += count
    return torch.cat(drawn).to(images.device)
