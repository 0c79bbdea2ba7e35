"""PolarMask's head: class, ray and centerness branches on two towers shared over the levels.

Shape shorthand: N images, C channels, K classes, L levels, n rays.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from segzoo.modeling.fcos.head import LevelScale, build_prediction, build_tower, init_head, predict_log_sizes


class PolarMaps(NamedTuple):
    """Raw outputs, one map a level: (N, K, Hi, Wi), (N, 1, Hi, Wi), (N, n, Hi, Wi) before exp."""

    cls_logits: list[Tensor]
    centerness_logits: list[Tensor]
    ray_logits: list[Tensor]


class PolarHead(nn.Module):
    """Figure 2 of the paper without a box branch; centerness on the class tower."""

    def __init__(
        self,
        *,
        channels: int,
        num_classes: int,
        num_levels: int,
        num_convs: int,
        norm: str,
        prior_prob: float,
        num_rays: int,
    ) -> None:
        """
        Args:
            channels: channels of the features and of the towers.
            num_classes: K.
            num_levels: L, one ray scale each.
            num_convs: 3x3 convolutions of each tower.
            norm: "GN", "" or another norm of Detectron2.
            prior_prob: initial foreground probability.
            num_rays: n.
        """
        super().__init__()
        self.cls_tower = build_tower(channels, num_convs, norm)
        self.mask_tower = build_tower(channels, num_convs, norm)
        self.cls_logits = build_prediction(channels, num_classes)
        self.centerness = build_prediction(channels, 1)
        self.ray_pred = build_prediction(channels, num_rays)
        self.mask_scales = nn.ModuleList(LevelScale() for _ in range(num_levels))
        init_head(self, self.cls_logits, prior_prob)

    def forward(self, features: list[Tensor]) -> PolarMaps:
        """(N, C, Hi, Wi) of every level -> the raw maps of every level."""
        maps = PolarMaps([], [], [])
        for feature, scale in zip(features, self.mask_scales, strict=True):
            cls_feature = self.cls_tower(feature)
            maps.cls_logits.append(self.cls_logits(cls_feature))
            maps.centerness_logits.append(self.centerness(cls_feature))
            maps.ray_logits.append(predict_log_sizes(self.ray_pred, scale, self.mask_tower(feature)))
        return maps
