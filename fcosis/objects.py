"""The objects that are segmented: ground truths in training, detections at test.

Shape shorthand: N images, M objects of all images, R locations, L levels, H, W size of the stride-4 map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from detectron2.structures import Instances
from torch import Tensor

from fcosis.padding import mask_padding, pad_boxes
from fcosis.targets import RegularizedTargets, mass_centers, object_levels
from segzoo.geometry.soft_masks import MASK_STRIDE
from segzoo.modeling.fcos.decode import Detections
from segzoo.modeling.fcos.locations import Locations, flatten_levels


class Objects(NamedTuple):
    """Objects of a batch, image by image.

    boxes_px: (M, 4) xyxy, where attention is paid. apart_px: (M, 4) boxes in which two objects of a colour must not
    meet. centers_px: (M, 2) centres of mass. levels, classes: (M,) int64. counts: of each of the N images.
    """

    boxes_px: Tensor
    apart_px: Tensor
    centers_px: Tensor
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
    locations: Locations,
    sizes_of_interest: Sequence[float],
) -> Objects:
    """All ground truths, with the box that their mask is trained in: about half of it is foreground (section 3.2.3).

    Args:
        gt_instances: N times gt_boxes, gt_classes and gt_masks, on the device.
        masks: (M, H, W) soft masks at stride 4.
        targets: what the locations have to predict; an object's level is where its positives are.
        locations: R cells.
        sizes_of_interest: of the L levels but the last.
    """
    boxes = torch.cat([instances.gt_boxes.tensor for instances in gt_instances])
    centers = mass_centers([instances.gt_masks.tensor for instances in gt_instances], boxes)
    boxes_cells = boxes / MASK_STRIDE
    padded = pad_boxes(boxes_cells, mask_padding(boxes_cells, masks.sum(dim=(1, 2))))
    height, width = masks.shape[1:]
    padded = padded.clamp(min=0).minimum(padded.new_tensor([width, height, width, height]))
    return Objects(
        boxes_px=boxes,
        apart_px=padded * MASK_STRIDE,
        centers_px=centers,
        levels=object_levels(targets, locations, boxes, sizes_of_interest),
        classes=torch.cat([instances.gt_classes for instances in gt_instances]),
        counts=[len(instances) for instances in gt_instances],
    )


def detected_objects(
    detections: Sequence[Detections], center_offsets: Sequence[Tensor], locations: Locations
) -> Objects:
    """Detections as objects: their level and their centre are those of the location that found them.

    Args:
        detections: of N images.
        center_offsets: (N, 2, Hi, Wi) of every level, in strides; none (then centres are the locations themselves).
        locations: R cells.
    """
    found = torch.cat([own.locations for own in detections])
    counts = [len(own.locations) for own in detections]
    centers = locations.points_px[found]
    if center_offsets:
        offsets = flatten_levels(center_offsets).float()
        images = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).to(found.device)
        centers = centers + offsets[images, found] * locations.strides_px[found, None]
    boxes = torch.cat([own.boxes_px for own in detections])
    classes = torch.cat([own.classes for own in detections])
    return Objects(boxes, boxes, centers, locations.levels[found], classes, counts)
