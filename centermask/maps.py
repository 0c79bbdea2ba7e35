"""The raw maps of CenterMask's network.

Shape shorthand: N images, K classes, C channels of the feature, Cs channels of the saliency, H, W size of the maps.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Image pixels between neighbouring cells of all maps.
MAP_STRIDE = 4


class CenterMaps(NamedTuple):
    """Raw maps of one set of heads, all at stride 4; sizes and offsets count cells.

    heatmap: (N, K, H, W) logits of object centres. offset: (N, 2, H, W) x and y of a centre in its cell. size:
    (N, 2, H, W) width and height of its box. saliency: (N, Cs, H, W) logits, or None. feature: (N, C, H, W), of which
    shapes are made where there is an object; a map of all shapes would be S^2 channels deep.
    """

    heatmap: Tensor
    offset: Tensor
    size: Tensor
    saliency: Tensor | None
    feature: Tensor


def gather_cells(maps: Tensor, images: Tensor | int, cells: Tensor) -> Tensor:
    """(P, C) in fp32: the values of (N, C, H, W) maps at P cells.

    Args:
        images: (P,) number of the image, or that of all.
        cells: (P, 2) column and row.
    """
    if isinstance(images, int):
        return maps[images, :, cells[:, 1], cells[:, 0]].T.float()
    return maps[images, :, cells[:, 1], cells[:, 0]].float()


def saliency_channels_of(classes: Tensor, num_channels: int) -> Tensor:
    """(P,) the saliency's channel of each of (P,) class indices; the only one where the saliency tells no classes.

    Args:
        classes: 0 to K - 1.
        num_channels: Cs, K or 1.
    """
    return classes if num_channels > 1 else torch.zeros_like(classes)
