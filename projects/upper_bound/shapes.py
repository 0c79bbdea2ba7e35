"""CenterMask's representation: S x S shapes in boxes, times a saliency at stride 4 that is right everywhere.

The paper trains the product of both, so that what each has to be is not written down. Several answers are tried, and
each object has the best: one of the two alone, the other being 1 in the box, with the share of each cell that is set,
plain or moved so that half a cell lies on the threshold; and both together, each the root of its moved share, as an
edge that runs through cells of both would have a product of shares that is far too small.

Shape shorthand: M objects of an image, m of a chunk, S side of a shape, k classes of the image, H, W of the
stride-4 map.
"""

from __future__ import annotations

import functools
import math
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
from segzoo.geometry.rle import RLEMasks
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
        """Every S with the saliency; to explain it, every S alone and the saliency alone."""
        described = describe_input(self.resize)
        shaped = [
            Row(METHOD, f"S = {side}, {what}", described, {"shape_size": side, "what": what}, is_method=what == BOTH)
            for what in (BOTH, SHAPE)
            for side in self.sides
        ]
        return [*shaped, Row(METHOD, SALIENCY, described, {"what": SALIENCY}, is_method=False)]

    def masks(self, image: ImageObjects) -> list[MaskList]:
        """The masks of an image's objects, row by row."""
        inner = network_input(image.size, self.resize)
        both, alone = ([MaskList(image) for _ in self.sides] for _ in (BOTH, SHAPE))
        saliency_alone = MaskList(image)
        channels = torch.from_numpy(np.unique(image.categories, return_inverse=True)[1])
        unions = perfect_saliency(image, inner, channels)
        for masks, places in draw_in_chunks(image, inner):
            objects = _targets(masks, channels[places], inner)
            kept = places[objects.order]
            boxes = objects.boxes * MAP_STRIDE
            decode = functools.partial(_decode, boxes, channels[kept], inner)
            for logits in logits_alone(unions):
                saliency_alone.offer(kept, decode(None, logits))
            for side, with_saliency, without in zip(self.sides, both, alone, strict=True):
                shapes = shape_shares(masks[objects.order], boxes, side)
                for logits in logits_alone(shapes):
                    without.offer(kept, decode(logits, None))
                with_saliency.offer(kept, decode(root_logits(shapes), root_logits(unions)))
        for with_saliency, without in zip(both, alone, strict=True):
            # With the other map at 1 everywhere, each alone is a case of both.
            with_saliency.offer_all(without)
            with_saliency.offer_all(saliency_alone)
        return [*both, *alone, saliency_alone]


def _decode(
    boxes: Tensor, channels: Tensor, inner: NetworkInput, shapes: Tensor | None, saliency: Tensor | None
) -> RLEMasks:
    """Masks at the image's size, from logits."""
    found = assemble_masks(
        *(shapes, saliency, boxes, channels),
        input_size=inner.size,
        output_size=inner.output_size,
        threshold=_threshold(),
        budget_mb=BUDGET_MB,
    )
    return inner.to_image(found)


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


def _threshold() -> float:
    return settings_of("CENTERMASK").MASK_THRESH


def logits_alone(shares: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of shares; and moved, so that half a cell is as probable as the threshold asks for."""
    plain = logits_of(shares, LEAST_PROBABILITY)
    return plain, plain + math.log(_threshold() / (1 - _threshold()))


def root_logits(shares: Tensor) -> Tensor:
    """Logits of the roots of moved shares: the product of two that agree is the moved share."""
    return logits_of(logits_alone(shares)[1].sigmoid().sqrt(), LEAST_PROBABILITY)


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
