"""Rays with their centres, contours, heat maps and points: the pictures of PolarMask and of training targets.

Shape shorthand: D instances, n rays; points (x, y) in continuous image coordinates, px.
"""

from __future__ import annotations

import logging

import cv2
import numpy as np

from segzoo.visualization.canvas import (
    SUBPIXEL_BITS,
    Color,
    check_image,
    instance_color,
    line_thickness,
    to_fixed_point,
)

logger = logging.getLogger(__name__)


def draw_rays(
    image: np.ndarray, centers: np.ndarray, contours: np.ndarray, color: Color | None = None, with_contour: bool = True
) -> np.ndarray:
    """Draws rays from their centres to their ends, and the contour through the ends.

    Args:
        image: (H, W, 3) uint8 BGR.
        centers: (D, 2) px.
        contours: (D, n, 2) ends of the rays, px; an instance with a number that is not finite is left out with a
            warning.
        color: of all of them; None gives each its own.
        with_contour: whether the ends are joined.

    Returns:
        (H, W, 3) uint8, a new image.

    Raises:
        ValueError: the shapes do not belong together.
    """
    canvas = check_image(image)
    centers, ends = np.asarray(centers, dtype=np.float64), np.asarray(contours, dtype=np.float64)
    if ends.ndim != 3 or ends.shape[2] != 2 or centers.shape != (len(ends), 2):
        raise ValueError(f"centers {centers.shape} and contours {ends.shape} must be (D, 2) and (D, n, 2)")
    is_finite = np.isfinite(ends).all(axis=(1, 2))
    if not is_finite.all():
        logger.warning("%d of %d contours have rays that are not finite: not drawn", (~is_finite).sum(), len(ends))
    thickness = line_thickness(canvas)
    for index in np.flatnonzero(is_finite):
        own_color = instance_color(int(index)) if color is None else color
        start, stops = to_fixed_point(centers[index]), to_fixed_point(ends[index])
        for stop in stops:
            cv2.line(canvas, start.tolist(), stop.tolist(), own_color, thickness, cv2.LINE_AA, SUBPIXEL_BITS)
        if with_contour:
            cv2.polylines(canvas, [stops[:, None]], True, (255, 255, 255), thickness, cv2.LINE_AA, SUBPIXEL_BITS)
        _draw_point_inplace(canvas, start, own_color)
    return canvas


def draw_polygons(image: np.ndarray, polygons: np.ndarray, color: Color | None = None) -> np.ndarray:
    """Draws the outlines of (D, n, 2) polygons; without a colour each has its own. Returns a new image."""
    canvas = check_image(image)
    for index, points in enumerate(polygons):
        own_color = instance_color(index) if color is None else color
        corners = to_fixed_point(points)[:, None]
        cv2.polylines(canvas, [corners], True, own_color, line_thickness(canvas), cv2.LINE_AA, SUBPIXEL_BITS)
    return canvas


def draw_points(
    image: np.ndarray, points: np.ndarray, owners: np.ndarray | None = None, radius_px: int = 2
) -> np.ndarray:
    """Draws (P, 2) points, such as the positive locations of a level.

    Args:
        owners: (P,) index of the instance each belongs to, which gives its colour; None gives all the first's.
        radius_px: of the dots.

    Returns:
        (H, W, 3) uint8, a new image.
    """
    canvas = check_image(image)
    points = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    owners = np.zeros(len(points), dtype=np.int64) if owners is None else np.asarray(owners)
    for point, owner in zip(points, owners, strict=True):
        _draw_point_inplace(canvas, to_fixed_point(point), instance_color(int(owner)), radius_px)
    return canvas


def draw_heat(
    image: np.ndarray, heat: np.ndarray, stride: int | None = None, max_value: float = 1.0, opacity: float = 0.55
) -> np.ndarray:
    """Lays a heat map, such as centerness, over an image: blue is 0, red is `max_value`.

    Args:
        image: (H, W, 3) uint8 BGR.
        heat: (h, w) float.
        stride: pixels of a cell; what lies beyond the image (padding) is cut off. None stretches the map over the
            whole image.
        max_value: what is drawn red; larger values are too. Values that are not finite are drawn as 0.

    Returns:
        (H, W, 3) uint8, a new image.

    Raises:
        ValueError: the map is not 2-d, or does not cover the image at this stride.
    """
    canvas = check_image(image)
    height, width = canvas.shape[:2]
    if heat.ndim != 2 or heat.size == 0:
        raise ValueError(f"a heat map must be (h, w), got {heat.shape}")
    level = np.clip(np.nan_to_num(heat, nan=0.0, posinf=0.0, neginf=0.0) / max_value, 0.0, 1.0)
    codes = np.round(255 * level).astype(np.uint8)
    if stride is None:
        codes = cv2.resize(codes, (width, height), interpolation=cv2.INTER_NEAREST)
    else:
        codes = codes.repeat(stride, axis=0).repeat(stride, axis=1)[:height, :width]
    if codes.shape != (height, width):
        raise ValueError(f"a heat map of {heat.shape} at stride {stride} does not cover an image of {(height, width)}")
    colors = cv2.applyColorMap(np.ascontiguousarray(codes), cv2.COLORMAP_JET)
    return np.round(canvas * (1.0 - opacity) + colors * opacity).astype(np.uint8)


def _draw_point_inplace(canvas: np.ndarray, fixed_point: np.ndarray, color: Color, radius_px: int = 2) -> None:
    center = ((fixed_point + (1 << (SUBPIXEL_BITS - 1))) >> SUBPIXEL_BITS).tolist()
    cv2.circle(canvas, center, radius_px + 1, (0, 0, 0), cv2.FILLED)
    cv2.circle(canvas, center, radius_px, color, cv2.FILLED)
