"""Pillow's bilinear resize of 8-bit images in numpy, bit for bit, so that a deployment does without Pillow.

Each new pixel is a mean of the old ones around its centre, weighted by a triangle that is as wide as two old pixels
or, when the image shrinks, two new ones. Weights are whole numbers of 22 bits; columns come first, and both passes
round to 8 bits. `tests/export` compares with Pillow itself.
"""

from __future__ import annotations

import numpy as np

# Bits of a weight's fraction: 32 less 8 of the pixel and 2 for sums above 1.
PRECISION_BITS = 22
# Pixels of one band of rows that are summed at once; bounds the memory to some 50 MB.
BAND_PIXELS = 2_000_000


def resize(
    image: np.ndarray, new_height: int, new_width: int, box: tuple[float, float, float, float] | None = None
) -> np.ndarray:
    """(h, w, 3) uint8 -> (new_height, new_width, 3) uint8.

    Args:
        image: any number of channels.
        new_height, new_width: px, from 1.
        box: (x0, y0, x1, y1) px of the image that is resized, within it; None = all of it.
    """
    height, width = image.shape[:2]
    x0, y0, x1, y1 = box if box is not None else (0, 0, width, height)
    if (x0, x1) != (0, width) or new_width != width:
        image = _resize_columns(image, new_width, x0, x1)
    if (y0, y1) != (0, height) or new_height != height:
        image = _resize_columns(image.swapaxes(0, 1), new_height, y0, y1).swapaxes(0, 1)
    return np.ascontiguousarray(image)


def _resize_columns(image: np.ndarray, new_width: int, start: float, end: float) -> np.ndarray:
    first, weights = triangle_weights(image.shape[1], new_width, start, end)
    out = np.empty((image.shape[0], new_width, *image.shape[2:]), np.uint8)
    step = max(1, BAND_PIXELS // new_width)
    for top in range(0, len(image), step):
        band = image[top : top + step]
        total = np.full(out[top : top + step].shape, 1 << (PRECISION_BITS - 1), np.int32)
        for tap in range(weights.shape[1]):
            # Beyond the last pixel weights are 0, whatever is read there.
            columns = np.minimum(first + tap, image.shape[1] - 1)
            total += band[:, columns] * weights[:, tap, None]
        out[top : top + step] = (total >> PRECISION_BITS).clip(0, 255)
    return out


def triangle_weights(length: int, new_length: int, start: float, end: float) -> tuple[np.ndarray, np.ndarray]:
    """(new_length,) first old pixel of each new one, and (new_length, taps) int32 weights of those from there on."""
    # Pillow takes its box, and the box's length, in single precision.
    begin, stop = np.float32(start), np.float32(end)
    scale = float(stop - begin) / new_length
    reach = max(scale, 1.0)
    centers = float(begin) + (np.arange(new_length) + 0.5) * scale
    # Truncation, as of a C cast; what would be negative is cut to 0 anyway.
    first = np.maximum(np.trunc(centers - reach + 0.5), 0).astype(np.int64)
    last = np.minimum(np.trunc(centers + reach + 0.5), length).astype(np.int64)
    taps = np.arange(int((last - first).max()))
    distance = (taps + first[:, None] - centers[:, None] + 0.5) * (1.0 / reach)
    weights = np.where(taps < (last - first)[:, None], np.maximum(1.0 - np.abs(distance), 0.0), 0.0)
    # Added one after the other as in C, not pairwise: the last bit decides on roundings.
    total = np.zeros(new_length)
    for tap in taps:
        total += weights[:, tap]
    weights = np.where(total[:, None] != 0, weights / np.where(total == 0, 1.0, total)[:, None], weights)
    return first, np.trunc(weights * (1 << PRECISION_BITS) + 0.5).astype(np.int32)
