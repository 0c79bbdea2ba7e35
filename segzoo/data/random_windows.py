"""Augmentations that choose what is seen of an image and where: random crops, and random places on a canvas.

Shape shorthand:
    M: instances.
"""

from __future__ import annotations

import math

import numpy as np
from detectron2.config import CfgNode
from fvcore.transforms.transform import NoOpTransform, Transform, TransformList

from segzoo.data.transforms import DEFAULT_RESAMPLING, Resampling, ResizeTransform, WindowTransform
from segzoo.errors import ConfigError


class RandomCrop:
    """Crops at random, so that a share `min_area` of the image and of every object's box stays at least.

    Each of the four borders moves inwards on its own and leaves at least a share min_area ** (1 / 4) of the side that
    it finds, the image's and every box's: both borders of a side leave sqrt(min_area) of it, all four min_area. (For
    OrienMask's 64 % these are sqrt(0.8), 0.8 and 0.64.) Left and top are drawn first, uniformly among the whole pixels
    within their bounds; right and bottom then, bound by what left and top have left over.

    Five numbers are drawn whatever happens: whether to crop, left, top, right, bottom.

    Args:
        prob: probability of a crop.
        min_area: share of the area that stays, above 0.

    Raises:
        ConfigError: names the key and its value.
    """

    def __init__(self, prob: float, min_area: float) -> None:
        _check_range("INPUT.RANDOM_CROP.PROB", prob, 0, 1)
        if not 0 < min_area <= 1:
            raise ConfigError(f"INPUT.RANDOM_CROP.MIN_AREA is {min_area}", "use a share above 0, at most 1")
        self.prob, self.min_area = prob, min_area

    def get_transform(self, image: np.ndarray, rng: np.random.Generator, boxes: np.ndarray | None = None) -> Transform:
        """A crop, or nothing."""
        height, width = image.shape[:2]
        chance, *places = rng.random(5)
        if chance >= self.prob:
            return NoOpTransform()
        size = (width, height)
        whole = np.array([[0, 0, width, height]], dtype=np.float64)
        # What a box has outside of the image is lost already.
        kept = whole if boxes is None else np.concatenate([whole, np.clip(boxes, 0, [*size, *size])])
        first, last = kept[:, :2], kept[:, 2:]
        share = self.min_area**0.25
        left, top = (
            _whole_number(place, 0, max(math.floor(bound), 0))
            for place, bound in zip(places[:2], (last - share * (last - first)).min(axis=0), strict=True)
        )
        first = np.clip(first, [left, top], None)
        right, bottom = (
            _whole_number(place, min(math.ceil(bound), side), side)
            for place, bound, side in zip(places[2:], (first + share * (last - first)).max(axis=0), size, strict=True)
        )
        return WindowTransform(height, width, left, top, bottom - top, right - left)


class ResizeOntoCanvas:
    """Resizes to a fixed size: the image warped, or at a random scale and place on a canvas of one colour.

    With probability `warp_prob` the image fills the canvas, its ratio of width to height not kept. Else its width and
    its height are each multiplied by 1 + U(-aspect_jitter, aspect_jitter), which gives its new ratio; it gets the
    largest size of this ratio that fits the canvas, times 1 - U(0, max_shrink) with probability `shrink_prob`; and
    its corner is drawn uniformly among the whole pixels where it fits.

    Seven numbers are drawn whatever happens: whether to warp, jitter of width and height, whether to shrink and how
    much, left, top.

    Args:
        size: (height, width) of the canvas, px.
        warp_prob, aspect_jitter, shrink_prob, max_shrink: see above.
        fill: colour of the canvas, in the order of the image's channels.
        resampling: where new pixels come from.

    Raises:
        ConfigError: names the key and its value.
    """

    def __init__(
        self,
        size: tuple[int, int],
        warp_prob: float,
        aspect_jitter: float,
        shrink_prob: float,
        max_shrink: float,
        fill: tuple[int, int, int],
        resampling: Resampling = DEFAULT_RESAMPLING,
    ) -> None:
        _check_range("INPUT.CANVAS.WARP_PROB", warp_prob, 0, 1)
        _check_range("INPUT.CANVAS.SHRINK_PROB", shrink_prob, 0, 1)
        for key, value in (("ASPECT_JITTER", aspect_jitter), ("MAX_SHRINK", max_shrink)):
            if not 0 <= value < 1:
                raise ConfigError(f"INPUT.CANVAS.{key} is {value}", "use 0 (none) or a share below 1")
        self.size, self.fill, self.resampling = size, fill, resampling
        self.warp_prob, self.aspect_jitter = warp_prob, aspect_jitter
        self.shrink_prob, self.max_shrink = shrink_prob, max_shrink

    def get_transform(self, image: np.ndarray, rng: np.random.Generator, boxes: np.ndarray | None = None) -> Transform:
        """A resize, or a resize and a placement."""
        height, width = image.shape[:2]
        warp_chance, *jitters, shrink_chance, shrink, left, top = rng.random(7)
        if warp_chance < self.warp_prob:
            return ResizeTransform(height, width, *self.size, self.resampling)
        wide, high = (
            side * (1 + self.aspect_jitter * (2 * jitter - 1))
            for side, jitter in zip((width, height), jitters, strict=True)
        )
        scale = min(self.size[0] / high, self.size[1] / wide)
        if shrink_chance < self.shrink_prob:
            scale *= 1 - self.max_shrink * shrink
        new_height, new_width = max(round(high * scale), 1), max(round(wide * scale), 1)
        x, y = (_whole_number(left, 0, self.size[1] - new_width), _whole_number(top, 0, self.size[0] - new_height))
        resize = ResizeTransform(height, width, new_height, new_width, self.resampling)
        return TransformList([resize, WindowTransform(new_height, new_width, -x, -y, *self.size, self.fill)])

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """The canvas's (height, width)."""
        return self.size


def build_random_crop(cfg: CfgNode) -> RandomCrop:
    """The crop of cfg.INPUT.RANDOM_CROP.

    Raises:
        ConfigError: an impossible value.
    """
    return RandomCrop(cfg.INPUT.RANDOM_CROP.PROB, cfg.INPUT.RANDOM_CROP.MIN_AREA)


def build_canvas(cfg: CfgNode, size: tuple[int, int], resampling: Resampling) -> ResizeOntoCanvas:
    """The resize of cfg.INPUT.CANVAS to `size` (height, width) px.

    Raises:
        ConfigError: an impossible value.
    """
    keys = cfg.INPUT.CANVAS
    color = tuple(keys.PAD_RGB)
    if len(color) != 3 or not all(isinstance(value, int | float) and 0 <= value <= 255 for value in color):
        raise ConfigError(f"INPUT.CANVAS.PAD_RGB is {color}", "use three numbers from 0 to 255: red, green, blue")
    red, green, blue = (round(value) for value in color)
    fill = (blue, green, red) if cfg.INPUT.FORMAT == "BGR" else (red, green, blue)
    return ResizeOntoCanvas(
        size, keys.WARP_PROB, keys.ASPECT_JITTER, keys.SHRINK_PROB, keys.MAX_SHRINK, fill, resampling
    )


def _whole_number(place: float, low: int, high: int) -> int:
    """The whole number from `low` to `high`, inclusive, at `place` in [0, 1)."""
    return low + int(place * (high - low + 1))


def _check_range(key: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{key} is {value}", f"use {low:g} to {high:g}")
