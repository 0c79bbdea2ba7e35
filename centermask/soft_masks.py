"""Ground-truth masks on the stride-4 map, for a whole batch on the device.

Shape shorthand: N images, M ground truths, Cs saliency channels, h, w size of an image, H, W of the stride-4 map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from centermask.maps import MAP_STRIDE


def soft_masks(masks: Sequence[Tensor], map_size: tuple[int, int]) -> Tensor:
    """Area averages of full-size masks in the cells of a stride-4 map.

    Args:
        masks: (m, h, w) bool of every image, whose sizes may differ and need be no multiple of 4; M in all. What lies
            beyond an image counts as background.
        map_size: (H, W), large enough for all images.

    Returns:
        (M, H, W) float32, sixteenths.
    """
    height, width = map_size
    return torch.cat([_count_set(stack, height, width) for stack in masks]).float() / MAP_STRIDE**2


def _count_set(masks: Tensor, height: int, width: int) -> Tensor:
    """(m, H, W) int32 set pixels of each cell.

    The only pass over the pixels adds four rows of words of four pixels. None of a word's bytes exceeds 4 then.
    """
    if len(masks) == 0:
        # Without masks strides are anything, and no view as words is sure to exist.
        return torch.zeros((0, height, width), dtype=torch.int32, device=masks.device)
    missing = (-masks.shape[2] % MAP_STRIDE, -masks.shape[1] % MAP_STRIDE)
    if any(missing):
        masks = functional.pad(masks, (0, missing[0], 0, missing[1]))
    words = masks.contiguous().view(torch.int32)
    sums = words.unflatten(1, (words.shape[1] // MAP_STRIDE, MAP_STRIDE)).sum(dim=2, dtype=torch.int32)
    counts = sum((sums >> shift) & 0xFF for shift in range(0, 32, 8))
    assert isinstance(counts, Tensor)
    return functional.pad(counts, (0, width - counts.shape[2], 0, height - counts.shape[1]))


def union_masks(masks: Tensor, images: Tensor, channels: Tensor, num_images: int, num_channels: int) -> Tensor:
    """(N, Cs, H, W) targets of the saliency: the union of all objects of an image and a channel.

    Shares of a cell add up to 1 at most: the exact union of objects that do not overlap, also where they touch.

    Args:
        masks: (M, H, W) soft masks.
        images, channels: (M,) int64 numbers of the objects' image and saliency channel.
        num_images, num_channels: N, Cs.
    """
    height, width = masks.shape[1:]
    unions = masks.new_zeros(num_images * num_channels, height, width)
    return (
        unions.index_add_(0, images * num_channels + channels, masks)
        .clamp_(max=1)
        .view(-1, num_channels, height, width)
    )
