"""CenterMask's representation: S x S shapes in boxes, times a saliency at stride 4 that is right everywhere.

The paper trains the product of both, so that what each has to be is not written down. Where an edge runs through a cell
of both maps, the product of the two shares of that cell would be far too small; here each is the root of its share, and
the product is the share where the two agree. Alone, a map holds its shares.

Shape shorthand: M objects of an image, m of a chunk, S side of a shape, k classes of the image, H, W of the
stride-4 map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from centermask.assembly import assemble_masks
from centermask.maps import MAP_STRIDE
from centermask.targets import Objects, collect_objects
from centermask.unions import union_masks
from projects.upper_bound.inputs import (
    MaskList,
    NetworkInput,
    describe_input,
    draw_in_chunks,
    logits_of,
    network_input,
    settings_of,
)
from projects.upper_bound.objects import ImageObjects
from projects.upper_bound.rows import Row
from segzoo.data.augmentation import Resize
from segzoo.geometry.masks import mask_boxes
from segzoo.geometry.soft_masks import soft_masks

METHOD = "CenterMask"
BOTH, SHAPE, SALIENCY = "shape x saliency", "shape alone", "saliency alone"
# Probabilities of shapes and saliency stay this far from 0 and 1.
LEAST_PROBABILITY = 1e-3
BUDGET_MB = 64.0


@dataclass(frozen=True)
class ShapeGroup:
    """Shapes and saliency in the network's input, decoded with the paper's threshold.

    sides: numbers S. resize: into the network's input; None = the image's own size.
    """

    sides: Sequence[int]
    resize: Resize | None

    @property
    def rows(self) -> list[Row]:
        """Every S with the saliency and alone, and the saliency alone."""
        described = describe_input(self.resize)
        shaped = [
            Row(METHOD, f"S = {side}, {what}", described, {"shape_size": side, "what": what})
            for what in (BOTH, SHAPE)
            for side in self.sides
        ]
        return [*shaped, Row(METHOD, SALIENCY, described, {"what": SALIENCY})]

    def masks(self, image: ImageObjects) -> list[MaskList]:
        """The masks of an image's objects, row by row."""
        inner, rows = network_input(image.size, self.resize), self.rows
        found = [MaskList(image) for _ in rows]
        channels = torch.from_numpy(np.unique(image.categories, return_inverse=True)[1])
        unions = perfect_saliency(image, inner, channels)
        for masks, places in draw_in_chunks(image, inner):
            objects = _targets(masks, channels[places], inner)
            boxes = objects.boxes * MAP_STRIDE
            kept = places[objects.order]
            for row, target in zip(rows, found, strict=True):
                what = row.settings["what"]
                shapes, saliency = None, None if what == SHAPE else unions
                if what != SALIENCY:
                    shapes = shape_shares(masks[objects.order], boxes, int(row.settings["shape_size"]))
                own = assemble_masks(
                    *(*_logits(shapes, saliency), boxes, channels[kept]),
                    input_size=inner.size,
                    output_size=inner.output_size,
                    threshold=settings_of("CENTERMASK").MASK_THRESH,
                    budget_mb=BUDGET_MB,
                )
                target.put(kept, inner.to_image(own))
        return found


def perfect_saliency(image: ImageObjects, inner: NetworkInput, channels: Tensor) -> Tensor:
    """(k, H, W) share of each cell that objects of a class cover: the target of the direct supervision."""
    size = (inner.padded_size[0] // MAP_STRIDE, inner.padded_size[1] // MAP_STRIDE)
    num_classes = int(channels.max()) + 1
    total = torch.zeros(num_classes, *size)
    for masks, places in draw_in_chunks(image, inner):
        shares, own = soft_masks([masks], size), channels[places]
        total += union_masks(shares, torch.zeros_like(own), own, 1, num_classes)[0]
    return total.clamp_(max=1)


def _targets(masks: Tensor, classes: Tensor, inner: NetworkInput) -> Objects:
    """The objects and boxes that training asks for: these end where the map's last cell begins."""
    size = inner.padded_size
    sample = Instances(inner.size, gt_boxes=Boxes(mask_boxes(masks)), gt_classes=classes)
    return collect_objects([sample], (size[0] // MAP_STRIDE, size[1] // MAP_STRIDE), len(masks))[0]


def _logits(shapes: Tensor | None, saliency: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Logits of shares, or of their roots where both are there."""
    power = 1.0 if shapes is None or saliency is None else 0.5
    first, second = (None if x is None else logits_of(x**power, LEAST_PROBABILITY) for x in (shapes, saliency))
    return first, second


def shape_shares(masks: Tensor, boxes: Tensor, side: int) -> Tensor:
    """(m, S, S) share of set pixels in the cells of a grid laid over each box, exact where cells cut pixels.

    Args:
        masks: (m, H, W) bool.
        boxes: (m, 4) xyxy px, whole numbers with an area.
        side: S.
    """
    shares = masks.new_zeros(len(masks), side, side, dtype=torch.float32)
    for index, (x0, y0, x1, y1) in enumerate(boxes.round().int().tolist()):
        crop = masks[index, y0:y1, x0:x1].float()
        shares[index] = cell_weights(y1 - y0, side) @ crop @ cell_weights(x1 - x0, side).T
    return shares


def cell_weights(length: int, side: int) -> Tensor:
    """(S, length) share of each of S equal cells of a line that each of its `length` pixels takes."""
    ends = torch.arange(side + 1, dtype=torch.float64) * (length / side)
    pixels = torch.arange(length, dtype=torch.float64)
    overlap = torch.minimum(ends[1:, None], pixels + 1) - torch.maximum(ends[:-1, None], pixels)
    return (overlap.clamp(min=0) * (side / length)).float()
