"""What PolarMask's targets need to know of a batch's masks: the mass centre and the outline of each.

Shape shorthand: M masks, H, W.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from segzoo.geometry.components import largest_parts
from segzoo.geometry.outlines import BOTTOM, LEFT, RIGHT, TOP, Sides, outlines
from segzoo.geometry.part_outlines import part_outlines
from segzoo.geometry.runs import find_runs, join_runs
from segzoo.geometry.windows import batch_windows, largest_part, whole_part


class Shapes(NamedTuple):
    """Masks as rays see them.

    centers_px: (M, 2) mass centre of the largest part with its holes filled, in continuous pixels; 0 for an empty mask.
    sides: of the outlines that rays are cast to.
    """

    centers_px: Tensor
    sides: Sides


def find_shapes(masks: Sequence[Tensor], parts: str = "largest") -> Shapes:
    """The shapes of all masks of a batch.

    Args:
        masks: (Mi, H, W) bool of every image (at least one), all on one device.
        parts: "largest" (the outline of that part with its holes filled) or "all" (of the whole mask).
    """
    return (window_shapes if masks[0].device.type == "cpu" else run_shapes)(masks, parts)


def run_shapes(masks: Sequence[Tensor], parts: str) -> Shapes:
    """`find_shapes` on any device, all masks at once."""
    counts = [len(of_image) for of_image in masks]
    runs = join_runs([find_runs(of_image) for of_image in masks], counts)
    largest = largest_parts(runs, sum(counts))
    return Shapes(largest.centers_px, outlines(runs) if parts == "all" else outlines(largest.runs, largest.contacts))


def window_shapes(masks: Sequence[Tensor], parts: str) -> Shapes:
    """`find_shapes` on the CPU, one mask after the other."""
    windows = batch_windows(masks)
    largest = [largest_part(window) for window in windows]
    sides = part_outlines(largest)
    centers = _mass_centers(sides, sum(map(len, masks)))
    return Shapes(centers, part_outlines([whole_part(window) for window in windows]) if parts == "all" else sides)


def _mass_centers(sides: Sides, num_masks: int) -> Tensor:
    """(M, 2) float32 mass centres of what outlines enclose.

    By Green's theorem: the integral of 1 (of x) is that of x (of x squared / 2) along the sides that face left and
    right, taken upwards and downwards; in whole numbers, which double precision holds exactly.
    """
    facing, mask, level, start, end = (column.numpy() for column in sides)
    bounds = np.searchsorted(facing, [LEFT, RIGHT, TOP, BOTTOM, BOTTOM + 1])
    strip = level * (end - start)
    area, *moments = (
        np.bincount(mask[high], value[high], num_masks) - np.bincount(mask[low], value[low], num_masks)
        for value, first in ((strip, LEFT), (strip * level, LEFT), (strip * level, TOP))
        for low, high in [(slice(*bounds[first : first + 2]), slice(*bounds[first + 1 : first + 3]))]
    )
    centers = np.stack(moments, axis=1) / (2 * area)[:, None].clip(min=1)
    return torch.from_numpy(centers.astype(np.float32))
