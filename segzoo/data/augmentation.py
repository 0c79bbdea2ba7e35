"""Augmentations: each draws its parameters from the sample's own generator and returns a transform.

They never touch a global random state, so that a sample depends on nothing but its place in the stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from detectron2.config import CfgNode
from fvcore.transforms.transform import NoOpTransform, Transform

from segzoo.data.centering import CenterInside, CenterUnscaled
from segzoo.data.colors import ColorJitter
from segzoo.data.random_windows import ResizeOntoCanvas, build_canvas, build_random_crop
from segzoo.data.transforms import (
    DEFAULT_RESAMPLING,
    FlipTransform,
    Resampling,
    ResizeTransform,
)
from segzoo.data.warps import RandomWarp, build_warp
from segzoo.errors import ConfigError


class Augmentation(Protocol):
    """What the mapper asks of an augmentation."""

    def get_transform(self, image: np.ndarray, rng: np.random.Generator, boxes: np.ndarray | None = None) -> Transform:
        """The transform of `image` (H, W, 3) uint8, its parameters drawn from `rng`.

        `boxes` (M, 4) are those of the image's objects without crowds, xyxy px; None = none are known.
        """


class ResizeShortestEdge:
    """Resizes to a shortest edge, keeping the ratio, unless the longest edge then exceeds `max_size` px.

    Args:
        sizes: lengths to choose from, or (low, high), inclusive, if `sampling` is "range"; px. 0 = no resize.
        max_size: px; 0 = no limit.
        sampling: "choice" or "range".
        resampling: where new pixels come from.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        max_size: int,
        sampling: str = "choice",
        resampling: Resampling = DEFAULT_RESAMPLING,
    ) -> None:
        if sampling not in ("choice", "range"):
            raise ConfigError(f"INPUT.MIN_SIZE_TRAIN_SAMPLING is {sampling!r}", "use 'choice' or 'range'")
        if not sizes or (sampling == "range" and (len(sizes) != 2 or sizes[0] > sizes[1])):
            raise ConfigError(
                f"INPUT.MIN_SIZE_TRAIN is {tuple(sizes)} with sampling {sampling!r}", "range: (low, high)"
            )
        if min(sizes) < 0 or max_size < 0:
            raise ConfigError(f"INPUT.MIN_SIZE {tuple(sizes)}, MAX_SIZE {max_size} must not be negative")
        self.sizes, self.max_size, self.sampling = tuple(sizes), max_size, sampling
        self.resampling = resampling

    def get_transform(self, image: np.ndarray, rng: np.random.Generator, boxes: np.ndarray | None = None) -> Transform:
        """A resize to a drawn shortest edge."""
        if self.sampling == "range":
            shortest_edge = int(rng.integers(self.sizes[0], self.sizes[1] + 1))
        else:
            shortest_edge = self.sizes[int(rng.integers(len(self.sizes)))]
        height, width = image.shape[:2]
        new_height, new_width = shortest_edge_size(height, width, shortest_edge, self.max_size)
        return ResizeTransform(height, width, new_height, new_width, self.resampling)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) after the resize, for a single configured size."""
        return shortest_edge_size(height, width, self.sizes[0], self.max_size)


class ResizeFixed:
    """Resizes to (height, width) px; the ratio is not kept."""

    def __init__(self, size: tuple[int, int], resampling: Resampling = DEFAULT_RESAMPLING) -> None:
        self.size, self.resampling = _checked_size(size), resampling

    def get_transform(self, image: np.ndarray, rng: np.random.Generator, boxes: np.ndarray | None = None) -> Transform:
        """The resize; nothing is drawn."""
        return ResizeTransform(*_size_of(image), *self.size, self.resampling)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """The fixed (height, width)."""
        return self.size


class ResizeInside:
    """Resizes to the largest size that fits into (height, width) px with the ratio kept: a letterbox.

    The padding at the right and the bottom is added when images are batched (the mapper hands on "pad_to"), so that
    results map back to the original image by the content's size alone.
    """

    def __init__(self, size: tuple[int, int], resampling: Resampling = DEFAULT_RESAMPLING) -> None:
        self.size, self.resampling = _checked_size(size), resampling

    def get_transform(self, image: np.ndarray, rng: np.random.Generator, boxes: np.ndarray | None = None) -> Transform:
        """The resize; nothing is drawn."""
        return ResizeTransform(*_size_of(image), *self.output_size(*_size_of(image)), self.resampling)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the content, without the padding."""
        scale = min(self.size[0] / height, self.size[1] / width)
        return _scaled_size(height, width, scale)


class RandomFlip:
    """Mirrors with probability one half."""

    def __init__(self, is_horizontal: bool = True) -> None:
        self.is_horizontal = is_horizontal

    def get_transform(self, image: np.ndarray, rng: np.random.Generator, boxes: np.ndarray | None = None) -> Transform:
        """A flip, or nothing."""
        if rng.random() < 0.5:
            return FlipTransform(*_size_of(image), self.is_horizontal)
        return NoOpTransform()


def shortest_edge_size(height: int, width: int, shortest_edge: int, max_size: int) -> tuple[int, int]:
    """Detectron2's rule for the new (height, width), px; never below 1. A `shortest_edge` of 0 changes nothing."""
    if shortest_edge == 0:
        return height, width
    scale = shortest_edge / min(height, width)
    if max_size and max(height, width) * scale > max_size:
        scale = max_size / max(height, width)
    return _scaled_size(height, width, scale)


Resize = ResizeShortestEdge | ResizeFixed | ResizeInside | CenterInside | CenterUnscaled | ResizeOntoCanvas | RandomWarp
# INPUT.RESIZE and what training may do instead.
RESIZES = ("shortest_edge", "fixed", "letterbox", "fix_res", "keep_res")
TRAIN_RESIZES = ("", "canvas", "warp")


def build_resize(cfg: CfgNode, is_train: bool) -> Resize:
    """The resize of cfg.INPUT.RESIZE, or in training that of cfg.INPUT.RESIZE_TRAIN where it is given.

    Raises:
        ConfigError: an unknown mode or rule, or impossible sizes.
    """
    mode, resampling = cfg.INPUT.RESIZE, build_resampling(cfg)
    if cfg.INPUT.RESIZE_TRAIN not in TRAIN_RESIZES:
        raise ConfigError(
            f"INPUT.RESIZE_TRAIN is {cfg.INPUT.RESIZE_TRAIN!r}", "use '' (as INPUT.RESIZE), 'canvas' or 'warp'"
        )
    if mode not in RESIZES:
        raise ConfigError(f"INPUT.RESIZE is {mode!r}", f"use one of {', '.join(map(repr, RESIZES))}")
    if is_train and cfg.INPUT.RESIZE_TRAIN:
        build = build_canvas if cfg.INPUT.RESIZE_TRAIN == "canvas" else build_warp
        return build(cfg, _checked_size(tuple(cfg.INPUT.FIXED_SIZE)), resampling)
    if mode == "fixed":
        return ResizeFixed(tuple(cfg.INPUT.FIXED_SIZE), resampling)
    if mode == "letterbox":
        return ResizeInside(tuple(cfg.INPUT.FIXED_SIZE), resampling)
    if mode == "fix_res":
        return CenterInside(_checked_size(tuple(cfg.INPUT.FIXED_SIZE)), resampling)
    if mode == "keep_res":
        return CenterUnscaled(cfg.INPUT.KEEP_RES_MULTIPLE)
    if is_train:
        sizes = cfg.INPUT.MIN_SIZE_TRAIN
        sizes = (sizes,) if isinstance(sizes, int) else sizes
        return ResizeShortestEdge(sizes, cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING, resampling)
    return ResizeShortestEdge((cfg.INPUT.MIN_SIZE_TEST,), cfg.INPUT.MAX_SIZE_TEST, resampling=resampling)


def build_resampling(cfg: CfgNode) -> Resampling:
    """Where resized images (cfg.INPUT.RESAMPLING) and masks (cfg.INPUT.RASTERIZE) take their pixels from.

    Raises:
        ConfigError: an unknown value.
    """
    if cfg.INPUT.RESAMPLING not in ("pillow", "opencv"):
        raise ConfigError(f"INPUT.RESAMPLING is {cfg.INPUT.RESAMPLING!r}", "use 'pillow' or 'opencv'")
    if cfg.INPUT.RASTERIZE not in ("after", "before"):
        raise ConfigError(f"INPUT.RASTERIZE is {cfg.INPUT.RASTERIZE!r}", "use 'after' or 'before'")
    return Resampling(cfg.INPUT.RESAMPLING, "opencv" if cfg.INPUT.RASTERIZE == "before" else "center")


def build_augmentations(cfg: CfgNode, is_train: bool) -> list[Augmentation]:
    """The augmentations of the config in their order: the resize; in training colour jitter, crop, resize, flip.

    Colours come first, so that they change the image alone and not what is put around it.

    Raises:
        ConfigError: names the INPUT key and its value.
    """
    resize = build_resize(cfg, is_train)
    if not is_train:
        return [resize]
    augmentations: list[Augmentation] = []
    jitter = cfg.INPUT.COLOR_JITTER
    color = ColorJitter(
        jitter.BRIGHTNESS, jitter.CONTRAST, jitter.SATURATION, jitter.HUE, cfg.INPUT.FORMAT, jitter.LIGHTING
    )
    if color.is_on:
        augmentations.append(color)
    crop = build_random_crop(cfg)
    if crop.prob > 0:
        augmentations.append(crop)
    augmentations.append(resize)
    flip = cfg.INPUT.RANDOM_FLIP
    if flip not in ("none", "horizontal", "vertical"):
        raise ConfigError(f"INPUT.RANDOM_FLIP is {flip!r}", "use 'none', 'horizontal' or 'vertical'")
    if flip != "none":
        augmentations.append(RandomFlip(flip == "horizontal"))
    return augmentations


def _size_of(image: np.ndarray) -> tuple[int, int]:
    return image.shape[0], image.shape[1]


def _scaled_size(height: int, width: int, scale: float) -> tuple[int, int]:
    return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)


def _checked_size(size: tuple[int, int]) -> tuple[int, int]:
    if len(size) != 2 or min(size) < 1:
        raise ConfigError(f"INPUT.FIXED_SIZE is {tuple(size)}", "use (height, width) in pixels")
    return int(size[0]), int(size[1])
