"""Deterministic transforms of an image and of what is drawn on it, on fvcore's Transform interface.

Coordinates are continuous: pixel (row r, column c) covers [c, c + 1) x [r, r + 1), so that a resize multiplies them by
new / old on each axis, and nothing is added or subtracted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import cv2
import numpy as np
from fvcore.transforms.transform import NoOpTransform, Transform
from PIL import Image

# In `sources`: the new row or column lies outside of the old image, and belongs to no mask.
NOWHERE = -1
_GREY_WEIGHTS_RGB = np.array([0.299, 0.587, 0.114], dtype=np.float32)


@dataclass(frozen=True)
class Resampling:
    """Where a resize takes its pixels from.

    Attributes:
        image: "pillow", bilinear, averaging when it shrinks, as Detectron2 does; or "opencv", cv2.INTER_LINEAR, the
            four neighbours of each new pixel's centre, however much it shrinks.
        mask: "center", the pixel that holds the centre of each new pixel (see `nearest_sources`); or "opencv",
            cv2.INTER_NEAREST, the one that holds its upper left corner (see `opencv_sources`).
    """

    image: str = "pillow"
    mask: str = "center"


DEFAULT_RESAMPLING = Resampling()


class ResizeTransform(Transform):
    """Resizes from (height, width) to (new_height, new_width), all in pixels, by the rules of `resampling`."""

    def __init__(
        self, height: int, width: int, new_height: int, new_width: int, resampling: Resampling = DEFAULT_RESAMPLING
    ) -> None:
        super().__init__()
        self.height, self.width = height, width
        self.new_height, self.new_width = new_height, new_width
        self.resampling = resampling

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 to the new size."""
        if (self.height, self.width) == (self.new_height, self.new_width):
            return image
        pixels = np.ascontiguousarray(image)
        new_size = (self.new_width, self.new_height)
        if self.resampling.image == "opencv":
            return cv2.resize(pixels, new_size, interpolation=cv2.INTER_LINEAR)
        return np.asarray(Image.fromarray(pixels).resize(new_size, Image.Resampling.BILINEAR))

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """(n, 2) points (x, y) px, scaled by the sizes' true ratios (not by the ratio that was asked for)."""
        return np.asarray(coords) * np.array([self.new_width / self.width, self.new_height / self.height])

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """(..., H, W) mask or label map to the new size."""
        rows, columns = self.sources()
        return segmentation[..., rows[:, None], columns[None, :]]

    def sources(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows (new_height,) and columns (new_width,) of the old mask that the new one takes."""
        sources_of = opencv_sources if self.resampling.mask == "opencv" else nearest_sources
        return sources_of(self.height, self.new_height), sources_of(self.width, self.new_width)

    def inverse(self) -> ResizeTransform:
        """Back to the old size."""
        return ResizeTransform(self.new_height, self.new_width, self.height, self.width, self.resampling)


def nearest_sources(size: int, new_size: int) -> np.ndarray:
    """(new_size,) index of the old pixel that holds the centre of each new pixel: floor((i + .5) * size / new_size)."""
    return (2 * np.arange(new_size) + 1) * size // (2 * new_size)


def opencv_sources(size: int, new_size: int) -> np.ndarray:
    """(new_size,) index of the old pixel that cv2.INTER_NEAREST takes for each new pixel: floor(i * size / new_size).

    OpenCV multiplies by a rounded reciprocal, which for one pair of sizes in twenty gives one pixel less somewhere
    than exact arithmetic does; so it is asked itself, by resizing a row of numbers.
    """
    numbers = np.arange(size, dtype=np.int32)[None]
    return cv2.resize(numbers, (new_size, 1), interpolation=cv2.INTER_NEAREST)[0]


class FlipTransform(Transform):
    """Mirrors an image of (height, width) pixels: x -> width - x, or y -> height - y."""

    def __init__(self, height: int, width: int, is_horizontal: bool = True) -> None:
        super().__init__()
        self.height, self.width, self.is_horizontal = height, width, is_horizontal

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        """(H, W) or (H, W, C), mirrored (a view)."""
        return image[:, ::-1] if self.is_horizontal else image[::-1]

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """(n, 2) points (x, y) px, mirrored."""
        mirrored = np.array(coords, dtype=np.float64)
        axis, size = (0, self.width) if self.is_horizontal else (1, self.height)
        mirrored[:, axis] = size - mirrored[:, axis]
        return mirrored

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """(..., H, W), mirrored (a view)."""
        return segmentation[..., ::-1] if self.is_horizontal else segmentation[..., ::-1, :]

    def sources(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows (height,) and columns (width,) of the old mask that the new one takes."""
        rows, columns = np.arange(self.height), np.arange(self.width)
        return (rows, columns[::-1]) if self.is_horizontal else (rows[::-1], columns)

    def inverse(self) -> FlipTransform:
        """Its own inverse."""
        return self


class WindowTransform(Transform):
    """Takes a window of the plane in which the image lies: a crop, or the image on a larger canvas, or both.

    Args:
        height, width: size of the image, px.
        left, top: column and row of the image in which the window begins, px; negative = outside.
        new_height, new_width: size of the window, px.
        fill: value of each channel of the window's pixels outside of the image.
    """

    def __init__(
        self,
        height: int,
        width: int,
        left: int,
        top: int,
        new_height: int,
        new_width: int,
        fill: tuple[int, int, int] = (0, 0, 0),
    ) -> None:
        super().__init__()
        self.height, self.width, self.left, self.top = height, width, left, top
        self.new_height, self.new_width, self.fill = new_height, new_width, fill

    @property
    def content(self) -> tuple[int, int, int, int]:
        """xyxy px: where the image lies in the window; without area if it lies outside."""
        x0, y0 = max(-self.left, 0), max(-self.top, 0)
        x1, y1 = min(self.width - self.left, self.new_width), min(self.height - self.top, self.new_height)
        return x0, y0, max(x1, x0), max(y1, y0)

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) to the window; a crop is a view."""
        x0, y0, x1, y1 = self.content
        part = image[y0 + self.top : y1 + self.top, x0 + self.left : x1 + self.left]
        if part.shape[:2] == (self.new_height, self.new_width):
            return part
        window = np.empty((self.new_height, self.new_width, *image.shape[2:]), dtype=image.dtype)
        window[:] = self.fill
        window[y0:y1, x0:x1] = part
        return window

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """(n, 2) points (x, y) px, seen from the window's corner; not clipped to it."""
        return np.asarray(coords) - np.array([self.left, self.top], dtype=np.float64)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """(..., H, W) mask or label map to the window; 0 outside of the image."""
        x0, y0, x1, y1 = self.content
        window = np.zeros((*segmentation.shape[:-2], self.new_height, self.new_width), dtype=segmentation.dtype)
        part = segmentation[..., y0 + self.top : y1 + self.top, x0 + self.left : x1 + self.left]
        window[..., y0:y1, x0:x1] = part
        return window

    def sources(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows (new_height,) and columns (new_width,) of the old mask that the new one takes, or NOWHERE."""
        rows, columns = self.top + np.arange(self.new_height), self.left + np.arange(self.new_width)
        rows[(rows < 0) | (rows >= self.height)] = NOWHERE
        columns[(columns < 0) | (columns >= self.width)] = NOWHERE
        return rows, columns

    def inverse(self) -> WindowTransform:
        """Back to the image's place and size; what was cut off is filled."""
        return WindowTransform(
            self.new_height, self.new_width, -self.left, -self.top, self.height, self.width, self.fill
        )


class ColorTransform(Transform):
    """Brightness, contrast, saturation and hue, applied one after another, and a shift at the end; geometry stays.

    Args:
        steps: (name, amount) in the order of application. "brightness", "contrast" and "saturation" take a factor
            (1 = unchanged), "hue" takes turns of the colour circle (0 = unchanged).
        image_format: "BGR" or "RGB", the order of the image's channels.
        shift: added to each channel at the end, of 255.
    """

    def __init__(
        self, steps: Sequence[tuple[str, float]], image_format: str, shift: tuple[float, float, float] = (0.0, 0.0, 0.0)
    ) -> None:
        super().__init__()
        self.steps, self.image_format, self.shift = list(steps), image_format, shift

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8."""
        weights = _GREY_WEIGHTS_RGB[::-1] if self.image_format == "BGR" else _GREY_WEIGHTS_RGB
        pixels: np.ndarray = image.astype(np.float32)
        for name, amount in self.steps:
            if name == "hue":
                pixels = self._rotate_hue(pixels, amount)
            elif name == "brightness":
                pixels = pixels * np.float32(amount)
            else:
                grey = pixels @ weights
                grey = grey[..., None] if name == "saturation" else grey.mean()
                pixels = grey + np.float32(amount) * (pixels - grey)
            pixels = np.clip(pixels, 0, 255)
        if any(self.shift):
            pixels = np.clip(pixels + np.array(self.shift, dtype=np.float32), 0, 255)
        return np.rint(pixels).astype(np.uint8)

    def _rotate_hue(self, pixels: np.ndarray, turns: float) -> np.ndarray:
        is_bgr = self.image_format == "BGR"
        hsv = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_BGR2HSV if is_bgr else cv2.COLOR_RGB2HSV)
        # OpenCV gives the hue of float images in degrees.
        hsv[..., 0] = (hsv[..., 0] + 360.0 * turns) % 360.0
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR if is_bgr else cv2.COLOR_HSV2RGB)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Unchanged."""
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Unchanged."""
        return segmentation

    def inverse(self) -> Transform:
        """The identity: colours that were clipped are gone, and the geometry never changed."""
        return ColorTransform([], self.image_format)


@runtime_checkable
class _MovesRowsAndColumns(Protocol):
    """A transform of the plane that never mixes its axes."""

    def sources(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns of the old mask that the new one takes, or NOWHERE."""


def mask_sources(transforms: Iterable[Transform], height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Which pixels of a mask are left after transforms that move whole rows and columns, as all of SegZoo's do.

    Args:
        transforms: applied one after another.
        height, width: size of the mask before them, px.

    Returns:
        rows (H,) and columns (W,): pixel (i, j) of the transformed mask is pixel (rows[i], columns[j]) of the old one,
        or, where either is NOWHERE, of no mask.
    """
    rows, columns = np.arange(height), np.arange(width)
    for transform in transforms:
        if isinstance(transform, _MovesRowsAndColumns):
            taken_rows, taken_columns = transform.sources()
            rows = np.where(taken_rows == NOWHERE, NOWHERE, rows[taken_rows])
            columns = np.where(taken_columns == NOWHERE, NOWHERE, columns[taken_columns])
        elif not isinstance(transform, ColorTransform | NoOpTransform):
            raise TypeError(f"{type(transform).__name__} does not say which rows and columns it takes")
    return rows, columns
