"""Painting the areas of objects into orientation maps: two ways to the same targets, one for GPUs and one for CPUs.

On a GPU the pixels of all areas are worked on at once. On a CPU going object by object over views of the maps is
several times faster, because an object's pixels stay in the cache and need no index.

Shape shorthand: M ground truths, G maps, H, W size of the network input, T pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from segzoo.geometry.runs import bounded_blocks, expand_ranges

# Pixels of objects' areas that are worked on at once; bounds the memory of their coordinates and vectors to some
# 200 MB. Beside it stand the maps themselves and, on a GPU, a second copy of the masks.
MAX_PIXELS = 2_000_000


class Areas(NamedTuple):
    """The rectangles around M base positions that have targets, cut at the image's border.

    base_px: (M, 2). reach_px: (M, 2) half width and half height before the cut. first, last: (M, 2) first and last
    pixel (column, row).
    """

    base_px: Tensor
    reach_px: Tensor
    first: Tensor
    last: Tensor


class Canvas(NamedTuple):
    """Painted maps: (2, G, H, W) x and y of the vectors, (G, H, W) bool positive and negative pixels."""

    vectors: Tensor
    is_positive: Tensor
    is_negative: Tensor


def paint(
    areas: Areas,
    masks: Sequence[Tensor],
    order: Tensor,
    maps: Tensor,
    units_px: Tensor,
    shape: tuple[int, int, int],
) -> Canvas:
    """Paints M objects one over another.

    Args:
        areas: of the objects, in the order of painting.
        masks: (m, h, w) bool of every image, perhaps smaller than the maps; M in all.
        order: (M,) number of each object's mask among all of them.
        maps: (M,) index of the map that each object is painted into.
        units_px: (M, 2) px that a vector of length 1 stands for, x and y.
        shape: (G, H, W).
    """
    way = paint_one_by_one if order.device.type == "cpu" else paint_at_once
    return way(areas, masks, order, maps, units_px, shape)


def paint_at_once(
    areas: Areas,
    masks: Sequence[Tensor],
    order: Tensor,
    maps: Tensor,
    units_px: Tensor,
    shape: tuple[int, int, int],
) -> Canvas:
    """See `paint`; without a step for every object."""
    _, height, width = shape
    joined = _join_masks(masks, (height, width)).view(-1)
    num_pixels = shape[0] * height * width
    owner = torch.full((num_pixels,), -1, dtype=torch.int32, device=maps.device)
    sums, count = units_px.new_zeros(2, num_pixels), units_px.new_zeros(num_pixels)
    for number, x, y in _area_pixels(areas):
        place = (maps[number] * height + y) * width + x
        is_mask = joined[(order[number] * height + y) * width + x]
        inside, outside = is_mask.nonzero().squeeze(1), (~is_mask).nonzero().squeeze(1)
        owner.scatter_reduce_(0, place[inside], number[inside].int(), "amax")
        number, place = number[outside], place[outside]
        vectors = _outward(areas, number, x[outside], y[outside]) / units_px[number].T
        sums.index_add_(1, place, vectors)
        count.index_add_(0, place, torch.ones_like(vectors[0]))
    is_positive = owner >= 0
    vectors = sums.div_(count.clamp(min=1))
    chosen = is_positive.nonzero().squeeze(1)
    number = owner[chosen].long()
    pixels = torch.stack((chosen % width, chosen // width % height))
    vectors[:, chosen] = (areas.base_px[number].T - pixels) / units_px[number].T
    is_negative = (count > 0) & ~is_positive
    return Canvas(vectors.view(2, *shape), is_positive.view(shape), is_negative.view(shape))


def _join_masks(masks: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """(M, H, W) bool, masks of smaller images padded at the right and the bottom."""
    padded = []
    for mask in masks:
        missing = (0, size[1] - mask.shape[2], 0, size[0] - mask.shape[1])
        padded.append(functional.pad(mask, missing) if any(missing) else mask)
    return torch.cat(padded)


def _area_pixels(areas: Areas) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Blocks of the areas' pixels: (T,) number of the object, x, y."""
    width, height = (areas.last - areas.first + 1).unbind(dim=1)
    owner, row = expand_ranges(areas.first[:, 1], height)
    row_width, row_left = width[owner], areas.first[owner, 0]
    for block in bounded_blocks(row_width, MAX_PIXELS):
        line, x = expand_ranges(row_left[block], row_width[block])
        yield owner[block][line], x, row[block][line]


def _outward(areas: Areas, number: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """(2, T) vectors that lengthen the way from the base position to a pixel until it leaves the area, px."""
    away = torch.stack((x, y)) - areas.base_px.T[:, number]
    reach = areas.reach_px.T[:, number]
    stretch = (reach / away.abs()).amin(dim=0).clamp(min=1)
    # The base position itself, in a ring's hole, has no way to lengthen: it points to the right border.
    is_base = (away == 0).all(dim=0)
    rightward = torch.stack((reach[0], torch.zeros_like(reach[1])))
    return torch.where(is_base, rightward, (stretch - 1) * away)


def paint_one_by_one(
    areas: Areas,
    masks: Sequence[Tensor],
    order: Tensor,
    maps: Tensor,
    units_px: Tensor,
    shape: tuple[int, int, int],
) -> Canvas:
    """See `paint`; object by object over views of the maps, on the CPU."""
    # Of numpy, because its zeros cost nothing where nobody looks.
    vectors, count = np.zeros((2, *shape), np.float32), np.zeros(shape, np.int16)
    is_positive = np.zeros(shape, bool)
    single = [mask.numpy() for image in masks for mask in image]
    columns = zip(maps.tolist(), order.tolist(), areas.first.tolist(), areas.last.tolist(), strict=True)
    places = zip(areas.base_px.numpy(), areas.reach_px.numpy(), units_px.numpy(), strict=True)
    for (map_index, number, (left, top), (right, bottom)), (base, reach, unit) in zip(columns, places, strict=True):
        window = np.s_[map_index, top : bottom + 1, left : right + 1]
        away_x = np.arange(left, right + 1, dtype=np.float32) - base[0]
        away_y = (np.arange(top, bottom + 1, dtype=np.float32) - base[1])[:, None]
        mask, positive = single[number][window[1:]], is_positive[window]
        is_free = ~(mask | positive)
        count[window] += is_free
        stretch = _stretch(away_x, away_y, reach, is_free)
        for axis, away in enumerate((away_x / unit[0], away_y / unit[1])):
            part = vectors[axis][window]
            part += stretch * away
            np.copyto(part, -away, where=mask)
        # As in `_outward`: the base position itself points to the right border.
        vectors[0][window][(away_x == 0) & (away_y == 0) & is_free] += reach[0] / unit[0]
        positive |= mask
    is_negative = count > 0
    is_negative &= ~is_positive
    _divide_shared(vectors, count, is_negative)
    return Canvas(*(torch.from_numpy(column) for column in (vectors, is_positive, is_negative)))


def _stretch(away_x: np.ndarray, away_y: np.ndarray, reach: np.ndarray, is_free: np.ndarray) -> np.ndarray:
    """(h, w) what the way to a free pixel is lengthened by, in its own length; 0 for others and for the base itself."""
    with np.errstate(divide="ignore"):
        stretch = np.minimum(np.abs(reach[0] / away_x), np.abs(reach[1] / away_y))
    np.maximum(stretch, 1, out=stretch)
    stretch -= 1
    stretch[np.isinf(stretch)] = 0
    stretch *= is_free
    return stretch


def _divide_shared(vectors: np.ndarray, count: np.ndarray, is_negative: np.ndarray) -> None:
    """Sums become means where several areas meet."""
    shared = np.flatnonzero((count > 1) & is_negative)
    flat = vectors.reshape(2, -1)
    flat[:, shared] /= count.reshape(-1)[shared]
