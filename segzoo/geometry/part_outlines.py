"""Outlines of masks on a CPU, from the borders of their parts; see windows.py.

Shape shorthand: B border pixels of all masks, S sides.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from segzoo.geometry.outlines import Sides
from segzoo.geometry.windows import Part


def part_outlines(parts: Sequence[Part]) -> Sides:
    """`segzoo.geometry.outlines.outlines` of masks on the CPU, given as one part each in the order of the masks."""
    if not parts:
        return Sides(*torch.zeros((5, 0), dtype=torch.int64))
    owners = np.repeat(np.arange(len(parts)), [len(part.border) for part in parts])
    mask, left, top = np.array([part[:3] for part in parts]).T[:, owners]
    x, y = np.concatenate([part.border for part in parts]).T.astype(np.int64)
    open_sides = _open_sides(parts, owners, x, y)
    return _join(open_sides, mask, x + left, y + top)


def _open_sides(parts: Sequence[Part], owners: np.ndarray, x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    """Left, right, top and bottom: (B,) bool, whether the pixel there is clear. x, y: in the parts' frames."""
    pixels = np.concatenate([part.frame.ravel() for part in parts])
    size, width = np.array([(part.frame.size, part.frame.shape[1]) for part in parts]).T
    row = width[owners]
    place = (size.cumsum() - size)[owners] + y * row + x
    return [pixels[place + step] == 0 for step in (-1, 1, -row, row)]


def _join(open_sides: list[np.ndarray], mask: np.ndarray, x: np.ndarray, y: np.ndarray) -> Sides:
    """The open sides of border pixels in one piece, where they lie one after the other on one line."""
    # A key a pixel's side, by facing, mask, line and place on the line: those that join differ by 1. With room between
    # the last place of a line and the first of the next.
    span, num_masks = int(max(x.max(), y.max())) + 3, int(mask[-1]) + 1
    lines = ((x, y), (x + 1, y), (y, x), (y + 1, x))
    keys = [
        (((facing * num_masks + mask) * span + level) * span + along)[is_open]
        for facing, (is_open, (level, along)) in enumerate(zip(open_sides, lines, strict=True))
    ]
    # A border may hold a pixel more than once, so that neighbours may also be the same.
    key = np.sort(np.concatenate(keys))
    is_start = np.ones(len(key) + 1, bool)
    np.greater(key[1:], key[:-1] + 1, out=is_start[1:-1])
    bounds = np.flatnonzero(is_start)
    begin, end = key[bounds[:-1]], key[bounds[1:] - 1]
    rest, start = np.divmod(begin, span)
    rest, level = np.divmod(rest, span)
    facing, owner = np.divmod(rest, num_masks)
    return Sides(*map(torch.from_numpy, (facing, owner, level, start, start + (end - begin) + 1)))
