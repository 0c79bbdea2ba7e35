"""OrienMask's representation: nine maps of vectors at stride 4, one an anchor, which objects of a size share.

Two answers of a network are tried, and each object has the better one. As the targets are written, pixels of a mask
point to its base, those beside it away to the border of the valid area, and a cell has the mean of its pixels. That
border is half a cell of the box map farther off than twice the reach of tau = r / 2, so that the edges of small objects
move inwards. Fitted, pixels beside a mask end at twice tau's limit: half a cell lies on the edge.

Shape shorthand: M objects of an image, A anchors, G maps with an object, H, W size of the network's input in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import torch
from detectron2.structures import BitMasks, Boxes, Instances
from torch import Tensor

from orienmask.check import FEATURE_STRIDES
from orienmask.config import YOLOV4_ANCHORS
from orienmask.decode import MAP_STRIDE, Detections, orientation_masks
from orienmask.orientation import OrientationTargets, orientation_targets, valid_areas
from orienmask.painting import Areas, paint
from orienmask.targets import Objects, TargetRule, assign_anchors
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
from segzoo.geometry.soft_masks import soft_masks

METHOD = "OrienMask"
SHARED, WRITTEN, ALONE = "nine shared maps", "nine shared maps, as the targets are written", "each object alone"
# (width, height) px at 544 x 544, those of configs/orienmask_D53_base.yaml and of the final model.
ANCHORS: dict[str, list[list[int]]] = {
    "YOLOv3": [[10, 13], [16, 30], [33, 23], [30, 61], [62, 45], [59, 119], [116, 90], [156, 198], [373, 326]],
    "YOLOv4": YOLOV4_ANCHORS,
}
BUDGET_MB = 64.0


class Setting(NamedTuple):
    """What tables 1, 3 and 4 of the paper vary.

    anchors: of ANCHORS. base: what pixels point to, "box" (its centre) or "grid" (the centre of its cell).
    expand_ratio: r, of the valid area. tau: a pixel belongs to an object if it ends closer to its base than this share
    of half the box.
    """

    anchors: str = "YOLOv4"
    base: str = "box"
    expand_ratio: float = 1.2
    tau: float = 0.6

    def rule(self) -> TargetRule:
        """How objects become targets."""
        return TargetRule(
            anchors_px=ANCHORS[self.anchors],
            strides=FEATURE_STRIDES[1:],
            base_position=self.base,
            expand_ratio=self.expand_ratio,
            overlap_order=settings_of("ORIENMASK").OVERLAP_ORDER,
        )


RELEASED = Setting()
# The released model, and others that differ in one thing; those with the same targets are neighbours.
SETTINGS = {
    SHARED: RELEASED,
    **{f"{SHARED}, tau = {tau}": RELEASED._replace(tau=tau) for tau in (0.4, 0.5, 0.7, 0.8)},
    **{f"{SHARED}, r = {ratio}": RELEASED._replace(expand_ratio=ratio) for ratio in (1.0, 1.4, 1.6)},
    f"{SHARED}, centre of the grid's cell as base": RELEASED._replace(base="grid"),
    f"{SHARED}, YOLOv3's anchors": RELEASED._replace(anchors="YOLOv3"),
}


@dataclass(frozen=True)
class OrientationGroup:
    """Maps that the objects of an image share, with the settings of the released model and others.

    resize: into the network's input; None = the image's own size. settings: by title, the first of them the one that
    is explained by two rows more: the targets as they are written, and each object with maps of its own.
    """

    resize: Resize | None
    settings: tuple[tuple[str, Setting], ...] = tuple(SETTINGS.items())

    @property
    def rows(self) -> list[Row]:
        """The settings, then what explains the first."""
        described, (_, first) = describe_input(self.resize), self.settings[0]
        shared = [Row(METHOD, title, described, _values(setting, "shared")) for title, setting in self.settings]
        more = [
            Row(METHOD, title, described, _values(first, kind), is_method=False)
            for title, kind in ((WRITTEN, "as written"), (ALONE, "alone"))
        ]
        return [*shared, *more]

    def masks(self, image: ImageObjects) -> list[MaskList]:
        """The masks of an image's objects, row by row."""
        inner = network_input(image.size, self.resize)
        found = [MaskList(image) for _ in self.rows]
        *shared, written, alone = found
        drawn, (_, first) = draw_objects(image, inner), self.settings[0]
        by_targets = groupby(zip(self.settings, shared, strict=True), key=lambda pair: pair[0][1]._replace(tau=0))
        for _, pairs in by_targets if len(drawn.places) else ():
            kin = [(setting, target) for (_, setting), target in pairs]
            painting = assign(drawn.masks, inner, kin[0][0])
            places, taus = drawn.places[painting.objects.order], [setting.tau for setting, _ in kin]
            as_written, fitted = painting.read(painting.written_maps(), taus), painting.fitted_maps(taus)
            for (setting, target), masks, maps in zip(kin, as_written, fitted, strict=True):
                target.offer(places, masks)
                if setting == first:
                    written.offer(places, masks)
                target.offer(places, *painting.read(maps, [setting.tau]))
        for chunk in draw_in_chunks(image, inner):
            for index in range(len(chunk.places)):
                painting = assign(chunk.masks[index : index + 1], inner, first)
                (maps,) = painting.fitted_maps([first.tau])
                own = painting.read(maps, [first.tau])
                alone.offer(chunk.places[index : index + 1], *own)
        # An object's own map can show whatever a shared one does.
        alone.offer_all(shared[0])
        return found


def _values(setting: Setting, maps: str) -> dict[str, int | float | str]:
    return {**setting._asdict(), "maps": maps}


class Painting(NamedTuple):
    """The objects of one image, assigned to anchors.

    objects: M of them, in the order of painting. instances: their boxes and masks. rule: how they become targets.
    inner: the network's input.
    """

    objects: Objects
    instances: Instances
    rule: TargetRule
    inner: NetworkInput

    def written_maps(self) -> Tensor:
        """(2 A, H / 4, W / 4) means of the targets as training paints them."""
        num_anchors = len(self.rule.anchors_px)
        size = self.inner.padded_size
        targets = orientation_targets(self.objects, [self.instances], size, num_anchors, self.rule)
        return stride_4_maps(targets, num_anchors)

    def fitted_maps(self, taus: Sequence[float]) -> list[Tensor]:
        """For each tau (2 A, H / 4, W / 4) means, of pixels beside a mask that end tau boxes from the base.

        The painter lengthens ways and never shortens them, so that it paints twice, to borders beyond all pixels that
        differ by one box. Cells are linear in the borders' distance, from which those of any tau follow.
        """
        areas, sizes_px = valid_areas(self.objects, self.rule), self.objects.boxes[:, 2:]
        # Areas end at whole pixels.
        far = float(((areas.reach_px + 1) / sizes_px).max())
        near, beyond = (self._painted(areas._replace(reach_px=(far + more) * sizes_px)) for more in (0, 1))
        return [near + (tau - far) * (beyond - near) for tau in taus]

    def _painted(self, areas: Areas) -> Tensor:
        """(2 A, H / 4, W / 4) means of what is painted into areas, some of which have borders of their own."""
        pair, slot = torch.unique(self.objects.anchors, return_inverse=True)
        anchors_px = torch.tensor(self.rule.anchors_px).float()
        masks, units_px = [self.instances.gt_masks.tensor], anchors_px[self.objects.anchors] / 2
        canvas = paint(areas, masks, self.objects.order, slot, units_px, (len(pair), *self.inner.padded_size))
        return stride_4_maps(OrientationTargets(torch.zeros_like(pair), pair, *canvas), len(anchors_px))

    def read(self, maps: Tensor, taus: Sequence[float]) -> list[RLEMasks]:
        """For each tau the M masks at the image's size that (2 A, H / 4, W / 4) maps show, with the objects' own boxes
        as detections, all from the same end points."""
        boxes, count = self.objects.boxes, len(self.objects.boxes)
        # Tau counts by its product with the box's sides.
        scaled = [torch.cat((boxes[:, :2], tau * boxes[:, 2:]), dim=1) for tau in taus]
        base_px = self.objects.base_px(self.rule.base_position)
        columns = (base_px, torch.ones(count), self.objects.classes, self.objects.anchors)
        repeated = (column.repeat(len(taus), *[1] * (column.dim() - 1)) for column in columns)
        found = orientation_masks(
            *(maps, torch.tensor(self.rule.anchors_px).float(), Detections(torch.cat(scaled), *repeated)),
            input_size=self.inner.size,
            output_size=self.inner.output_size,
            tau=1.0,
            budget_mb=BUDGET_MB,
        )
        parts = (found.rles[first : first + count] for first in range(0, len(found.rles), count))
        return [self.inner.to_image(RLEMasks(part, self.inner.output_size)) for part in parts]


def assign(masks: Tensor, inner: NetworkInput, setting: Setting) -> Painting:
    """Gives objects their anchors.

    Args:
        masks: (M, H, W) bool, each with a pixel.
        inner: their network's input.
        setting: anchors, base and valid area.
    """
    rule, size = setting.rule(), inner.padded_size
    instances = Instances(inner.size)
    instances.gt_boxes = Boxes(mask_boxes(masks))
    # Classes decide on no mask.
    instances.gt_classes = torch.zeros(len(masks), dtype=torch.int64)
    instances.gt_masks = BitMasks(masks)
    objects = assign_anchors([instances], [(size[0] // step, size[1] // step) for step in rule.strides], rule)
    return Painting(objects, instances, rule, inner)


def stride_4_maps(targets: OrientationTargets, num_anchors: int) -> Tensor:
    """(2 A, H / 4, W / 4) maps whose cells hold the mean of their pixels' targets.

    Pixels without a target, whose vectors are 0, do not count. Cells without a target are 0, which a network is free to
    say there.
    """
    height, width = (side // MAP_STRIDE for side in targets.is_positive.shape[1:])
    shares = soft_masks([targets.is_positive | targets.is_negative], (height, width))
    # Rows first, whose sum is one of neighbours in memory.
    sums = targets.vectors.unflatten(2, (height, MAP_STRIDE)).sum(dim=3).unflatten(3, (width, MAP_STRIDE)).sum(dim=4)
    maps = torch.zeros(num_anchors, 2, height, width)
    maps[targets.anchor] = (sums / (shares * MAP_STRIDE**2).clamp(min=1)).transpose(0, 1)
    return maps.flatten(0, 1)
