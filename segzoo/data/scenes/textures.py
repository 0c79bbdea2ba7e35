"""Colours of a generated scene: a family of textures for each class, any colours for all of them.

Shape shorthand: h, w of a window in pixels; colours are BGR, float64, 0..255. Plain arithmetic in float64 only, so
that another build of numpy gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from segzoo.data.scenes.layout import BAR, Layout

# Candidates of which the colour farthest from its surroundings is taken.
COLOR_CANDIDATES = 4


def value_noise(rng: np.random.Generator, height: int, width: int, cell_px: float) -> np.ndarray:
    """(height, width) float64 in 0..1: random values on a grid of cell_px, smoothly interpolated."""
    num_rows, num_cols = int(height / cell_px) + 3, int(width / cell_px) + 3
    grid = rng.random((num_rows, num_cols))
    shift = rng.random(2)
    rows = _interpolation(height, num_rows, cell_px, shift[0])
    cols = _interpolation(width, num_cols, cell_px, shift[1])
    return rows @ grid @ cols.T


def _interpolation(length: int, num_cells: int, cell_px: float, shift: float) -> np.ndarray:
    position = (np.arange(length) + 0.5) / cell_px + shift
    low = position.astype(np.int64)
    fraction = position - low
    fraction = fraction * fraction * (3.0 - 2.0 * fraction)
    weights = np.zeros((length, num_cells))
    weights[np.arange(length), low] = 1.0 - fraction
    weights[np.arange(length), low + 1] = fraction
    return weights


def _lattice(rng: np.random.Generator, height: int, width: int, period_px: float) -> tuple[np.ndarray, np.ndarray]:
    """Turned and shifted coordinates (u, v), (h, w) each, in periods."""
    angle = rng.uniform(0.0, np.pi)
    cos, sin = np.cos(angle) / period_px, np.sin(angle) / period_px
    x, y = np.arange(width) + 0.5, (np.arange(height) + 0.5)[:, None]
    phase = rng.random(2)
    return x * cos + y * sin + phase[0], -x * sin + y * cos + phase[1]


def stripes(rng: np.random.Generator, height: int, width: int, size_px: float) -> np.ndarray:
    """(h, w) 0..1: wavy stripes, the texture of leaves."""
    u, _ = _lattice(rng, height, width, rng.uniform(5.0, 6.5 + 0.07 * size_px))
    u = u + rng.uniform(0.0, 0.8) * value_noise(rng, height, width, max(8.0, 0.4 * size_px))
    wave = np.abs(2.0 * (u - np.floor(u)) - 1.0)
    return np.clip((wave - 0.5) * rng.uniform(1.5, 4.0) + 0.5, 0.0, 1.0)


def dots(rng: np.random.Generator, height: int, width: int, size_px: float) -> np.ndarray:
    """(h, w) 0..1: dots on a lattice, the texture of stars."""
    u, v = _lattice(rng, height, width, rng.uniform(6.0, 7.5 + 0.07 * size_px))
    u = u + 0.5 * (np.floor(v) % 2)
    distance_squared = (u - np.floor(u) - 0.5) ** 2 + (v - np.floor(v) - 0.5) ** 2
    return np.clip((rng.uniform(0.08, 0.13) - distance_squared) * rng.uniform(8.0, 20.0) + 0.5, 0.0, 1.0)


def clouds(rng: np.random.Generator, height: int, width: int, size_px: float) -> np.ndarray:
    """(h, w) 0..1: smooth noise of two scales, the texture of crescents."""
    coarse = value_noise(rng, height, width, max(6.0, rng.uniform(0.25, 0.5) * size_px))
    fine = value_noise(rng, height, width, max(3.0, rng.uniform(0.08, 0.15) * size_px))
    return np.clip(1.5 * (0.7 * coarse + 0.3 * fine - 0.5) + 0.5, 0.0, 1.0)


def grain(rng: np.random.Generator, height: int, width: int, size_px: float) -> np.ndarray:
    """(h, w) 0..1: faint fine noise, the texture of bars."""
    return 0.4 * value_noise(rng, height, width, 3.0) + 0.3


TEXTURES: tuple[Callable[[np.random.Generator, int, int, float], np.ndarray], ...] = (stripes, dots, clouds)


def _choose_colors(rng: np.random.Generator, surroundings: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Two colours (3,) of a texture whose mean stands off from those of its surroundings."""
    candidates = rng.uniform(35.0, 220.0, (COLOR_CANDIDATES, 3))
    gaps = np.abs(candidates[:, None] - np.stack(surroundings)[None]).sum(axis=2).min(axis=1)
    mean = candidates[int(np.argmax(gaps))]
    step = rng.uniform(25.0, 60.0, 3) * rng.choice([-1.0, 1.0], 3)
    return np.clip(mean - step, 5.0, 250.0), np.clip(mean + step, 5.0, 250.0)


def _paint(
    rng: np.random.Generator, pattern: np.ndarray, colors: tuple[np.ndarray, np.ndarray], mask: np.ndarray
) -> np.ndarray:
    """(P, 3): the pattern in two colours, lit from one side, at the P pixels of the (h, w) mask."""
    height, width = pattern.shape
    slope = rng.uniform(-0.18, 0.18, 2)
    light = 1.0 + slope[0] * np.linspace(-1.0, 1.0, height)[:, None] + slope[1] * np.linspace(-1.0, 1.0, width)
    return (colors[0] + pattern[mask][:, None] * (colors[1] - colors[0])) * light[mask][:, None]


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """(H, W, 3): clouds, large faint tiles or broad faint bands."""
    coarse = value_noise(rng, height, width, rng.uniform(30.0, 90.0))
    fine = value_noise(rng, height, width, rng.uniform(4.0, 12.0))
    u, v = _lattice(rng, height, width, rng.uniform(24.0, 60.0))
    tiles = [np.zeros((height, width)), (np.floor(u) + np.floor(v)) % 2, np.abs(2.0 * (u - np.floor(u)) - 1.0)]
    pattern = 0.5 * coarse + 0.25 * fine + 0.25 * tiles[int(rng.integers(3))]
    middle = rng.uniform(50.0, 205.0, 3)
    step = rng.uniform(-40.0, 40.0, 3)
    everywhere = np.ones((height, width), dtype=bool)
    return _paint(rng, pattern, (middle - step, middle + step), everywhere).reshape(height, width, 3)


def render(rng: np.random.Generator, layout: Layout) -> np.ndarray:
    """Paints a layout.

    Returns:
        (H, W, 3) uint8 BGR, slightly blurred as by a lens and with sensor noise.
    """
    height, width = layout.owner.shape
    canvas = _background(rng, height, width)
    backdrop = canvas.mean(axis=(0, 1))
    means: list[np.ndarray] = []
    for layer in layout.layers:
        pattern_of = grain if layer.category == BAR else TEXTURES[layer.category]
        colors = _choose_colors(rng, [backdrop, *means[-3:]])
        means.append(0.5 * (colors[0] + colors[1]))
        pattern = pattern_of(rng, layer.mask.shape[0], layer.mask.shape[1], layer.size_px)
        canvas[layer.window][layer.mask] = _paint(rng, pattern, colors, layer.mask)
    return _expose(rng, canvas)


def _expose(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    padded = np.pad(canvas, ((1, 1), (1, 1), (0, 0)), mode="edge")
    vertical = 0.2 * padded[:-2] + 0.6 * padded[1:-1] + 0.2 * padded[2:]
    blurred = 0.2 * vertical[:, :-2] + 0.6 * vertical[:, 1:-1] + 0.2 * vertical[:, 2:]
    noise_level = int(rng.integers(2, 9))
    noise = rng.integers(-noise_level, noise_level + 1, canvas.shape, dtype=np.int8)
    return np.clip(np.floor(blurred + 0.5) + noise, 0, 255).astype(np.uint8)
