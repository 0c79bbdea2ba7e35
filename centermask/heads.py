"""CenterMask's heads, and what brings features of several strides to one of stride 4.

Shape shorthand: N images, K classes, C channels of the feature, Cs channels of the saliency, S side of a shape, H, W
size of the maps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from detectron2.layers import get_norm
from fvcore.nn.weight_init import c2_xavier_fill
from torch import Tensor, nn
from torch.nn import functional

from centermask.maps import CenterMaps
from centermask.shape import ShapeHead

# CenterNet's; the probability of a centre is some 0.1 everywhere at first.
HEATMAP_BIAS = -2.19


class Branch(nn.Sequential):
    """3x3 convolution, ReLU, 1x1 convolution; both with bias, `0` and `2` in CenterNet's DLA weights."""

    def __init__(self, in_channels: int, channels: int, outputs: int, bias: float = 0.0) -> None:
        """
        Args:
            in_channels: of the feature.
            channels: between the convolutions.
            outputs: of the map.
            bias: that the last convolution begins with.
        """
        pred = nn.Conv2d(channels, outputs, 1)
        super().__init__(nn.Conv2d(in_channels, channels, 3, padding=1), nn.ReLU(inplace=True), pred)
        assert pred.bias is not None
        nn.init.constant_(pred.bias, bias)

    def forward(self, feature: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, outputs, H, W), the last step in fp32 also under autocast.

        Sizes of a hundred cells and offsets of a hundredth have no room in 8 or 11 bits.
        """
        hidden = self[1](self[0](feature))
        with torch.autocast(feature.device.type, enabled=False):
            out: Tensor = self[2](hidden.float())
        return out


class CenterHead(nn.Module):
    """The heads of one supervised feature: heatmap, offset, size, and perhaps shape and saliency."""

    def __init__(
        self,
        *,
        in_channels: int,
        channels: int,
        num_classes: int,
        shape_size: int,
        saliency_channels: int,
        saliency_prior: float,
    ) -> None:
        """
        Args:
            in_channels: C.
            channels: of every head's hidden layer.
            num_classes: K.
            shape_size: S; 0 = no shapes.
            saliency_channels: Cs; 0 = no saliency.
            saliency_prior: probability that its bias begins with.
        """
        super().__init__()
        self.heatmap = Branch(in_channels, channels, num_classes, HEATMAP_BIAS)
        self.offset = Branch(in_channels, channels, 2)
        self.size = Branch(in_channels, channels, 2)
        self.shape = ShapeHead(in_channels, shape_size, channels) if shape_size else None
        prior = math.log(saliency_prior / (1 - saliency_prior))
        self.saliency = Branch(in_channels, channels, saliency_channels, prior) if saliency_channels else None

    def forward(self, feature: Tensor) -> CenterMaps:
        """(N, C, H, W) -> the raw maps; shapes wait for their cells, see `shapes_at`."""
        saliency = None if self.saliency is None else self.saliency(feature)
        return CenterMaps(self.heatmap(feature), self.offset(feature), self.size(feature), saliency, feature)

    def shapes_at(self, feature: Tensor, images: Tensor, cells: Tensor) -> Tensor | None:
        """(P, S, S) logits of the shapes at P cells (column, row) of the numbered images; None without shapes."""
        return None if self.shape is None else self.shape(feature, images, cells)


class FeatureSum(nn.Module):
    """Features of several strides as one of the finest: each by a 1x1 convolution, enlarged and summed, then smoothed.

    As in a pyramid each is enlarged twofold and added to the next finer one; a 3x3 convolution, a group norm and a ReLU
    follow.
    """

    def __init__(self, in_channels: Sequence[int], channels: int) -> None:
        """
        Args:
            in_channels: of the features, finest first.
            channels: of the sum.
        """
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in in_channels)
        self.output = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = get_norm("GN", channels)
        for conv in (*self.laterals, self.output):
            c2_xavier_fill(conv)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """(N, Ci, Hi, Wi), finest first -> (N, C, H, W) of the finest one's size."""
        laterals = [lateral(feature) for lateral, feature in zip(self.laterals, features, strict=True)]
        total = laterals.pop()
        while laterals:
            finer = laterals.pop()
            total = finer + functional.interpolate(total, size=finer.shape[2:], mode="bilinear", align_corners=False)
        out: Tensor = self.norm(self.output(total)).relu_()
        return out
