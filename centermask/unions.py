"""Ground truth of the saliency.

Shape shorthand: N images, M ground truths, Cs saliency channels, H, W size of the stride-4 map.
"""

from __future__ import annotations

from torch import Tensor


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
