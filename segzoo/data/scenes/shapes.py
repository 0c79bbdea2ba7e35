"""Outlines of the generated objects and their exact rasterisation.

Every outline is a set of polygons filled by the even-odd rule, so holes and several parts need no special case, and
transcendental functions touch only the vertices: whether a pixel is inside is decided by float64 comparisons.

Shape shorthand: n vertices; points (x, y), x right, y down; pixel (row r, col c) has its centre at (c + .5, r + .5).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

CLASS_NAMES = ("leaf", "star", "crescent")

# Below this tilt against the axes a leaf or a crescent would nearly fill its bounding box.
MIN_TILT_RAD = np.deg2rad(25.0)


@dataclass(frozen=True)
class Outline:
    """A closed outline around its own centre, before it is scaled, turned and moved.

    Attributes:
        points: (n, 2) float64 vertices in arbitrary units.
        hole: (h, 2) vertices of a hole that lies wholly inside.
        angle: rotation in radians to apply (+x towards +y), chosen so that the shape does not fill its box.
    """

    points: np.ndarray
    hole: np.ndarray
    angle: float


def fill_polygons(polygons: Sequence[np.ndarray], height: int, width: int) -> np.ndarray:
    """Rasterises polygons by the even-odd rule at pixel centres.

    Args:
        polygons: (n, 2) arrays of (x, y) in pixels; parts outside the window are cut off.
        height, width: of the window in pixels.

    Returns:
        (height, width) bool.
    """
    crossings = np.zeros((height, width + 1), dtype=np.uint8)
    centers_y = np.arange(height) + 0.5
    for points in polygons:
        start, end = points, np.roll(points, -1, axis=0)
        # Half-open in y: a vertex on a row's centre line counts for one of its two edges, a level edge for none.
        spans = (start[None, :, 1] <= centers_y[:, None]) != (end[None, :, 1] <= centers_y[:, None])
        rows, edges = np.nonzero(spans)
        slope = (end[edges, 0] - start[edges, 0]) / (end[edges, 1] - start[edges, 1])
        x = start[edges, 0] + (centers_y[rows] - start[edges, 1]) * slope
        cols = np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)
        np.add.at(crossings, (rows, cols), 1)
    return (np.add.accumulate(crossings, axis=1, dtype=np.uint8)[:, :width] & 1).astype(bool)


def polygon_area(points: np.ndarray) -> float:
    """Area of an (n, 2) simple polygon, in squared units of its vertices."""
    x, y = points[:, 0], points[:, 1]
    return 0.5 * abs(float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))))


def rotate(points: np.ndarray, angle: float) -> np.ndarray:
    """Turns (n, 2) points by `angle` radians, from +x towards +y."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([points[:, 0] * cos - points[:, 1] * sin, points[:, 0] * sin + points[:, 1] * cos], axis=1)


def _ellipse(center: tuple[float, float], semi_axes: tuple[float, float], num_points: int = 24) -> np.ndarray:
    theta = np.arange(num_points) * (2 * np.pi / num_points)
    return np.stack([center[0] + semi_axes[0] * np.cos(theta), center[1] + semi_axes[1] * np.sin(theta)], axis=1)


def _tilted_angle(rng: np.random.Generator) -> float:
    tilt = rng.uniform(MIN_TILT_RAD, np.pi / 2 - MIN_TILT_RAD)
    return float(tilt + rng.integers(4) * (np.pi / 2))


def leaf(rng: np.random.Generator) -> Outline:
    """Long, pointed at both ends, one end thicker; 2.2 to 3.4 times as long as wide."""
    half_width = 1.0 / rng.uniform(2.2, 3.4)
    sharpness = rng.uniform(0.6, 0.9)  # 0.5 is an ellipse, 1 a lens
    skew = rng.uniform(-0.35, 0.35)
    along = -np.cos(np.linspace(0.0, np.pi, 25))
    across = half_width * (1.0 - along**2) ** sharpness * (1.0 + skew * along)
    upper = np.stack([along, across], axis=1)
    lower = np.stack([along, -across], axis=1)[-2:0:-1]
    hole = _ellipse((0.3 * np.sign(skew), 0.0), (rng.uniform(0.2, 0.28), 0.5 * half_width))
    return Outline(np.concatenate([upper, lower]), hole, _tilted_angle(rng))


def star(rng: np.random.Generator) -> Outline:
    """Four to six points of slightly uneven length."""
    num_tips = int(rng.integers(4, 7))
    inner = rng.uniform(0.4, 0.5)
    theta = np.arange(2 * num_tips) * (np.pi / num_tips)
    radius = np.where(np.arange(2 * num_tips) % 2 == 0, rng.uniform(0.85, 1.0, 2 * num_tips), inner)
    points = np.stack([radius * np.cos(theta), radius * np.sin(theta)], axis=1)
    size = inner * rng.uniform(0.5, 0.6)
    hole = _ellipse((rng.uniform(-0.08, 0.08), rng.uniform(-0.08, 0.08)), (size, size))
    # A four-pointed star fills half of its box when its points are in the corners: keep them off the diagonals.
    angle = rng.uniform(-0.4, 0.4) if num_tips == 4 else rng.uniform(0.0, 2 * np.pi)
    return Outline(points, hole, float(angle))


def crescent(rng: np.random.Generator) -> Outline:
    """A bent bar that tapers to both ends, thick enough for its mass centre to lie inside."""
    half_opening = rng.uniform(0.85, 1.2)
    half_width = rng.uniform(0.3, 0.36)
    position = -np.cos(np.linspace(0.0, np.pi, 23))
    width = half_width * (1.0 - position**2) ** rng.uniform(0.5, 0.75)
    theta = half_opening * position
    direction = np.stack([np.cos(theta), np.sin(theta)], axis=1)
    outer, inner = direction * (1.0 + width)[:, None], direction * (1.0 - width)[:, None]
    points = np.concatenate([outer, inner[-2:0:-1]])
    hole_theta = rng.choice([-1.0, 1.0]) * rng.uniform(0.2, 0.4) * half_opening
    hole = rotate(_ellipse((1.0, 0.0), (0.5 * half_width, rng.uniform(0.5, 0.8) * half_width)), hole_theta)
    offset = np.array([[1.0, 0.0]])
    return Outline(points - offset, hole - offset, _tilted_angle(rng))


OUTLINES: tuple[Callable[[np.random.Generator], Outline], ...] = (leaf, star, crescent)


def place_outline(outline: Outline, size_px: float, with_hole: bool) -> list[np.ndarray]:
    """Scales and turns an outline and puts the corner of its bounding box at (0, 0).

    Args:
        size_px: square root of the outline's area, hole included, in pixels.
        with_hole: whether the hole is cut out.

    Returns:
        the polygons, (n, 2) float64 pixels each, all coordinates >= 0.
    """
    scale = size_px / np.sqrt(polygon_area(outline.points))
    polygons = [rotate(outline.points, outline.angle) * scale]
    if with_hole:
        polygons.append(rotate(outline.hole, outline.angle) * scale)
    corner = polygons[0].min(axis=0)
    return [points - corner for points in polygons]
