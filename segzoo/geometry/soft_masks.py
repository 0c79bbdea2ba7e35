"""Masks on a map of stride 4: the share of each cell that is set, for a whole batch on the device.

Shape shorthand: N images, M ground truths, h, w size of an image, H, W of the stride-4 map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

# Pixels between neighbouring cells.
MASK_STRIDE = 4


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
    return torch.cat([_count_set(stack, height, width) for stack in masks]).float() / MASK_STRIDE**2


def _count_set(masks: Tensor, height: int, width: int) -> Tensor:
    """(m, H, W) int32 set pixels of each cell.

    The only pass over the pixels adds four rows of words of four pixels. None of a word's bytes exceeds 4 then.
    """
    if len(masks) == 0:
        # Without masks strides are anything, and no view as words is sure to exist.
        return torch.zeros((0, height, width), dtype=torch.int32, device=masks.device)
    missing = (-masks.shape[2] % MASK_STRIDE, -masks.shape[1] % MASK_STRIDE)
    if any(missing):
        masks = functional.pad(masks, (0, missing[0], 0, missing[1]))
    words = masks.contiguous().view(torch.int32)
    sums = words.unflatten(1, (words.shape[1] // MASK_STRIDE, MASK_STRIDE)).sum(dim=2, dtype=torch.int32)
    counts = sum((sums >> shift) & 0xFF for shift in range(0, 32, 8))
    assert isinstance(counts, Tensor)
    return functional.pad(counts, (0, width - counts.shape[2], 0, height - counts.shape[1]))
