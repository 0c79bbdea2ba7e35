"""PolarMask's training targets for a whole batch, on the device.

Shape shorthand: N images, M ground truths, R locations, P positives, K classes, n rays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from detectron2.structures import Instances
from torch import Tensor

from polarmask.rays import NO_HIT_PX, cast_rays
from segzoo.geometry.components import find_runs, join_runs, largest_parts
from segzoo.modeling.fcos.assign import assign_locations, box_distances
from segzoo.modeling.fcos.locations import Locations


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
    locations: Locations,
    gt_instances: Sequence[Instances],
    *,
    num_classes: int,
    num_rays: int,
    sizes_of_interest: Sequence[float],
    center_radius: float,
    parts: str = "largest",
) -> PolarTargets:
    """Assignment around the mass centres (section 3.2) and the rays of the positives (section 3.3).

    Args:
        locations: R cells, the same for every image of the batch.
        gt_instances: N times gt_boxes, gt_classes and gt_masks (bit masks), on the device.
        num_classes: K.
        num_rays: n.
        sizes_of_interest: upper limits in pixels of all levels but the last.
        center_radius: half side in strides of the square around a mass centre.
        parts: "largest" (the paper's, holes filled) or "all" (farthest point of any part).
    """
    counts = [len(instances) for instances in gt_instances]
    runs = join_runs([find_runs(instances.gt_masks.tensor) for instances in gt_instances], counts)
    largest = largest_parts(runs, sum(counts))
    classes, owners, distances, start = [], [], [], 0
    for instances in gt_instances:
        boxes = instances.gt_boxes.tensor
        matched = assign_locations(
            locations,
            sizes_of_interest,
            boxes,
            gt_centers=largest.centers_px[start : start + len(boxes)],
            center_radius=center_radius,
        )
        # One row more stands for the background, so that no image needs a branch.
        padded_classes = torch.cat((instances.gt_classes, instances.gt_classes.new_tensor([num_classes])))
        padded_boxes = torch.cat((boxes, boxes.new_zeros(1, 4)))
        classes.append(padded_classes[matched])
        distances.append(box_distances(locations.points_px, padded_boxes[matched]))
        owners.append(matched + start)
        start += len(boxes)
    all_classes = torch.cat(classes)
    positives = (all_classes < num_classes).nonzero().squeeze(1)
    rays = cast_rays(
        runs if parts == "all" else largest.runs,
        locations.points_px[positives % len(locations.points_px)],
        torch.cat(owners)[positives],
        num_rays,
    )
    # Where all rays miss (specks seen from between two rays) there is nothing to learn: a centerness of 1e-6 / 1e-6
    # would call such a location the perfect centre.
    is_blind = rays.amax(dim=1) <= NO_HIT_PX
    all_classes[positives[is_blind]] = num_classes
    positives, rays = positives[~is_blind], rays[~is_blind]
    return PolarTargets(all_classes, positives, rays, torch.cat(distances)[positives])
