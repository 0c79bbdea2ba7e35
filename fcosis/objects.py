"""The objects that are segmented: ground truths in training, detections at test.

Shape shorthand: N images, M objects of all images, R locations, L levels, H, W size of the stride-4 map.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

import torch
from detectron2.structures import Instances
from torch import Tensor
from torchvision.ops import box_iou

from fcosis.padding import mask_padding, pad_boxes
from fcosis.targets import RegularizedTargets, mass_centers, object_levels
from segzoo.geometry.soft_masks import MASK_STRIDE
from segzoo.modeling.fcos.decode import Detections
from segzoo.modeling.fcos.locations import Locations, flatten_levels

logger = logging.getLogger(__name__)

# What a detection's rivals score at least, as a share of its own score.
RIVAL_SCORE = 0.5
# Detections of one object. Centres that are nearer than a fifth of the size tell no objects apart. What this and the
# rivals' scores are worth: projects/FCOSIS/README.md.
MERGED_IOU = 0.5
MERGED_DISTANCE = 0.2


class Objects(NamedTuple):
    """Objects of a batch, image by image.

    boxes_px: (M, 4) xyxy, where attention is paid. apart_px: (M, 4) boxes in which two objects of a colour must not
    meet. centers_px: (M, 2) centres of mass. stand_ins, num_rivals: (M,) int64 whose centre an object competes by, and
    with how many of the first objects of its image, see `group_locations`. levels, classes: (M,) int64. counts: of each
    of the N images.
    """

    boxes_px: Tensor
    apart_px: Tensor
    centers_px: Tensor
    stand_ins: Tensor
    num_rivals: Tensor
    levels: Tensor
    classes: Tensor
    counts: list[int]

    @property
    def images(self) -> Tensor:
        """(M,) int64 number of each object's image."""
        numbers = torch.arange(len(self.counts), device=self.levels.device)
        return numbers.repeat_interleave(
            torch.tensor(self.counts, device=self.levels.device), output_size=len(self.levels)
        )


@torch.no_grad()
def training_objects(
    gt_instances: Sequence[Instances],
    masks: Tensor,
    targets: RegularizedTargets,
    weights: Tensor,
    locations: Locations,
    sizes_of_interest: Sequence[float],
) -> Objects:
    """All ground truths, with the box that their mask is trained in: about half of it is foreground (section 3.2.3).

    Args:
        gt_instances: N times gt_boxes, gt_classes and gt_masks, on the device.
        masks: (M, H, W) soft masks at stride 4.
        targets: what the locations have to predict.
        weights: (P,) of its positives; the largest one's level is that of its object.
        locations: R cells.
        sizes_of_interest: of the L levels but the last.
    """
    boxes = torch.cat([instances.gt_boxes.tensor for instances in gt_instances])
    counts = [len(instances) for instances in gt_instances]
    centers = mass_centers([instances.gt_masks.tensor for instances in gt_instances], boxes)
    boxes_cells = boxes / MASK_STRIDE
    padded = pad_boxes(boxes_cells, mask_padding(boxes_cells, masks.sum(dim=(1, 2))))
    height, width = masks.shape[1:]
    padded = padded.clamp(min=0).minimum(padded.new_tensor([width, height, width, height]))
    return Objects(
        boxes_px=boxes,
        apart_px=padded * MASK_STRIDE,
        centers_px=centers,
        **all_rivals(counts, boxes.device),
        levels=object_levels(targets, weights, locations, boxes, sizes_of_interest),
        classes=torch.cat([instances.gt_classes for instances in gt_instances]),
        counts=counts,
    )


def all_rivals(counts: Sequence[int], device: torch.device) -> dict[str, Tensor]:
    """`Objects`' stand_ins and num_rivals where all objects of an image compete, each by its own centre."""
    per_image = torch.tensor(counts, dtype=torch.int64)
    return {
        "stand_ins": torch.arange(sum(counts), device=device),
        "num_rivals": per_image.repeat_interleave(per_image).to(device),
    }


def detected_objects(
    detections: Sequence[Detections], center_offsets: Sequence[Tensor], locations: Locations
) -> Objects:
    """Detections as objects: their level and their centre are those of the location that found them.

    NMS leaves detections of one object that have other classes, or boxes of a smaller overlap, and there are many of
    nothing. The former do not compete for its pixels (see `merge_detections`), the latter not with good ones: a
    detection's rivals score at least RIVAL_SCORE times what it does.

    Args:
        detections: of N images, best first.
        center_offsets: (N, 2, Hi, Wi) of every level, in strides; none (then centres are the locations themselves).
        locations: R cells.
    """
    found = torch.cat([own.locations for own in detections])
    counts = [len(own.locations) for own in detections]
    centers = locations.points_px[found]
    if center_offsets:
        offsets = flatten_levels(center_offsets).float()
        images = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).to(found.device)
        ways = offsets[images, found] * locations.strides_px[found, None]
        # One NaN among the centres would be nearest to nothing, and take everything from the others.
        is_wild = ~ways.isfinite().all(dim=1)
        num_wild = int(is_wild.sum())
        if num_wild:
            logger.warning(
                "%d of %d detections have no finite way to their centre: it is their location", num_wild, len(found)
            )
        centers = centers + torch.where(is_wild[:, None], 0.0, ways)
    boxes = torch.cat([own.boxes_px for own in detections])
    classes = torch.cat([own.classes for own in detections])
    stand_ins = merge_detections(boxes, centers, counts)
    # Who competes by another one's centre has that one's rivals.
    num_rivals = torch.cat([count_rivals(own.scores) for own in detections])
    return Objects(
        boxes_px=boxes,
        apart_px=boxes,
        centers_px=centers,
        stand_ins=stand_ins,
        num_rivals=num_rivals[stand_ins],
        levels=locations.levels[found],
        classes=classes,
        counts=counts,
    )


def count_rivals(scores: Tensor) -> Tensor:
    """(D,) int64: of one image's detections, best first, how many score at least RIVAL_SCORE times what each does."""
    falling = -scores.float()
    return torch.searchsorted(falling, RIVAL_SCORE * falling, right=True)


def merge_detections(boxes: Tensor, centers_px: Tensor, counts: Sequence[int]) -> Tensor:
    """Which detections are of one object: their boxes have an IoU of MERGED_IOU, whatever their classes, and their
    centres are within MERGED_DISTANCE of the smaller box's size.

    Args:
        boxes: (M, 4) xyxy of all images, in each the best detection first.
        centers_px: (M, 2) centres of mass.
        counts: of each of the N images.

    Returns:
        (M,) int64: the best detection that is alike, or the one that this one has in turn.
    """
    competitors, start = [], 0
    for own_boxes, own_centers in zip(boxes.split(list(counts)), centers_px.split(list(counts)), strict=True):
        sizes = (own_boxes[:, 2:] - own_boxes[:, :2]).clamp(min=0).prod(dim=1).sqrt()
        least = MERGED_DISTANCE * torch.minimum(sizes[:, None], sizes[None])
        # Products would round distances in large images by half a pixel.
        distances = torch.cdist(own_centers, own_centers, compute_mode="donot_use_mm_for_euclid_dist")
        is_same = (box_iou(own_boxes, own_boxes) >= MERGED_IOU) & (distances <= least)
        # A box without an area has no overlap with itself.
        is_same.fill_diagonal_(True)
        numbers = torch.arange(len(is_same), device=boxes.device)
        best = numbers.clone()
        if len(is_same):
            best = torch.where(is_same, numbers, len(is_same)).amin(dim=1)
        # From the best one to that one's best one: paths halve.
        for _ in range(len(best).bit_length()):
            best = best[best]
        competitors.append(best + start)
        start += len(best)
    return torch.cat(competitors)
