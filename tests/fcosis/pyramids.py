"""Cells of pyramids, and a slow way to walk them, for the tests of FCOSIS's dense parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from segzoo.modeling.fcos.locations import Locations, compute_locations

STRIDES = (8, 16, 32, 64, 128)


def pyramid(size: tuple[int, int], strides: Sequence[int] = STRIDES) -> Locations:
    """The cells over an image of `size` (H, W) px; a level is half as large as the last, rounded up."""
    sizes = [(-(-size[0] // strides[0]), -(-size[1] // strides[0]))]
    while len(sizes) < len(strides):
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    return compute_locations(sizes, strides, torch.device("cpu"))


def cells(locations: Locations, strides: Sequence[int] = STRIDES) -> Iterator[tuple[int, int, int]]:
    """Level, row, column of every location in their order, without looking at more of it than the sizes of the maps."""
    for level, (height, width) in enumerate(locations.map_sizes[: len(strides)]):
        for row, column in np.ndindex(height, width):
            yield level, row, column
