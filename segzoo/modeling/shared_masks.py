"""Ground-truth masks of proposals, for mask heads that work box by box.

Shape shorthand:
    M: ground truths, B: proposals, H, W: size of an image in pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.layers import ROIAlign
from torch import Tensor


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

    def crop_and_resize(self, boxes: Tensor, mask_size: int) -> Tensor:
        """The part of each mask in its box (B, 4) xyxy px as (B, mask_size, mask_size) bool, as BitMasks gives it."""
        if len(self) == 0:
            return self.stack.new_zeros(0, mask_size, mask_size)
        boxes = boxes.to(self.stack.device, torch.float32)
        regions = torch.cat([self.index[:, None].float(), boxes], dim=1)
        align = ROIAlign((mask_size, mask_size), 1.0, 0, aligned=True)
        return align(self.stack[:, None].float(), regions)[:, 0] >= 0.5
