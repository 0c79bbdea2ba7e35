"""One affine warp to a fixed size: a scale and a shift of each axis, as CenterNet's input is made.

Coordinates are continuous, as in transforms.py. CenterNet's own warp counts from pixel to pixel: its window's centre,
the point (w / 2, h / 2), is the centre of a pixel, not the border between two, so that the image it makes lies
(1 - scale) / 2 px further right and down than this one, while its boxes lie where they lie here.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from detectron2.config import CfgNode
from fvcore.transforms.transform import Transform
from PIL import Image

from segzoo.data.transforms import DEFAULT_RESAMPLING, NOWHERE, Resampling, WindowTransform
from segzoo.errors import ConfigError

# What lies outside of the image, before colours are normalised; CenterNet's weights have learned it.
BLACK = (0, 0, 0)


class WarpTransform(Transform):
    """x -> scale x + shift on each axis, onto a canvas of another size: a resize, a crop and a placement in one.

    Args:
        height, width: size of the image, px.
        scale: of (x, y), positive.
        shift: (x, y) of the image's corner on the canvas, px; fractions are kept.
        new_height, new_width: size of the canvas, px.
        fill: value of each channel outside of the image.
        resampling: `image` as for a resize. Masks take the pixel under each new pixel's centre whatever `mask` says:
            cv2.warpAffine rounds to that one as well.
    """

    def __init__(
        self,
        height: int,
        width: int,
        scale: tuple[float, float],
        shift: tuple[float, float],
        new_height: int,
        new_width: int,
        fill: tuple[int, int, int] = BLACK,
        resampling: Resampling = DEFAULT_RESAMPLING,
    ) -> None:
        super().__init__()
        self.height, self.width, self.scale, self.shift = height, width, scale, shift
        self.new_height, self.new_width, self.fill, self.resampling = new_height, new_width, fill, resampling

    @property
    def content(self) -> tuple[float, float, float, float]:
        """xyxy px: where the image lies on the canvas; without area if it lies outside."""
        (x0, x1), (y0, y1) = (
            np.clip([shift, shift + scale * old], 0, new).tolist()
            for scale, shift, old, new in zip(self.scale, self.shift, *self._sizes(), strict=True)
        )
        return x0, y0, x1, y1

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 to the canvas; pixels at the image's border are mixed with `fill`."""
        pixels = np.ascontiguousarray(image)
        if self.resampling.image == "opencv":
            # Its pixels lie at whole numbers, ours half a pixel further.
            matrix = np.zeros((2, 3))
            for axis, (scale, shift) in enumerate(zip(self.scale, self.shift, strict=True)):
                matrix[axis, axis], matrix[axis, 2] = scale, shift + 0.5 * scale - 0.5
            size = (self.new_width, self.new_height)
            return cv2.warpAffine(pixels, matrix, size, flags=cv2.INTER_LINEAR, borderValue=self.fill)
        # The longer side first, which needs no more pixels around it than the canvas shows: an image of 10000 x 20 px
        # is never padded to a square of the old size.
        for axis in (0, 1) if self.width >= self.height else (1, 0):
            pixels = self._averaged(pixels, axis)
        return pixels

    def _averaged(self, pixels: np.ndarray, axis: int) -> np.ndarray:
        """Warped along x (axis 0) or y (axis 1) alone, averaging when it shrinks."""
        height, width = pixels.shape[:2]
        old, new = (width, height)[axis], (self.new_width, self.new_height)[axis]
        first = -self.shift[axis] / self.scale[axis]
        last = first + new / self.scale[axis]
        before, after = max(math.ceil(-first), 0), max(math.ceil(last - old), 0)
        whole = before + old + after
        box: tuple[float, float, float, float]
        if axis == 0:
            padded = WindowTransform(height, width, -before, 0, height, whole, self.fill)
            size, box = (new, height), (first + before, 0, last + before, height)
        else:
            padded = WindowTransform(height, width, 0, -before, whole, width, self.fill)
            size, box = (width, new), (0, first + before, width, last + before)
        shown = Image.fromarray(np.ascontiguousarray(padded.apply_image(pixels)))
        return np.asarray(shown.resize(size, Image.Resampling.BILINEAR, box=box))

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """(n, 2) points (x, y) px; not clipped to the canvas."""
        return np.asarray(coords) * np.array(self.scale) + np.array(self.shift)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """(..., H, W) mask or label map to the canvas; 0 outside of the image."""
        rows, columns = self.sources()
        taken = segmentation[..., rows[:, None], columns[None, :]]
        return np.where((rows != NOWHERE)[:, None] & (columns != NOWHERE), taken, np.zeros_like(taken))

    def sources(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows (new_height,) and columns (new_width,) of the old mask that the new one takes, or NOWHERE."""
        columns, rows = (
            np.floor((np.arange(new) + 0.5 - shift) / scale)
            for scale, shift, _, new in zip(self.scale, self.shift, *self._sizes(), strict=True)
        )
        columns[(columns < 0) | (columns >= self.width)] = NOWHERE
        rows[(rows < 0) | (rows >= self.height)] = NOWHERE
        return rows.astype(np.int64), columns.astype(np.int64)

    def inverse(self) -> WarpTransform:
        """Back to the image's place and size; what was cut off is filled."""
        back = (1 / self.scale[0], 1 / self.scale[1])
        shift = (-self.shift[0] * back[0], -self.shift[1] * back[1])
        sizes = (self.new_height, self.new_width, back, shift, self.height, self.width)
        return WarpTransform(*sizes, self.fill, self.resampling)

    def _sizes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Old and new sizes of x and y."""
        return (self.width, self.height), (self.new_width, self.new_height)


class RandomWarp:
    """CenterNet's random scale and place: a window of the image, warped to a fixed size.

    The window that shows the whole image, centred, is enlarged by one of `scales` (below 1: a part is shown, larger)
    and its centre put on a random pixel that lies `border` px or more inside of the image. Where both borders do not
    fit into a side, the border of this side is halved until they do.

    Three numbers are drawn whatever happens: the scale, x and y of the centre.

    Args:
        size: (height, width) of the result, px.
        scales: to choose from, positive.
        border: px.
        resampling: where new pixels come from.

    Raises:
        ConfigError: names the key and its value.
    """

    def __init__(
        self, size: tuple[int, int], scales: tuple[float, ...], border: int, resampling: Resampling = DEFAULT_RESAMPLING
    ) -> None:
        if not scales or not all(isinstance(scale, int | float) and 0 < scale < math.inf for scale in scales):
            raise ConfigError(f"INPUT.WARP.SCALES is {tuple(scales)}", "use positive numbers, such as (0.6, 1.0, 1.3)")
        if border < 0:
            raise ConfigError(f"INPUT.WARP.BORDER is {border}", "use 0 or a number of pixels")
        self.size, self.scales, self.border, self.resampling = size, tuple(scales), border, resampling

    def get_transform(self, image: np.ndarray, rng: np.random.Generator, boxes: np.ndarray | None = None) -> Transform:
        """The warp."""
        height, width = image.shape[:2]
        choice, *places = rng.random(3)
        fitting = min(self.size[0] / height, self.size[1] / width)
        scale = fitting / self.scales[int(choice * len(self.scales))]
        # In the middle of a pixel, so that left and right are alike.
        center = [
            border + int(place * (side - 2 * border)) + 0.5
            for place, side in zip(places, (width, height), strict=True)
            for border in [fitting_border(self.border, side)]
        ]
        shift = (self.size[1] / 2 - scale * center[0], self.size[0] / 2 - scale * center[1])
        return WarpTransform(height, width, (scale, scale), shift, *self.size, resampling=self.resampling)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """The fixed (height, width)."""
        return self.size


def fitting_border(border: int, side: int) -> int:
    """`border` halved (rounded down from the whole) until two of it leave at least a pixel of `side`."""
    parts = 1
    while side - border // parts <= border // parts:
        parts *= 2
    return border // parts


def build_warp(cfg: CfgNode, size: tuple[int, int], resampling: Resampling) -> RandomWarp:
    """The warp of cfg.INPUT.WARP to `size` (height, width) px.

    Raises:
        ConfigError: an impossible value.
    """
    return RandomWarp(size, tuple(cfg.INPUT.WARP.SCALES), cfg.INPUT.WARP.BORDER, resampling)
