"""How objects get into a network's input, and their masks back to the image, as the method's recipe does it.

Shape shorthand: M objects of an image, m of them drawn, H, W size of the network's input in pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from fvcore.transforms.transform import NoOpTransform, TransformList
from pycocotools import mask as coco_mask
from torch import Tensor

from projects import get_cfg
from projects.upper_bound.objects import ImageObjects
from segzoo.data.augmentation import Resize, ResizeFixed, ResizeShortestEdge
from segzoo.data.centering import CenterInside, results_entry
from segzoo.data.drawing import draw_instances
from segzoo.geometry.crop import crop_masks
from segzoo.geometry.polygons import empty_rle
from segzoo.geometry.rle import RLEMasks

# What the recipes in configs/ test with: FCOSIS and Mask R-CNN, OrienMask, CenterMask; a test compares them.
SHORTEST_EDGE = ResizeShortestEdge((800,), 1333)
WARPED = ResizeFixed((544, 544))
CENTERED = CenterInside((512, 512))
# Pixels of full-size masks that are drawn at once; bounds the memory of a process to some 100 MB.
CHUNK_PIXELS = 16_000_000
# A network sees its input padded to a multiple of this.
DIVISOR = 32


@functools.lru_cache
def settings_of(method: str) -> CfgNode:
    """The defaults of MODEL.<method>, those of the papers' models; shared, so never change them."""
    return get_cfg().MODEL[method]


class NetworkInput(NamedTuple):
    """Where an image lies in a network's input.

    transforms: from the image to the input. size: (H, W) without padding. output_size: (height, width) px at which
    masks come out. window: (x0, y0, x1, y1) px of the image in that, or None: it is the image.
    """

    transforms: TransformList
    size: tuple[int, int]
    output_size: tuple[int, int]
    window: tuple[int, int, int, int] | None

    @property
    def padded_size(self) -> tuple[int, int]:
        """(height, width) px of the input with its padding at the right and the bottom."""
        height, width = (-(-side // DIVISOR) * DIVISOR for side in self.size)
        return height, width

    def to_image(self, masks: RLEMasks) -> RLEMasks:
        """Masks of `output_size` at the image's size."""
        return masks if self.window is None else crop_masks(masks, self.window)


class Drawn(NamedTuple):
    """Objects in a network's input: those that have a pixel there.

    masks: (m, H, W) bool, without padding. places: (m,) int64 index of each among the M objects.
    """

    masks: Tensor
    places: Tensor


def network_input(image_size: tuple[int, int], resize: Resize | None) -> NetworkInput:
    """Where an image of (height, width) px lies after a resize of the recipes; None leaves it as it is."""
    height, width = image_size
    if resize is None:
        return NetworkInput(TransformList([NoOpTransform()]), image_size, image_size, None)
    # A view of one pixel: only the size is looked at.
    pixels = np.broadcast_to(np.zeros(3, np.uint8), (height, width, 3))
    step = resize.get_transform(pixels, np.random.default_rng(0))
    entry = results_entry(resize, height, width)
    output_size = (entry["height"], entry["width"])
    return NetworkInput(TransformList([step]), resize.output_size(height, width), output_size, entry.get("window"))


def describe_input(resize: Resize | None) -> str:
    """The input's size in words, for the report."""
    if resize is None:
        return "the image's own size"
    if isinstance(resize, ResizeShortestEdge):
        return f"{resize.sizes[0]}/{resize.max_size}"
    assert isinstance(resize, ResizeFixed | CenterInside)
    how = "warped" if isinstance(resize, ResizeFixed) else "centred"
    return f"{resize.size[0]} x {resize.size[1]}, {how}"


def draw_objects(image: ImageObjects, inner: NetworkInput, chosen: slice = slice(None)) -> Drawn:
    """The masks of chosen objects in the network's input, moved by the mapper's rule for run lengths."""
    places = range(len(image.rles))[chosen]
    # The mapper leaves out what has lost its last pixel: the number in the class's place says which stay.
    annotations: list[dict[str, Any]] = [
        {"id": place, "segmentation": image.rles[place], "category_id": place} for place in places
    ]
    record = {"height": image.size[0], "width": image.size[1], "file_name": "", "image_id": image.image_id}
    instances, _ = draw_instances(annotations, inner.transforms, record, inner.size)
    return Drawn(instances.gt_masks.tensor, instances.gt_classes)


def draw_in_chunks(image: ImageObjects, inner: NetworkInput) -> Iterator[Drawn]:
    """`draw_objects` of all objects, as many at once as CHUNK_PIXELS allow, at least one."""
    step = max(1, CHUNK_PIXELS // max(inner.size[0] * inner.size[1], 1))
    for start in range(0, len(image.rles), step):
        drawn = draw_objects(image, inner, slice(start, start + step))
        if len(drawn.places):
            yield drawn


class MaskList:
    """The best masks of an image's M objects of all that are offered, in any order; empty where none is.

    What a network has to say for a mask is not always known, and a bound needs the best of it: several answers may be
    tried. rles: M compressed run lengths. ious: (M,) their IoU with the objects.
    """

    def __init__(self, image: ImageObjects) -> None:
        self.truth = image.rles
        self.rles = [empty_rle(*image.size)] * len(image.rles)
        self.ious = np.zeros(len(image.rles))

    def offer(self, places: Tensor, masks: RLEMasks) -> None:
        """Masks of the objects at (m,) places; each stays if it is better than all before."""
        for place, rle in zip(places.tolist(), masks.rles, strict=True):
            # One by one: of all pairs of an image only these matter.
            self._offer(place, rle, float(coco_mask.iou([rle], [self.truth[place]], [0])[0, 0]))

    def offer_all(self, other: MaskList) -> None:
        """The masks of another list of the same image: this one's representation can show whatever that one's can."""
        for place, (rle, iou) in enumerate(zip(other.rles, other.ious, strict=True)):
            self._offer(place, rle, iou)

    def _offer(self, place: int, rle: dict, iou: float) -> None:
        if iou > self.ious[place]:
            self.rles[place], self.ious[place] = rle, iou


def logits_of(shares: Tensor, least_probability: float) -> Tensor:
    """What a network has to say for its probabilities to be shares of 0 to 1, which are kept `least_probability` away
    from both ends."""
    return torch.logit(shares.clamp(least_probability, 1 - least_probability))
