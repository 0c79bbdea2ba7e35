"""OrienMask's representation: nine maps of vectors at stride 4, one an anchor, which objects of a size share.

Shape shorthand: M objects of an image, A anchors, G maps with an object, H, W size of the network's input in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from detectron2.structures import BitMasks, Boxes, Instances
from torch import Tensor
from torch.nn import functional

from orienmask.check import FEATURE_STRIDES
from orienmask.decode import MAP_STRIDE, Detections, orientation_masks
from orienmask.orientation import OrientationTargets, orientation_targets
from orienmask.targets import TargetRule, assign_anchors
from projects.upper_bound.inputs import (
    MaskList,
    NetworkInput,
    describe_input,
    draw_in_chunks,
    draw_objects,
    network_input,
    settings_of,
)
from projects.upper_bound.objects import ImageObjects
from projects.upper_bound.rows import Row
from segzoo.data.augmentation import Resize
from segzoo.geometry.masks import mask_boxes
from segzoo.geometry.rle import RLEMasks

METHOD = "OrienMask"
SHARED, ALONE = "nine shared maps", "each object alone"
BUDGET_MB = 64.0


@dataclass(frozen=True)
class OrientationGroup:
    """The released model's anchors, base position, valid area and tau.

    resize: into the network's input; None = the image's own size. with_alone: whether a second row paints each object
    into maps of its own, to tell what sharing costs.
    """

    resize: Resize | None
    with_alone: bool = True

    @property
    def rows(self) -> list[Row]:
        """The maps as they are, and perhaps without other objects."""
        node, described = settings_of("ORIENMASK"), describe_input(self.resize)
        settings = {"anchors": len(node.ANCHORS), "expand_ratio": node.EXPAND_RATIO, "tau": node.TAU}
        kinds = (SHARED, ALONE) if self.with_alone else (SHARED,)
        return [Row(METHOD, kind, described, {**settings, "maps": kind}, kind == SHARED) for kind in kinds]

    def masks(self, image: ImageObjects) -> list[MaskList]:
        """The masks of an image's objects, row by row."""
        inner = network_input(image.size, self.resize)
        found = [MaskList(image) for _ in range(1 + self.with_alone)]
        drawn = draw_objects(image, inner)
        if len(drawn.places):
            order, masks = paint_and_read(drawn.masks, inner)
            found[0].put(drawn.places[order], masks)
        if self.with_alone:
            for chunk in draw_in_chunks(image, inner):
                for index in range(len(chunk.places)):
                    _, masks = paint_and_read(chunk.masks[index : index + 1], inner)
                    found[1].put(chunk.places[index : index + 1], masks)
        return found


def released_rule() -> TargetRule:
    """How the final model's objects become targets."""
    node = settings_of("ORIENMASK")
    return TargetRule(
        anchors_px=[list(anchor) for anchor in node.ANCHORS],
        strides=FEATURE_STRIDES[1:],
        base_position=node.BASE_POSITION,
        expand_ratio=node.EXPAND_RATIO,
        overlap_order=node.OVERLAP_ORDER,
    )


def paint_and_read(masks: Tensor, inner: NetworkInput) -> tuple[Tensor, RLEMasks]:
    """Paints objects into the maps of one image and reads their masks off, with their own boxes as detections.

    Args:
        masks: (M, H, W) bool, each with a pixel.
        inner: their network's input.

    Returns:
        (M,) int64 numbers of the objects, in whose order the M masks at the image's size are.
    """
    rule, size = released_rule(), inner.padded_size
    instances = Instances(inner.size)
    instances.gt_boxes = Boxes(mask_boxes(masks))
    # Classes decide on no mask.
    instances.gt_classes = torch.zeros(len(masks), dtype=torch.int64)
    instances.gt_masks = BitMasks(masks)
    objects = assign_anchors([instances], [(size[0] // step, size[1] // step) for step in rule.strides], rule)
    targets = orientation_targets(objects, [instances], size, len(rule.anchors_px), rule)
    base_px = objects.base_px(rule.base_position)
    detections = Detections(objects.boxes, base_px, torch.ones(len(masks)), objects.classes, objects.anchors)
    found = orientation_masks(
        *(stride_4_maps(targets, len(rule.anchors_px)), torch.tensor(rule.anchors_px).float(), detections),
        input_size=inner.size,
        output_size=inner.output_size,
        tau=settings_of("ORIENMASK").TAU,
        budget_mb=BUDGET_MB,
    )
    return objects.order, inner.to_image(found)


def stride_4_maps(targets: OrientationTargets, num_anchors: int) -> Tensor:
    """(2 A, H / 4, W / 4) maps whose cells hold the mean of their pixels' targets.

    Between a vector to the base and one to the border of the valid area, the mean ends half way from one to the other
    where half of the cell is mask; so an edge stays where it is. Cells without a target are 0, which a network is free
    to say there.
    """
    height, width = (side // MAP_STRIDE for side in targets.is_positive.shape[1:])
    maps = torch.zeros(num_anchors, 2, height, width)
    has_target = (targets.is_positive | targets.is_negative)[:, None].float()
    sums = functional.avg_pool2d(targets.vectors.transpose(0, 1) * has_target, MAP_STRIDE)
    maps[targets.anchor] = sums / functional.avg_pool2d(has_target, MAP_STRIDE).clamp(min=MAP_STRIDE**-2)
    return maps.flatten(0, 1)
