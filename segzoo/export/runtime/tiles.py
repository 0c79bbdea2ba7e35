"""Masks from small maps, pixel by pixel of the output within a box: the counterpart of segzoo/geometry/tiles.py.

One convention: cell (i, j) of a map has its centre at (j + 0.5, i + 0.5) in cells.

Shape shorthand: D boxes, H, W size of the output image in pixels, h, w of a map, n pixels along one axis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from segzoo.geometry.edges import encode_edges

# Pixels of a mask that are computed at once: some ten float32 arrays of it are held.
MAX_PIXELS = 1_000_000


def box_ranges(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(D, 4) int64 x0, y0, x1, y1: the cells whose centre lies in each box, at least one column and row.

    Args:
        boxes: (D, 4) xyxy in cells of a map of `size` (height, width).
    """
    limit = np.array([size[1], size[0]])
    first = np.minimum(np.maximum(np.ceil(boxes[:, :2] - 0.5), 0), limit).astype(np.int64)
    end = np.minimum(np.maximum(np.ceil(boxes[:, 2:] - 0.5), 0), limit).astype(np.int64)
    middle = np.floor((boxes[:, :2] + boxes[:, 2:]) / 2)
    nearest = np.minimum(np.maximum(middle, 0), limit - 1).astype(np.int64)
    is_empty = end <= first
    return np.concatenate((np.where(is_empty, nearest, first), np.where(is_empty, nearest + 1, end)), axis=1)


def masks_in_boxes(
    ranges: np.ndarray, image_size: tuple[int, int], is_inside: Callable[[int, np.ndarray, np.ndarray], np.ndarray]
) -> list[dict]:
    """Run lengths of D masks, each within its rectangle.

    Args:
        ranges: (D, 4) x0, y0, x1, y1 px, see `box_ranges`.
        image_size: (H, W).
        is_inside: number of the box, (n,) x and (m,) y of pixels' centres -> (m, n) bool.
    """
    rles = []
    for number, (left, top, right, bottom) in enumerate(ranges.tolist()):
        edges = [np.zeros(0, np.int64)]
        y = np.arange(top, bottom, dtype=np.float32) + np.float32(0.5)
        for first, last in _bands(left, right, bottom - top):
            x = np.arange(first, last, dtype=np.float32) + np.float32(0.5)
            padded = np.zeros((last - first, bottom - top + 2), bool)
            padded[:, 1:-1] = is_inside(number, x, y).T
            column, row = np.nonzero(padded[:, 1:] != padded[:, :-1])
            edges.append((first + column) * image_size[0] + top + row)
        rles.append(encode_edges(np.concatenate(edges), image_size))
    return rles


def _bands(left: int, right: int, height: int) -> Iterator[tuple[int, int]]:
    step = max(1, MAX_PIXELS // max(height, 1))
    for first in range(left, right, step):
        yield first, min(first + step, right)


def resample(values: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Bilinear interpolation between cell centres; the border's value beyond them.

    Args:
        values: (h, w).
        x, y: (n,) and (m,) places in cells from the first cell's border.

    Returns:
        (m, n) float32.
    """
    left, right, share = neighbors(x, values.shape[1])
    top, bottom, share_y = neighbors(y, values.shape[0])
    # Only the rows that are needed, then all columns at once.
    upper, lower = values[top], values[bottom]
    rows = upper + (lower - upper) * share_y[:, None]
    return rows[:, left] + (rows[:, right] - rows[:, left]) * share


def neighbors(places: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two of `count` cells around each place, and the share of the second."""
    places = np.clip(places.astype(np.float32, copy=False) - np.float32(0.5), 0, count - 1)
    lower = np.floor(places)
    first = lower.astype(np.int64)
    return first, np.minimum(first + 1, count - 1), places - lower


def steps_px(input_size: tuple[int, int], output_size: tuple[int, int]) -> np.ndarray:
    """(2,) float32 pixels of the network's input that a pixel of the output covers, in x and y."""
    return np.array([inner / max(outer, 1) for inner, outer in zip(input_size[::-1], output_size[::-1])], np.float32)
