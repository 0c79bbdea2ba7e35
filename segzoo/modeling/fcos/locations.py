"""Where the cells of the feature maps lie in the image.

Shape shorthand: R locations of all levels, in the order level, row, column; L levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Locations(NamedTuple):
    """The cells of all levels of one feature pyramid.

    points_px: (R, 2) x and y of the cells' centres in image pixels, ((j + 0.5) * stride, (i + 0.5) * stride).
    strides_px: (R,) stride of each cell's level.
    levels: (R,) index of each cell's level.
    map_sizes: (height, width) of every level's map, in cells.
    """

    points_px: Tensor
    strides_px: Tensor
    levels: Tensor
    map_sizes: tuple[tuple[int, int], ...]

    def to(self, device: torch.device | str) -> Locations:
        """The same cells on a device."""
        return Locations(self.points_px.to(device), self.strides_px.to(device), self.levels.to(device), self.map_sizes)


def compute_locations(
    feature_sizes: Sequence[tuple[int, int]], strides: Sequence[int], device: torch.device
) -> Locations:
    """The centres of the cells of every level.

    A pixel's centre lies at + 0.5, so that a cell's centre lies at (j + 0.5) * stride: for the even strides of
    a pyramid the j * stride + stride // 2 of the authors' programs.

    Args:
        feature_sizes: (height, width) of every level.
        strides: pixels between neighbouring cells of every level.
        device: where the result lives.
    """
    points, spacings, levels = [], [], []
    for level, ((height, width), stride) in enumerate(zip(feature_sizes, strides, strict=True)):
        y, x = torch.meshgrid(
            torch.arange(height, device=device, dtype=torch.float32),
            torch.arange(width, device=device, dtype=torch.float32),
            indexing="ij",
        )
        points.append((torch.stack((x, y), dim=-1).reshape(-1, 2) + 0.5) * stride)
        spacings.append(points[-1].new_full((height * width,), stride))
        levels.append(torch.full((height * width,), level, dtype=torch.int64, device=device))
    sizes = tuple((int(height), int(width)) for height, width in feature_sizes)
    return Locations(torch.cat(points), torch.cat(spacings), torch.cat(levels), sizes)


def map_sizes(maps_per_level: Sequence[Tensor]) -> list[tuple[int, int]]:
    """(height, width) of every level's map."""
    return [(level_map.shape[-2], level_map.shape[-1]) for level_map in maps_per_level]


def flatten_levels(maps_per_level: Sequence[Tensor]) -> Tensor:
    """(N, C, Hi, Wi) of every level -> (N, R, C), in the order of `compute_locations`."""
    return torch.cat([level_map.flatten(2).transpose(1, 2) for level_map in maps_per_level], dim=1)
