"""The pairs of point and side that rays.py looks at, made by numpy: on a CPU its calls cost a fraction of torch's.

Shape shorthand: P points, n rays, S sides, Q pairs of point and side.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from polarmask.facings import FACINGS, Pairs
from segzoo.geometry.outlines import Sides
from segzoo.geometry.runs import bounded_blocks


def cpu_pairs(
    sides: Sides, points_px: Tensor, point_masks: Tensor, num_rays: int, max_pairs: int
) -> Iterator[tuple[slice, Pairs]]:
    """Blocks of points with their pairs; arguments as those of `polarmask.rays.cast_to_sides`, all on the CPU."""
    columns = [column.numpy() for column in sides]
    points = points_px.numpy().astype(np.float32, copy=False)
    first, count = _sides_beyond(columns, points, point_masks.numpy())
    lines = _seen_along_rays(columns)
    num_pairs = count.sum(axis=0)
    whole = [slice(0, len(points))]
    blocks = whole if num_pairs.sum() <= max_pairs else bounded_blocks(torch.from_numpy(num_pairs), max_pairs)
    for block in blocks:
        yield block, _make_pairs(lines, points[block], first[:, block].ravel(), count[:, block].ravel(), num_rays)


def _sides_beyond(columns: list[np.ndarray], points: np.ndarray, owners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(4, P) first and (4, P) number of the sides that a point's rays can leave through; see `polarmask.rays`."""
    facing, mask, level = columns[:3]
    num_masks, span = int(mask.max()) + 2, int(level.max()) + 2
    keys = (facing * num_masks + mask) * span + level
    owners = np.minimum(owners, num_masks - 1)
    first, stop = [], []
    for number, rule in enumerate(FACINGS):
        start = (number * num_masks + owners) * span
        across = points[:, 0 if rule.is_vertical else 1]
        level = np.floor(across) if rule.is_upward else np.ceil(across) - 1
        level = start + level.clip(-1, span - 1).astype(np.int64)
        first.append(level if rule.is_upward else start - 1)
        stop.append(start + (span - 1) if rule.is_upward else level)
    bounds = keys.searchsorted(np.array((first, stop)), side="right")
    return bounds[0], bounds[1] - bounds[0]


def _seen_along_rays(columns: list[np.ndarray]) -> np.ndarray:
    """(3, S) float32 level, start and end of sides, with the signs and in the order of `Pairs`."""
    facing, _, level, start, end = columns
    lines = np.empty((3, len(facing)), np.float32)
    bounds = facing.searchsorted(np.arange(len(FACINGS) + 1)).tolist()
    for rule, low, high in zip(FACINGS, bounds[:-1], bounds[1:], strict=True):
        own = slice(low, high)
        lines[0, own] = level[own] if rule.is_upward else -level[own]
        lines[1:, own] = (start[own], end[own]) if rule.grows_with_angle else (-end[own], -start[own])
    return lines


def _make_pairs(lines: np.ndarray, points: np.ndarray, first: np.ndarray, count: np.ndarray, num_rays: int) -> Pairs:
    """The pairs of (4 p) ranges of sides of p points. lines: see `_seen_along_rays`."""
    of_view = np.empty((3, len(FACINGS), len(points)), np.float32)
    for number, rule in enumerate(FACINGS):
        x, y = points.T if rule.is_vertical else points.T[::-1]
        of_view[0, number] = x if rule.is_upward else -x
        of_view[1, number] = y if rule.grows_with_angle else -y
        of_view[2, number] = rule.quarter_turns * num_rays / 4
    view = np.repeat(np.arange(len(count)), count)
    side = np.arange(len(view)) + np.repeat(first - count.cumsum() + count, count)
    across, along, base = (np.repeat(column, count) for column in of_view.reshape(3, -1))
    offset, start, end = (line.take(side) for line in lines)
    offset -= across
    start -= along
    end -= along
    return Pairs(*map(torch.from_numpy, (view, offset, start, end, base)))
