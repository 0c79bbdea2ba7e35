"""Fields of 2-d vectors as colours, as arrows, and by how fast they change.

The convention of colours: the hue is the direction, x right, y down, from red = to the right (0 degrees) over
yellow-green = down (90) and cyan = to the left (180) to violet = up (270); the saturation is the length, from white = 0
to the full colour. `color_wheel` shows it: each of its pixels has the colour of the vector from its centre to it.

Vectors are in image pixels. Those that are not finite are not drawn.

Shape shorthand: H, W of the image; h, w of the field, whose cells are squares of `stride` pixels.
"""

from __future__ import annotations

import cv2
import numpy as np

from segzoo.visualization.canvas import SUBPIXEL_BITS, Color, check_image, to_fixed_point

# Arrows shorter than this have no direction that one could see: a dot stands for them.
MIN_ARROW_PX = 1.0
# Of an arrow's length.
ARROW_HEAD = 0.35


def vector_colors(vectors: np.ndarray, max_length: float) -> np.ndarray:
    """(2, h, w) x and y -> (h, w, 3) uint8 BGR; vectors of `max_length` and longer have the full colour."""
    field = _check_field(vectors)
    if max_length <= 0:
        raise ValueError(f"the length of the full colour must be positive, got {max_length}")
    if field[0].size == 0:
        return np.zeros((*field.shape[1:], 3), dtype=np.uint8)
    hue = np.degrees(np.arctan2(field[1], field[0])) % 360.0
    saturation = np.minimum(np.hypot(field[0], field[1]) / max_length, 1.0)
    hsv = np.nan_to_num(np.stack((hue, saturation, np.ones_like(hue)), axis=2)).astype(np.float32)
    return np.round(255 * cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)).astype(np.uint8)


def color_wheel(diameter_px: int) -> np.ndarray:
    """(diameter, diameter, 3) uint8 BGR: a disc of the colours of all directions and lengths, black around it."""
    offsets = (np.arange(diameter_px) + 0.5 - diameter_px / 2) / max(diameter_px / 2, 1)
    x, y = np.meshgrid(offsets, offsets)
    wheel = vector_colors(np.stack((x, y)), 1.0)
    wheel[np.hypot(x, y) > 1] = 0
    return wheel


def draw_vectors(
    image: np.ndarray,
    vectors: np.ndarray,
    max_length: float,
    stride: int = 1,
    where: np.ndarray | None = None,
    opacity: float = 1.0,
    wheel_px: int = 0,
) -> np.ndarray:
    """Colours every cell by its vector (see the head of this file).

    Args:
        image: (H, W, 3) uint8 BGR; black for the field alone.
        vectors: (2, h, w) x and y.
        max_length: of the vectors in full colour.
        stride: pixels of a cell; what lies beyond the image (padding) is cut off.
        where: (h, w) bool, cells to draw; None draws all. The image stays elsewhere.
        opacity: 0..1 of the colours over the image.
        wheel_px: diameter of the legend in the lower right corner; 0 draws none.

    Returns:
        (H, W, 3) uint8, a new image.

    Raises:
        ValueError: wrong shapes, a field that does not cover the image, or a length that is not positive.
    """
    canvas = check_image(image)
    shown = _shown_cells(vectors, where)
    colors = _spread(vector_colors(vectors, max_length), stride, canvas.shape[:2])
    shown = _spread(shown, stride, canvas.shape[:2])
    mixed = canvas[shown] * (1.0 - opacity) + colors[shown] * opacity
    canvas[shown] = np.round(mixed).astype(np.uint8)
    side = min(wheel_px, *canvas.shape[:2])
    if side > 0:
        wheel = color_wheel(side)
        is_disc = wheel.any(axis=2)
        corner = canvas[-side:, -side:]
        corner[is_disc] = wheel[is_disc]
    return canvas


def draw_arrows(
    image: np.ndarray,
    vectors: np.ndarray,
    stride: int = 1,
    where: np.ndarray | None = None,
    spacing_px: int = 16,
    max_length_px: float | None = None,
    color: Color | None = None,
) -> np.ndarray:
    """Draws the vectors of a grid of cells as arrows that start at the centres of their cells.

    Args:
        image: (H, W, 3) uint8 BGR.
        vectors: (2, h, w) x and y, px.
        stride: pixels of a cell; arrows that start beyond the image (padding) are left out.
        where: (h, w) bool, cells that may have an arrow; None for all.
        spacing_px: between arrows, rounded to whole cells.
        max_length_px: longer ones are cut to it, their direction kept; None is the spacing, so that arrows of a smooth
            field do not run into one another.
        color: of all of them; None gives each that of its direction.

    Returns:
        (H, W, 3) uint8, a new image.

    Raises:
        ValueError: wrong shapes, or a field that does not cover the image.
    """
    canvas = check_image(image)
    field, shown = _check_field(vectors), _shown_cells(vectors, where)
    _check_cover(shown.shape, stride, canvas.shape[:2])
    step = max(1, round(spacing_px / stride))
    limit = spacing_px if max_length_px is None else max_length_px
    is_on_grid = np.zeros_like(shown)
    is_on_grid[step // 2 :: step, step // 2 :: step] = True
    rows, columns = np.nonzero(shown & is_on_grid)
    starts = (np.stack((columns, rows), axis=1) + 0.5) * stride
    is_inside = (starts < (canvas.shape[1], canvas.shape[0])).all(axis=1)
    arrows = field[:, rows, columns].T
    lengths = np.hypot(arrows[:, 0], arrows[:, 1])
    colors = vector_colors(arrows.T[:, :, None] / np.maximum(lengths, 1e-9)[:, None], 1.0)[:, 0]
    ends = starts + arrows * np.minimum(1.0, limit / np.maximum(lengths, 1e-9))[:, None]
    for index in np.flatnonzero(is_inside):
        own_color = colors[index].tolist() if color is None else color
        _draw_arrow_inplace(canvas, starts[index], ends[index], own_color)
    return canvas


def gradient_magnitude(vectors: np.ndarray, where: np.ndarray | None = None) -> np.ndarray:
    """How fast a field changes from cell to cell.

    On each axis a cell differs from two neighbours; the larger difference counts, which is not shifted to either side
    as a one-sided one would be and not halved at a jump as a centred one would be.

    Args:
        vectors: (2, h, w).
        where: (h, w) bool, cells that have a vector; only they are compared. None for all.

    Returns:
        (h, w) float64, the root of the sum of the squares of both axes; 0 where there is nothing to compare.

    Raises:
        ValueError: wrong shapes.
    """
    field, shown = _check_field(vectors), _shown_cells(vectors, where)
    field = np.where(shown, field, 0.0)
    total = np.zeros(shown.shape)
    for axis in (0, 1):
        # This axis first, so that step k lies between the cells k and k + 1.
        cells, is_shown = np.moveaxis(field, axis + 1, 1), np.moveaxis(shown, axis, 0)
        squares = (np.diff(cells, axis=1) ** 2).sum(axis=0) * (is_shown[1:] & is_shown[:-1])
        largest = np.zeros(is_shown.shape)
        largest[1:] = squares
        largest[:-1] = np.maximum(largest[:-1], squares)
        total += np.moveaxis(largest, 0, axis)
    return np.sqrt(total)


def _check_field(vectors: np.ndarray) -> np.ndarray:
    if vectors.ndim != 3 or vectors.shape[0] != 2:
        raise ValueError(f"a field of vectors must be (2, h, w), got {vectors.shape}")
    return vectors.astype(np.float64)


def _shown_cells(vectors: np.ndarray, where: np.ndarray | None) -> np.ndarray:
    """(h, w) bool: cells wanted whose vector is finite."""
    is_finite = np.isfinite(_check_field(vectors)).all(axis=0)
    if where is None:
        return is_finite
    if where.shape != is_finite.shape or where.dtype != np.bool_:
        raise ValueError(f"cells to draw must be {is_finite.shape} bool, got {where.shape} {where.dtype}")
    return is_finite & where


def _check_cover(size: tuple[int, ...], stride: int, image_size: tuple[int, ...]) -> None:
    if size[0] * stride < image_size[0] or size[1] * stride < image_size[1]:
        raise ValueError(f"a field of {size} at stride {stride} does not cover an image of {image_size}")


def _spread(cells: np.ndarray, stride: int, image_size: tuple[int, ...]) -> np.ndarray:
    """(h, w, ...) cells -> (H, W, ...) pixels."""
    _check_cover(cells.shape[:2], stride, image_size)
    return cells.repeat(stride, axis=0).repeat(stride, axis=1)[: image_size[0], : image_size[1]]


def _draw_arrow_inplace(canvas: np.ndarray, start: np.ndarray, end: np.ndarray, color: Color) -> None:
    first, last = to_fixed_point(start).tolist(), to_fixed_point(end).tolist()
    if np.hypot(*(end - start)) < MIN_ARROW_PX:
        cv2.circle(canvas, first, 1 << SUBPIXEL_BITS, color, cv2.FILLED, cv2.LINE_AA, SUBPIXEL_BITS)
        return
    # A dark rim keeps it legible on any image.
    for own_color, thickness in (((0, 0, 0), 3), (color, 1)):
        cv2.arrowedLine(canvas, first, last, own_color, thickness, cv2.LINE_AA, SUBPIXEL_BITS, ARROW_HEAD)
