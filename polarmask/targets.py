"""PolarMask's training targets for a whole batch: rays on its device, the few candidates around centres on the host.

Shape shorthand: N images, M ground truths, R locations, P positives, K classes, n rays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from detectron2.structures import Instances
from torch import Tensor

from polarmask.official import degree_bin_rays, find_contours
from polarmask.rays import NO_HIT_PX, cast_to_sides
from polarmask.shapes import find_shapes
from segzoo.modeling.fcos.assign import assign_batch, box_distances, positives_around_centers
from segzoo.modeling.fcos.locations import Locations

# From where a box ends to the corner of its last pixel, as the authors' program counts.
LAST_PIXEL = np.array([0, 0, 1, 1], np.float32)


class TargetRule(NamedTuple):
    """How objects become targets.

    num_rays: n. sizes_of_interest: upper limits in pixels of all levels but the last. center_radius: half side in
    strides of the square around an object's centre. center: "mass" or "box". parts: "largest" (the paper's, holes
    filled) or "all" (farthest point of any part). is_official: centres and rays as the authors' program computes them
    (see polarmask/official.py), whatever `center` and `parts` say, and boxes end at their last pixel.
    """

    num_rays: int
    sizes_of_interest: Sequence[float]
    center_radius: float
    center: str = "mass"
    parts: str = "largest"
    is_official: bool = False


class PolarTargets(NamedTuple):
    """What a batch's locations have to predict.

    classes: (N * R,) in 0..K, K = background. positives: (P,) index into the N * R locations.
    rays_px: (P, n) distances to the outline. box_distances_px: (P, 4) l, t, r, b to the ground-truth box.
    """

    classes: Tensor
    positives: Tensor
    rays_px: Tensor
    box_distances_px: Tensor


@torch.no_grad()
def polar_targets(
    locations: Locations, gt_instances: Sequence[Instances], num_classes: int, rule: TargetRule
) -> PolarTargets:
    """Assignment around the mass centres (section 3.2) and the rays of the positives (section 3.3).

    Args:
        locations: R cells, the same for every image of the batch.
        gt_instances: N times gt_boxes, gt_classes and gt_masks (bit masks), on the device.
        num_classes: K.
        rule: see `TargetRule`.
    """
    masks = [instances.gt_masks.tensor for instances in gt_instances]
    if rule.is_official:
        contours = find_contours(masks)
        centers = contours.centers_px
    else:
        shapes = find_shapes(masks, rule.parts)
        centers = shapes.centers_px
    positives, owners, boxes = _assign(locations, gt_instances, centers, rule)
    gt_classes = torch.cat([instances.gt_classes for instances in gt_instances])
    points = locations.points_px.index_select(0, positives % len(locations.points_px))
    distances = box_distances(points, boxes.index_select(0, owners))
    if rule.is_official:
        rays = degree_bin_rays(contours, points, owners, rule.num_rays)
    else:
        rays = cast_to_sides(shapes.sides, points, owners, rule.num_rays)
        # Where all rays miss (specks seen from between two rays) there is nothing to learn: a centerness of 1e-6 / 1e-6
        # would call such a location the perfect centre.
        seen = (rays.amax(dim=1) > NO_HIT_PX).nonzero().squeeze(1)
        positives, owners, rays, distances = (x.index_select(0, seen) for x in (positives, owners, rays, distances))
    classes = gt_classes.new_full((len(masks) * len(locations.points_px),), num_classes)
    classes.index_copy_(0, positives, gt_classes.index_select(0, owners))
    return PolarTargets(classes, positives, rays, distances)


def _assign(
    locations: Locations, gt_instances: Sequence[Instances], centers_px: Tensor, rule: TargetRule
) -> tuple[Tensor, Tensor, Tensor]:
    """(P,) positives and (P,) the ground truth of each in the batch, and the batch's (M, 4) boxes."""
    counts = [len(instances) for instances in gt_instances]
    boxes = torch.cat([instances.gt_boxes.tensor for instances in gt_instances])
    corners, centers = boxes.cpu().numpy(), centers_px.cpu().numpy()
    areas = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
    if rule.center == "box" and not rule.is_official:
        centers = (corners[:, :2] + corners[:, 2:]) / 2
    if rule.is_official:
        corners = corners - LAST_PIXEL
        boxes = torch.from_numpy(corners).to(boxes.device)
    if rule.center_radius > 0:
        found = positives_around_centers(
            locations,
            rule.sizes_of_interest,
            corners,
            counts,
            centers=centers,
            radius=rule.center_radius,
            areas=areas,
        )
    else:
        gt_areas = torch.from_numpy(areas).to(boxes.device)
        matched = assign_batch(locations, rule.sizes_of_interest, boxes, counts, gt_areas=gt_areas).cpu().numpy()
        found = np.stack((np.flatnonzero(matched >= 0), matched[matched >= 0]))
    if rule.is_official and (centers[:, 0] == 0).any():
        # In that program a first object with its centre in column 0 leaves the whole image without a positive.
        first = np.cumsum([0, *counts[:-1]])[np.repeat(np.arange(len(counts)), counts)]
        found = found[:, (centers[first, 0] != 0)[found[1]]]
    positives, owners = torch.from_numpy(found).to(boxes.device)
    return positives, owners, boxes
