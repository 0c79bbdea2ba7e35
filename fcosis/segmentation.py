"""Segmentation at stride 4: FCOSIS's head, which attends to the objects of a colour group, and the baseline's.

Shape shorthand: N images, G colour groups, C channels of the features, Hi, Wi size of a level, H, W of the finest one,
K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.layers import ASPP
from fvcore.nn.weight_init import c2_msra_fill
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from segzoo.modeling.precision import predict_in_fp32

# Levels of the segmentation, finest first (section 3.2), the finest one of stride 4.
SEG_FEATURES = ["p2", "p3", "p4"]
# DeepLab's rates of dilation at output stride 16; at stride 4 they see a quarter of that.
ASPP_DILATIONS = [6, 12, 18]
# What one group holds is held twice for the gradient.
GRADIENT_COPIES = 2


class LevelSum(nn.Module):
    """A 3x3 convolution and ReLU a level; from the coarsest one on enlarged twofold and added to the next finer one."""

    def __init__(self, channels: int, hidden: int, num_levels: int) -> None:
        """
        Args:
            channels: C.
            hidden: channels of the sum.
            num_levels: of the pyramid.
        """
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(channels, hidden, 3, padding=1) for _ in range(num_levels))
        for lateral in self.laterals:
            c2_msra_fill(lateral)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """(N, C, Hi, Wi), finest first -> (N, hidden, H, W)."""
        finer_first = [
            functional.relu(lateral(feature)) for lateral, feature in zip(self.laterals, features, strict=True)
        ]
        total = finer_first.pop()
        while finer_first:
            finer = finer_first.pop()
            total = finer + functional.interpolate(total, size=finer.shape[2:], mode="bilinear", align_corners=False)
        return total


class SegmentationHead(nn.Module):
    """One mask map for all objects of a colour group, from levels that its attention has weighted (section 3.2)."""

    def __init__(self, *, channels: int, hidden: int, num_levels: int) -> None:
        """
        Args:
            channels, hidden, num_levels: see `LevelSum`.
        """
        super().__init__()
        self.levels = LevelSum(channels, hidden, num_levels)
        self.pred = _prediction(hidden, 1)

    def forward(
        self, features: Sequence[Tensor], attention: Sequence[Tensor], group_images: Tensor, budget_mb: float
    ) -> Tensor:
        """All groups of all images as one batch, or as several where the memory would not do.

        Args:
            features: (N, C, Hi, Wi), finest first.
            attention: (G, 1, Hi, Wi) of the same levels, float32.
            group_images: (G,) int64 number of each group's image.
            budget_mb: MiB of features held at once; one group is always allowed. In training all parts but a single
                one are computed a second time for the gradient instead of being kept.

        Returns:
            (G, H, W) float32 logits.
        """
        num_groups = len(group_images)
        cells = sum(level.shape[2] * level.shape[3] for level in features)
        # Of every level the weighted feature, the convolution's output and the running sum.
        channels = features[0].shape[1] + 2 * self.pred.in_channels
        copies = GRADIENT_COPIES if torch.is_grad_enabled() else 1
        group_bytes = copies * cells * channels * features[0].element_size()
        step = max(1, int(budget_mb * 2**20 / group_bytes))
        if num_groups <= step:
            return self._segment(group_images, *features, *attention)
        parts = []
        for start in range(0, num_groups, step):
            part = slice(start, start + step)
            arguments = (group_images[part], *features, *(level[part] for level in attention))
            if torch.is_grad_enabled():
                parts.append(checkpoint(self._segment, *arguments, use_reentrant=False))
            else:
                parts.append(self._segment(*arguments))
        return torch.cat(parts)

    def _segment(self, group_images: Tensor, *levels: Tensor) -> Tensor:
        """(G, H, W) logits of (G,) images, the features and then the attention of each level."""
        count = len(levels) // 2
        features, attention = levels[:count], levels[count:]
        weighted = [
            feature[group_images] * weights.to(feature.dtype)
            for feature, weights in zip(features, attention, strict=True)
        ]
        return predict_in_fp32(self.pred, self.levels(weighted)).squeeze(1)


def shrink(attention: Tensor, num_levels: int) -> list[Tensor]:
    """Attention of stride 4 at the strides of `num_levels` levels, each twice the last: means of 2 x 2 cells.

    For a factor of 2 this is bilinear interpolation (align_corners False); small boxes are not lost between the
    cells of coarser levels, as they would be with larger ones.

    Args:
        attention: (G, 1, H, W).
    """
    levels = [attention]
    while len(levels) < num_levels:
        levels.append(functional.avg_pool2d(levels[-1], 2))
    return levels


class ContextHead(nn.Module):
    """A map of each class without attention (table 3a): atrous spatial pyramid pooling on the sum of the levels."""

    def __init__(self, *, channels: int, hidden: int, num_levels: int, num_classes: int) -> None:
        """
        Args:
            channels, hidden, num_levels: see `LevelSum`.
            num_classes: K.
        """
        super().__init__()
        self.levels = LevelSum(channels, hidden, num_levels)
        self.context = ASPP(hidden, hidden, ASPP_DILATIONS, norm="GN", activation=functional.relu)
        self.pred = _prediction(hidden, num_classes)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """(N, C, Hi, Wi), finest first -> (N, K, H, W) float32 logits."""
        return predict_in_fp32(self.pred, self.context(self.levels(features)))


def _prediction(channels: int, outputs: int) -> nn.Conv2d:
    prediction = nn.Conv2d(channels, outputs, 1)
    nn.init.normal_(prediction.weight, std=0.01)
    assert prediction.bias is not None
    nn.init.zeros_(prediction.bias)
    return prediction
