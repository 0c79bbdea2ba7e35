"""Ground-truth masks of proposals, for mask heads that work box by box.

Shape shorthand:
    M: ground truths, B: proposals, H, W: size of an image in pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.layers import ROIAlign
from torch import Tensor

# Pixels of masks that are float32 at once: 256 MB.
MAX_PIXELS = 64_000_000


class SharedMasks:
    """Masks chosen from a stack that is not copied: Detectron2's BitMasks as far as the mask head's training needs it.

    Detectron2's ROI heads attach a ground-truth mask to each of up to 512 sampled proposals; as BitMasks these are 512
    full-size copies (half a gigabyte an image at 800 x 1333).

    Args:
        stack: (M, H, W) bool.
        index: (B,) int64, the mask of each proposal; None = each mask once.
    """

    def __init__(self, stack: Tensor, index: Tensor | None = None) -> None:
        self.stack = stack
        self.index = torch.arange(len(stack), device=stack.device) if index is None else index

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, item: int | slice | Tensor) -> SharedMasks:
        return SharedMasks(self.stack, self.index[item].reshape(-1))

    def to(self, *args: Any, **kwargs: Any) -> SharedMasks:
        """As Tensor.to."""
        return SharedMasks(self.stack.to(*args, **kwargs), self.index.to(*args, **kwargs))

    def crop_and_resize(self, boxes: Tensor, mask_size: int, max_pixels: int = MAX_PIXELS) -> Tensor:
        """The part of each mask in its box as BitMasks gives it.

        Args:
            boxes: (B, 4) xyxy px.
            mask_size: side of the result.
            max_pixels: of masks held at once as float32; one mask is always allowed. The result does not depend on it.

        Returns:
            (B, mask_size, mask_size) bool.
        """
        if len(self) == 0:
            return self.stack.new_zeros(0, mask_size, mask_size)
        boxes = boxes.to(self.stack.device, torch.float32)
        align = ROIAlign((mask_size, mask_size), 1.0, 0, aligned=True)
        step = max(1, max_pixels // max(self.stack[0].numel(), 1))
        if len(self.stack) <= step:
            return _crop(align, self.stack, self.index, boxes)
        crops = self.stack.new_zeros(len(self), mask_size, mask_size)
        for start in range(0, len(self.stack), step):
            own = ((self.index >= start) & (self.index < start + step)).nonzero()[:, 0]
            crops[own] = _crop(align, self.stack[start : start + step], self.index[own] - start, boxes[own])
        return crops


def _crop(align: ROIAlign, stack: Tensor, index: Tensor, boxes: Tensor) -> Tensor:
    """(B, S, S) bool of masks (B,) of the stack in boxes (B, 4)."""
    regions = torch.cat([index[:, None].float(), boxes], dim=1)
    return align(stack[:, None].float(), regions)[:, 0] >= 0.5
