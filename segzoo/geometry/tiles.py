"""Masks of many boxes, made in stacks of rectangles of bounded size, columns first.

Shape shorthand: D detections, T tiles of a stack, w, h columns and rows of its largest tile, H rows of the image, W, H
columns and rows of a map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from segzoo.geometry.rle import RLEMasks, encode_edges


class Tiles(NamedTuple):
    """Rectangles of pixels.

    owner: (T,) number of the detection. left, top, width, height: (T,) pixels; all int64.
    """

    owner: Tensor
    left: Tensor
    top: Tensor
    width: Tensor
    height: Tensor


def masks_from_tiles(
    first: Tensor,
    counts: Tensor,
    image_size: tuple[int, int],
    is_inside: Callable[[Tiles, Tensor, Tensor], Tensor],
    *,
    max_pixels: int,
    map_size: tuple[int, int],
) -> RLEMasks:
    """Masks of D detections, each within its rectangle, whose memory is bounded.

    Args:
        first, counts, max_pixels, map_size: see `cut_tiles`.
        image_size: (height, width) of the masks.
        is_inside: given tiles and the centres of their pixels (see `tile_pixels`), (T, w, h) whether these belong to
            the tiles' masks.
    """
    edges: list[list[np.ndarray]] = [[] for _ in range(len(first))]
    for tiles in cut_tiles(first, counts, max_pixels, map_size, is_stacked=first.device.type != "cpu"):
        for number, found in find_edges(is_inside(tiles, *tile_pixels(tiles)), tiles, image_size[0]):
            edges[number].append(found)
    return RLEMasks([encode_edges(np.concatenate(parts), image_size) for parts in edges], image_size)


def cut_tiles(
    first: Tensor, counts: Tensor, max_pixels: int, map_size: tuple[int, int], *, is_stacked: bool
) -> Iterator[Tiles]:
    """Stacks of tiles that cover D rectangles; those of a detection come from left to right.

    Tiles of similar height share a stack on a GPU; on a CPU each is better alone, where it stays in the cache and
    nothing is padded.

    Args:
        first: (D, 2) first column and row of each rectangle.
        counts: (D, 2) number of its columns and rows, at least 1.
        max_pixels: of a stack, its padding included; one column is always allowed.
        map_size: (W, H) of the largest map that tiles are resampled from. Each tile of a stack holds one, first whole,
            then with the tile's columns and all of its rows: neither takes more than `max_pixels` in a stack.
        is_stacked: whether a stack may hold several tiles.
    """
    map_width, map_height = map_size
    tiles = []
    # One transfer for all rectangles.
    for owner, (left, top, width, height) in enumerate(torch.cat((first, counts), dim=1).tolist()):
        step = max(1, max_pixels // max(height, map_height))
        tiles += [(owner, left + x, top, min(step, width - x), height) for x in range(0, width, step)]
    if is_stacked:
        tiles.sort(key=lambda tile: tile[-1])
    start = 0
    while start < len(tiles):
        stop, widest = start + 1, tiles[start][3]
        while is_stacked and stop < len(tiles):
            # The last one is the highest.
            widest = max(widest, tiles[stop][3])
            pixels = max(widest * max(tiles[stop][4], map_height), map_width * map_height)
            if (stop + 1 - start) * pixels > max_pixels:
                break
            stop += 1
        yield Tiles(*torch.tensor(tiles[start:stop], device=first.device).unbind(dim=1))
        start = stop


def tile_pixels(tiles: Tiles) -> tuple[Tensor, Tensor]:
    """(T, w) x and (T, h) y of the centres of the tiles' pixels; smaller tiles go on beyond their end."""
    columns = torch.arange(int(tiles.width.max()), device=tiles.width.device)
    rows = torch.arange(int(tiles.height.max()), device=tiles.height.device)
    return tiles.left[:, None] + columns + 0.5, tiles.top[:, None] + rows + 0.5


def find_edges(is_mask: Tensor, tiles: Tiles, image_height: int) -> list[tuple[int, np.ndarray]]:
    """Where the runs of the tiles' masks begin and end, counted down the columns of the image.

    Args:
        is_mask: (T, w, h) bool.
        tiles: T tiles; what lies beyond the end of a smaller one is ignored.
        image_height: H.

    Returns:
        (number of the detection, ascending places) of each tile.
    """
    num_tiles, width, height = is_mask.shape
    padded = is_mask.new_zeros(num_tiles, width, height + 2)
    padded[..., 1:-1] = is_mask
    if num_tiles > 1:
        inner = padded[..., 1:-1]
        inner &= (torch.arange(width, device=is_mask.device) < tiles.width[:, None])[..., None]
        inner &= (torch.arange(height, device=is_mask.device) < tiles.height[:, None])[:, None]
    tile, column, row = (padded[..., 1:] != padded[..., :-1]).nonzero().unbind(dim=1)
    places = (tiles.left[tile] + column) * image_height + tiles.top[tile] + row
    stops = torch.bincount(tile, minlength=num_tiles).cumsum(0).tolist()
    return list(zip(tiles.owner.tolist(), np.split(places.cpu().numpy(), stops[:-1]), strict=True))


def resample(maps: Tensor, columns: Tensor, rows: Tensor) -> Tensor:
    """Bilinear interpolation between cell centres; the border's value beyond them.

    Args:
        maps: (T, W, H), one for each tile.
        columns, rows: (T, w) and (T, h) places in cells from the first cell's border.

    Returns:
        (T, w, h).
    """
    return _interpolate(_interpolate(maps, 1, columns), 2, rows)


def _interpolate(maps: Tensor, dim: int, places: Tensor) -> Tensor:
    """(T, ., .) maps at (T, n) places along a dimension."""
    first, second, share = neighbors(places, maps.shape[dim])
    shape = list(maps.shape)
    shape[dim] = places.shape[1]
    view = (len(maps), -1, 1) if dim == 1 else (len(maps), 1, -1)
    start, end = (maps.gather(dim, index.view(view).expand(shape)) for index in (first, second))
    return torch.lerp(start, end, share.view(view))


def neighbors(places: Tensor, count: int | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The two of `count` cells around each place, and the share of the second; the border's cell beyond the centres.

    Args:
        places: any shape, in cells from the first cell's border.
        count: number of cells in a row; int64 of the same shape where rows differ.
    """
    last = count - 1
    places = (places - 0.5).clamp(min=0).clamp(max=last)
    lower = places.floor()
    first = lower.long()
    return first, (first + 1).clamp(max=last), places - lower
