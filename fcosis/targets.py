"""What the locations of a batch have to predict.

Shape shorthand: N images, M ground truths of all images, R locations, P positives, F foreground positives, K classes,
L levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from detectron2.structures import Instances
from torch import Tensor

from fcosis.regularization import assign_by_shares, location_shares
from segzoo.modeling.fcos.assign import MAX_PAIRS, box_distances
from segzoo.modeling.fcos.locations import Locations

# Positives that their object covers at least this much know the way to its centre.
FOREGROUND_SHARE = 0.5


class RegularizedTargets(NamedTuple):
    """Targets of FCOS with mask regularisation.

    classes: (N * R,) in 0..K, K = background. positives: (P,) ascending index into the N * R locations. owners: (P,)
    their ground truths among all M. box_distances_px: (P, 4) l, t, r, b to the ground-truth box. shares: (P,) of the
    cell that the owner covers. is_ignored: (N * R,) background in some box, which has no target of the coarse
    segmentation.
    """

    classes: Tensor
    positives: Tensor
    owners: Tensor
    box_distances_px: Tensor
    shares: Tensor
    is_ignored: Tensor


@torch.no_grad()
def regularized_targets(
    locations: Locations, gt_instances: Sequence[Instances], num_classes: int, sizes_of_interest: Sequence[float]
) -> RegularizedTargets:
    """FCOS's targets, where occupancy decides between objects; see `assign_by_shares`.

    Args:
        locations: R cells, the same for every image of the batch.
        gt_instances: N times gt_boxes, gt_classes and gt_masks, on the device.
        num_classes: K.
        sizes_of_interest: upper limits in px of the L levels but the last.
    """
    matched, shares, is_in_box, start = [], [], [], 0
    per_image = location_shares([instances.gt_masks.tensor for instances in gt_instances], locations)
    for instances, own_shares in zip(gt_instances, per_image, strict=True):
        boxes = instances.gt_boxes.tensor
        owners = assign_by_shares(locations, sizes_of_interest, boxes, own_shares)
        positives = (owners >= 0).nonzero().squeeze(1)
        shares.append(own_shares[owners[positives], positives])
        matched.append(torch.where(owners < 0, -1, owners + start))
        is_in_box.append(_in_some_box(locations.points_px, boxes))
        start += len(boxes)
    all_matched = torch.cat(matched)
    positives = (all_matched >= 0).nonzero().squeeze(1)
    owners = all_matched[positives]
    gt_classes = torch.cat([instances.gt_classes for instances in gt_instances])
    classes = gt_classes.new_full((len(all_matched),), num_classes)
    classes[positives] = gt_classes[owners]
    boxes = torch.cat([instances.gt_boxes.tensor for instances in gt_instances])
    points = locations.points_px[positives % len(locations.points_px)]
    return RegularizedTargets(
        classes=classes,
        positives=positives,
        owners=owners,
        box_distances_px=box_distances(points, boxes[owners]),
        shares=torch.cat(shares),
        is_ignored=torch.cat(is_in_box) & (all_matched < 0),
    )


def _in_some_box(points_px: Tensor, boxes: Tensor) -> Tensor:
    """(R,) whether points lie strictly inside one of the boxes of an image."""
    is_inside = torch.zeros(len(points_px), dtype=torch.bool, device=points_px.device)
    for block in boxes.split(max(1, MAX_PAIRS // max(len(points_px), 1))):
        is_inside |= (box_distances(points_px[:, None], block[None]).amin(dim=-1) > 0).any(dim=1)
    return is_inside


@torch.no_grad()
def mass_centers(masks: Sequence[Tensor], gt_boxes: Tensor) -> Tensor:
    """(M, 2) x and y px of the objects' centres of mass, the means of their pixels' centres.

    Args:
        masks: (m, h, w) bool of each of the N images.
        gt_boxes: (M, 4) xyxy; an empty mask has the centre of its box.
    """
    centers = []
    for stack in masks:
        columns, rows = stack.sum(dim=1).double(), stack.sum(dim=2).double()
        x, y = (torch.arange(side.shape[1], device=stack.device) + 0.5 for side in (columns, rows))
        centers.append(torch.stack((columns @ x.double(), rows @ y.double()), dim=1) / columns.sum(dim=1, keepdim=True))
    middles = (gt_boxes[:, :2] + gt_boxes[:, 2:]) / 2
    # 0 / 0 of an empty mask.
    joined = torch.cat(centers).to(middles.dtype)
    return torch.where(joined.isnan(), middles, joined)


@torch.no_grad()
def object_levels(
    targets: RegularizedTargets, locations: Locations, gt_boxes: Tensor, sizes_of_interest: Sequence[float]
) -> Tensor:
    """(M,) int64: the level with most of an object's positives, of equally many the finer one.

    An object without positives has the level whose range holds half of its longer side, the least that the largest
    distance to a side can be.

    Args:
        targets: of the M objects.
        locations: R cells.
        gt_boxes: (M, 4) xyxy px.
        sizes_of_interest: upper limits in px of the L levels but the last.
    """
    num_levels = len(sizes_of_interest) + 1
    levels = locations.levels[targets.positives % len(locations.points_px)]
    counts = torch.bincount(targets.owners * num_levels + levels, minlength=len(gt_boxes) * num_levels)
    counts = counts.view(len(gt_boxes), num_levels)
    most = counts.amax(dim=1, keepdim=True)
    # argmax of torch is not bound to give the first of equal values; a comparison is.
    fullest = (counts == most).to(torch.uint8).argmax(dim=1)
    half = (gt_boxes[:, 2:] - gt_boxes[:, :2]).amax(dim=1) / 2
    by_size = torch.bucketize(half, torch.tensor(sizes_of_interest, dtype=half.dtype, device=half.device))
    return torch.where(most.squeeze(1) > 0, fullest, by_size)


@torch.no_grad()
def center_targets(targets: RegularizedTargets, locations: Locations, centers_px: Tensor) -> tuple[Tensor, Tensor]:
    """Ways to the centre of mass from the positives that lie on their object.

    Args:
        targets: of P positives.
        locations: R cells.
        centers_px: (M, 2).

    Returns:
        (F, 2) x and y in strides of the location's level, and (F,) int64 index into the P positives.
    """
    index = (targets.shares >= FOREGROUND_SHARE).nonzero().squeeze(1)
    cells = targets.positives[index] % len(locations.points_px)
    ways = centers_px[targets.owners[index]] - locations.points_px[cells]
    return ways / locations.strides_px[cells, None], index
