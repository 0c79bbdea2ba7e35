"""The neck of YOLOv3: what the backbone knows coarsely, brought to the finer strides.

Shape shorthand: N images, C channels, Hi, Wi size of a level's map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segzoo.modeling.backbones.darknet import build_conv_block


def build_five_convs(in_channels: int, channels: int, norm: str) -> nn.Sequential:
    """1x1 and 3x3 conv blocks in turn, `channels` and twice as many: (N, in_channels, H, W) -> (N, channels, H, W)."""
    return nn.Sequential(
        build_conv_block(in_channels, channels, 1, norm=norm),
        build_conv_block(channels, 2 * channels, 3, norm=norm),
        build_conv_block(2 * channels, channels, 1, norm=norm),
        build_conv_block(channels, 2 * channels, 3, norm=norm),
        build_conv_block(2 * channels, channels, 1, norm=norm),
    )


def upsample_to(feature: Tensor, like: Tensor) -> Tensor:
    """Nearest neighbours: (N, C, Hi, Wi) -> (N, C) + the size of `like`."""
    return F.interpolate(feature, size=like.shape[-2:], mode="nearest")


class YOLONeck(nn.Module):
    """Five conv blocks a level, coarse to fine; each level also sees the next coarser one through a 1x1 lateral.

    Parameters: `p{3,4,5}.{0..4}` of the strides 8, 16 and 32, `lateral{4,5}` from those levels to the finer ones.
    """

    def __init__(self, *, in_channels: Sequence[int], channels: Sequence[int], norm: str) -> None:
        """
        Args:
            in_channels: of the features of strides 8, 16 and 32.
            channels: of the levels of strides 8, 16 and 32; a lateral has those of the finer level.
            norm: a name that Detectron2's `get_norm` knows.
        """
        super().__init__()
        (fine_in, middle_in, coarse_in), (fine, middle, coarse) = in_channels, channels
        self.p5 = build_five_convs(coarse_in, coarse, norm)
        self.lateral5 = build_conv_block(coarse, middle, 1, norm=norm)
        self.p4 = build_five_convs(middle + middle_in, middle, norm)
        self.lateral4 = build_conv_block(middle, fine, 1, norm=norm)
        self.p3 = build_five_convs(fine + fine_in, fine, norm)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Features (N, in_channels[i], Hi, Wi) of strides 8, 16 and 32 -> levels (N, channels[i], Hi, Wi)."""
        fine, middle, coarse = features
        p5 = self.p5(coarse)
        p4 = self.p4(torch.cat([upsample_to(self.lateral5(p5), middle), middle], dim=1))
        p3 = self.p3(torch.cat([upsample_to(self.lateral4(p4), fine), fine], dim=1))
        return [p3, p4, p5]
