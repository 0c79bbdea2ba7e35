"""What the locations of a batch have to predict.

Shape shorthand: N images, M ground truths of all images, R locations, P positives, F foreground positives, K classes,
Q locations within objects, L levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from detectron2.structures import Instances
from torch import Tensor

from fcosis.regularization import assign_by_shares, largest_shares
from segzoo.geometry.runs import find_runs, join_runs
from segzoo.modeling.fcos.assign import MAX_PAIRS, box_distances
from segzoo.modeling.fcos.locations import Locations

# Locations that their object covers at least this much know the way to its centre.
FOREGROUND_SHARE = 0.5


class RegularizedTargets(NamedTuple):
    """Targets of FCOS with mask regularisation.

    classes: (N * R,) in 0..K, K = background. positives: (P,) ascending index into the N * R locations. owners: (P,)
    their ground truths among all M. box_distances_px: (P, 4) l, t, r, b to the ground-truth box. shares: (P,) of the
    cell that the owner covers.
    """

    classes: Tensor
    positives: Tensor
    owners: Tensor
    box_distances_px: Tensor
    shares: Tensor


class InnerTargets(NamedTuple):
    """Targets of coarse segmentation and centres, see `inner_targets`.

    places: (Q,) ascending index into the N * R locations. owners: (Q,) their ground truths among all M. shares: (Q,) of
    the cell that the owner covers. is_outside: (N * R,) in the image, in no box.
    """

    places: Tensor
    owners: Tensor
    shares: Tensor
    is_outside: Tensor


@torch.no_grad()
def regularized_targets(
    locations: Locations,
    gt_instances: Sequence[Instances],
    shares: Sequence[Tensor],
    num_classes: int,
    sizes_of_interest: Sequence[float],
) -> RegularizedTargets:
    """FCOS's targets, where occupancy decides between objects; see `assign_by_shares`.

    Args:
        locations: R cells, the same for every image of the batch.
        gt_instances: N times gt_boxes and gt_classes, on the device.
        shares: N times (m, R), see `location_shares`.
        num_classes: K.
        sizes_of_interest: upper limits in px of the L levels but the last.
    """
    matched = [
        assign_by_shares(locations, sizes_of_interest, instances.gt_boxes.tensor, own_shares)
        for instances, own_shares in zip(gt_instances, shares, strict=True)
    ]
    positives, owners, covered = _gather_owned(matched, shares)
    gt_classes = torch.cat([instances.gt_classes for instances in gt_instances])
    classes = gt_classes.new_full((len(gt_instances) * len(locations.points_px),), num_classes)
    classes[positives] = gt_classes[owners]
    boxes = torch.cat([instances.gt_boxes.tensor for instances in gt_instances])
    points = locations.points_px[positives % len(locations.points_px)]
    return RegularizedTargets(
        classes=classes,
        positives=positives,
        owners=owners,
        box_distances_px=box_distances(points, boxes[owners]),
        shares=covered,
    )


def _gather_owned(matched: Sequence[Tensor], shares: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """From N times (R,) owners in an image, -1 for none: (P,) places among N * R, (P,) owners among all M, and the
    share of each cell that its owner covers."""
    places, owners, covered, first_place, first_owner = [], [], [], 0, 0
    for own, own_shares in zip(matched, shares, strict=True):
        found = (own >= 0).nonzero().squeeze(1)
        places.append(found + first_place)
        owners.append(own[found] + first_owner)
        covered.append(own_shares[own[found], found])
        first_place, first_owner = first_place + len(own), first_owner + len(own_shares)
    return torch.cat(places), torch.cat(owners), torch.cat(covered)


@torch.no_grad()
def inner_targets(
    targets: RegularizedTargets,
    levels: Tensor,
    locations: Locations,
    gt_instances: Sequence[Instances],
    shares: Sequence[Tensor],
) -> InnerTargets:
    """What coarse segmentation and centres have to predict: all of an object on every level that may find it.

    A level has only those of a box's locations as positives whose distances to the sides are in its range: of a square
    of 100 px those of stride 8 near the middle, those of stride 16 everywhere else. The attention of an object is made
    on one level, in its whole box. So all locations of a box may belong to its object here, on the level of its
    attention and on those where it has a positive; of several objects a location belongs to the one that covers most of
    its cell, whosever positive it is.

    Args:
        targets: of the N * R locations.
        levels: (M,) of the objects' attention, see `object_levels`.
        locations: R cells, the same for every image of the batch.
        gt_instances: N times gt_boxes, on the device, and the size of the image: padding is outside of no box.
        shares: N times (m, R), see `location_shares`.
    """
    boxes = [instances.gt_boxes.tensor for instances in gt_instances]
    has_level = _count_positives(targets, locations, len(levels)) > 0
    has_level = has_level.scatter(1, levels[:, None], True)
    matched, is_outside, start = [], [], 0
    for instances, own_boxes, own_shares in zip(gt_instances, boxes, shares, strict=True):
        own_levels = has_level[start : start + len(own_boxes)]

        def find(block: slice, own_boxes: Tensor = own_boxes, own_levels: Tensor = own_levels) -> Tensor:
            distances = box_distances(locations.points_px[:, None], own_boxes[None, block])
            return (distances.amin(dim=-1) > 0) & own_levels[block, locations.levels].T

        matched.append(largest_shares(find, own_boxes, own_shares))
        size = locations.points_px.new_tensor(instances.image_size[::-1])
        is_in_image = (locations.points_px < size).all(dim=1)
        is_outside.append(is_in_image & ~_in_some_box(locations.points_px, own_boxes))
        start += len(own_boxes)
    return InnerTargets(*_gather_owned(matched, shares), torch.cat(is_outside))


def _count_positives(targets: RegularizedTargets, locations: Locations, num_objects: int) -> Tensor:
    """(M, L) int64 positives of each object on each level."""
    num_levels = len(locations.map_sizes)
    levels = locations.levels[targets.positives % len(locations.points_px)]
    counts = torch.bincount(targets.owners * num_levels + levels, minlength=num_objects * num_levels)
    return counts.view(num_objects, num_levels)


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
    runs = join_runs([find_runs(stack) for stack in masks], [len(stack) for stack in masks])
    pixels = (runs.x1 - runs.x0).double()
    # The pixels of a run have the mean of its ends, and the middle of its row.
    moments = torch.stack((pixels, pixels * (runs.x0 + runs.x1) / 2, pixels * (runs.row + 0.5)), dim=1)
    sums = moments.new_zeros(len(gt_boxes), 3).index_add(0, runs.mask, moments)
    middles = (gt_boxes[:, :2] + gt_boxes[:, 2:]) / 2
    centers = (sums[:, 1:] / sums[:, :1].clamp(min=1)).to(middles.dtype)
    return torch.where(sums[:, :1] > 0, centers, middles)


@torch.no_grad()
def object_levels(
    targets: RegularizedTargets,
    weights: Tensor,
    locations: Locations,
    gt_boxes: Tensor,
    sizes_of_interest: Sequence[float],
) -> Tensor:
    """(M,) int64: the level of an object's positive with the largest weight, of equally large ones the finer one.

    The weights are what centerness is trained on, so that at test this location would find the object. An object
    without positives has the level whose range holds half of its longer side, the least that the largest distance to a
    side can be.

    Args:
        targets: of the M objects.
        weights: (P,) of the positives, see `regularized_weights`.
        locations: R cells.
        gt_boxes: (M, 4) xyxy px.
        sizes_of_interest: upper limits in px of the L levels but the last.
    """
    levels = locations.levels[targets.positives % len(locations.points_px)]
    largest = weights.new_full((len(gt_boxes),), -1.0).scatter_reduce(0, targets.owners, weights, "amax")
    none = len(sizes_of_interest) + 1
    candidates = torch.where(weights == largest[targets.owners], levels, none)
    finest = levels.new_full((len(gt_boxes),), none).scatter_reduce(0, targets.owners, candidates, "amin")
    half = (gt_boxes[:, 2:] - gt_boxes[:, :2]).amax(dim=1) / 2
    by_size = torch.bucketize(half, torch.tensor(sizes_of_interest, dtype=half.dtype, device=half.device))
    return torch.where(finest < none, finest, by_size)


@torch.no_grad()
def center_targets(inner: InnerTargets, locations: Locations, centers_px: Tensor) -> tuple[Tensor, Tensor]:
    """Ways to the centre of mass from the locations that lie on their object.

    Args:
        inner: of Q locations.
        locations: R cells.
        centers_px: (M, 2).

    Returns:
        (F, 2) x and y in strides of the location's level, and (F,) int64 index into the N * R locations.
    """
    is_own = inner.shares >= FOREGROUND_SHARE
    places = inner.places[is_own]
    cells = places % len(locations.points_px)
    ways = centers_px[inner.owners[is_own]] - locations.points_px[cells]
    return ways / locations.strides_px[cells, None], places
