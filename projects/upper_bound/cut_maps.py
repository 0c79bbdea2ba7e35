"""FCOSIS's representation, stride-4 maps cut by boxes, and the 28 x 28 masks in boxes of Mask R-CNN and MaskFCOS.

Shape shorthand: M objects of an image, m of a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fcosis.fcosis import MASK_THRESHOLD
from fcosis.masks import cut_masks
from projects.upper_bound.inputs import (
    MaskList,
    describe_input,
    draw_in_chunks,
    logits_of,
    network_input,
)
from projects.upper_bound.objects import ImageObjects
from projects.upper_bound.rows import Row
from projects.upper_bound.shapes import shape_shares
from segzoo.data.augmentation import Resize
from segzoo.geometry.masks import mask_boxes
from segzoo.geometry.paste import paste_as_rle
from segzoo.geometry.soft_masks import MASK_STRIDE, soft_masks
from segzoo.modeling.fcos.decode import output_scale
from segzoo.modeling.shared_masks import SharedMasks

# Probabilities of the stride-4 map stay this far from 0 and 1.
LEAST_PROBABILITY = 1e-3
BUDGET_MB = 64.0
# Side of a small mask: twice MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION.
BOX_MASK_SIZE = 28
BOX_MASK_METHOD, BINARY = "Mask R-CNN, MaskFCOS", "binary as its targets"


@dataclass(frozen=True)
class CutMapGroup:
    """A map of every object, as a pass of the segmentation for it alone would give.

    resize: into the network's input; None = the image's own size.
    """

    resize: Resize | None

    @property
    def rows(self) -> list[Row]:
        """One."""
        return [Row("FCOSIS", "stride-4 map cut by the box", describe_input(self.resize), {"stride": MASK_STRIDE})]

    def masks(self, image: ImageObjects) -> list[MaskList]:
        """The masks of an image's objects."""
        inner, found = network_input(image.size, self.resize), MaskList(image)
        map_size = (inner.padded_size[0] // MASK_STRIDE, inner.padded_size[1] // MASK_STRIDE)
        for masks, places in draw_in_chunks(image, inner):
            own = cut_masks(
                logits_of(soft_masks([masks], map_size), LEAST_PROBABILITY),
                torch.arange(len(masks)),
                mask_boxes(masks),
                input_size=inner.size,
                output_size=inner.output_size,
                threshold=MASK_THRESHOLD,
                budget_mb=BUDGET_MB,
            )
            found.offer(places, inner.to_image(own))
        return [found]


@dataclass(frozen=True)
class BoxMaskGroup:
    """Small masks of probabilities, pasted into their boxes: the share of each cell, and the branch's binary targets.

    A branch is trained towards targets of 0 and 1, but where it cannot tell it learns the share of the cell, and it may
    say either: the first row has the better of both.

    resize: into the network's input; None = the image's own size.
    """

    resize: Resize | None

    @property
    def rows(self) -> list[Row]:
        """The better of both, and the binary targets alone."""
        title, described = f"{BOX_MASK_SIZE} x {BOX_MASK_SIZE} mask in the box", describe_input(self.resize)
        return [
            Row(BOX_MASK_METHOD, title, described, {"mask_size": BOX_MASK_SIZE, "values": "best"}),
            Row(
                BOX_MASK_METHOD,
                f"{title}, {BINARY}",
                described,
                {"mask_size": BOX_MASK_SIZE, "values": "binary"},
                is_method=False,
            ),
        ]

    def masks(self, image: ImageObjects) -> list[MaskList]:
        """The masks of an image's objects, row by row."""
        inner, best, binary = network_input(image.size, self.resize), MaskList(image), MaskList(image)
        scale = output_scale(inner.size, inner.output_size, torch.device("cpu")).repeat(2)
        for masks, places in draw_in_chunks(image, inner):
            boxes = mask_boxes(masks)
            shares = shape_shares(masks, boxes, BOX_MASK_SIZE)
            targets = SharedMasks(masks).crop_and_resize(boxes, BOX_MASK_SIZE).float()
            for values, target in ((shares, best), (targets, binary)):
                own = paste_as_rle(values, boxes * scale, inner.output_size, budget_mb=BUDGET_MB)
                target.offer(places, inner.to_image(own))
        best.offer_all(binary)
        return [best, binary]
