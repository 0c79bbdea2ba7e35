"""Test images centred on a black canvas, as CenterNet tests: at a fixed size, or at the image's own.

The canvas has the original image's resolution and holds it at whole pixels; the network sees the canvas, resized or
not. So a model needs to know nothing of it: it gives its results at the canvas's size, of which the original image is
a window, and `segzoo.modeling.window.restore_originals` cuts that out, exactly.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from fvcore.transforms.transform import Transform

from segzoo.data.transforms import DEFAULT_RESAMPLING, Resampling, WindowTransform
from segzoo.data.warps import BLACK, WarpTransform
from segzoo.errors import ConfigError


class Canvas(NamedTuple):
    """(height, width) px of a canvas in the original's resolution, and where the image's corner lies on it."""

    height: int
    width: int
    left: int
    top: int


class CenterInside:
    """ "fix_res": the ratio kept, fitted into (height, width) px and centred there.

    CenterNet centres to half a pixel of the original; here the canvas holds whole ones, and where an odd number of
    them is left over, the image lies half a one further left or up.
    """

    def __init__(self, size: tuple[int, int], resampling: Resampling = DEFAULT_RESAMPLING) -> None:
        self.size, self.resampling = size, resampling

    def canvas(self, height: int, width: int) -> Canvas:
        """The smallest canvas that has the ratio of `size`, to a whole pixel, and holds the image."""
        longer = max(height / self.size[0], width / self.size[1])
        canvas_height = max(round(longer * self.size[0]), height)
        canvas_width = max(round(longer * self.size[1]), width)
        return Canvas(canvas_height, canvas_width, (canvas_width - width) // 2, (canvas_height - height) // 2)

    def get_transform(self, image: np.ndarray, rng: np.random.Generator, boxes: np.ndarray | None = None) -> Transform:
        """The warp; nothing is drawn."""
        height, width = image.shape[:2]
        canvas = self.canvas(height, width)
        scale = (self.size[1] / canvas.width, self.size[0] / canvas.height)
        shift = (scale[0] * canvas.left, scale[1] * canvas.top)
        return WarpTransform(height, width, scale, shift, *self.size, resampling=self.resampling)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """The fixed (height, width)."""
        return self.size


class CenterUnscaled:
    """ "keep_res": the image as it is, centred on a canvas whose sides are the next larger multiples.

    A side that is a multiple already gets one more, as in CenterNet: (side | 31) + 1 for 32.

    Args:
        multiple: of the canvas's sides, px; 32 for DLA, 128 for an hourglass.
    """

    def __init__(self, multiple: int) -> None:
        if multiple < 1:
            raise ConfigError(f"INPUT.KEEP_RES_MULTIPLE is {multiple}", "use the network's, such as 32")
        self.multiple = multiple

    def canvas(self, height: int, width: int) -> Canvas:
        """The canvas that the network sees."""
        new_height, new_width = self.output_size(height, width)
        return Canvas(new_height, new_width, new_width // 2 - width // 2, new_height // 2 - height // 2)

    def get_transform(self, image: np.ndarray, rng: np.random.Generator, boxes: np.ndarray | None = None) -> Transform:
        """The placement; nothing is drawn."""
        height, width = image.shape[:2]
        canvas = self.canvas(height, width)
        return WindowTransform(height, width, -canvas.left, -canvas.top, canvas.height, canvas.width, BLACK)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the canvas."""
        return (height // self.multiple + 1) * self.multiple, (width // self.multiple + 1) * self.multiple


def results_entry(resize: Any, height: int, width: int) -> dict[str, Any]:
    """What a test sample says of the size of its results.

    Args:
        resize: of `build_resize`.
        height, width: of the original image, px.

    Returns:
        "height", "width": what the model shall give its results at. With a centred resize that is the canvas, and
        "window" (x0, y0, x1, y1) is where the original image lies on it.
    """
    if not isinstance(resize, CenterInside | CenterUnscaled):
        return {"height": height, "width": width}
    canvas = resize.canvas(height, width)
    window = (canvas.left, canvas.top, canvas.left + width, canvas.top + height)
    return {"height": canvas.height, "width": canvas.width, "window": window}
