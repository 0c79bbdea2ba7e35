"""PolarMask's head: class, ray, centerness and perhaps box branches on two or three towers shared over the levels.

Shape shorthand: N images, C channels, K classes, L levels, n rays.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from segzoo.modeling.fcos.head import LevelScale, build_prediction, build_tower, init_head, predict_log_sizes


class PolarMaps(NamedTuple):
    """Raw outputs, one map a level.

    cls_logits: (N, K, Hi, Wi). centerness_logits: (N, 1, Hi, Wi). ray_logits: (N, n, Hi, Wi) before exp.
    box_logits: (N, 4, Hi, Wi) of l, t, r, b before exp; no map at all without a box branch.
    """

    cls_logits: list[Tensor]
    centerness_logits: list[Tensor]
    ray_logits: list[Tensor]
    box_logits: list[Tensor]


class PolarHead(nn.Module):
    """Figure 2 of the paper, with or without its box branch; centerness on the class tower."""

    def __init__(
        self,
        *,
        channels: int,
        num_classes: int,
        num_levels: int,
        num_convs: int,
        norm: str,
        prior_prob: float,
        deformable: bool,
        num_rays: int,
        box_branch: bool,
    ) -> None:
        """
        Args:
            channels: channels of the features and of the towers.
            num_classes: K.
            num_levels: L, one ray scale each.
            num_convs: 3x3 convolutions of each tower.
            norm: "GN", "" or another norm of Detectron2.
            prior_prob: initial foreground probability.
            deformable: whether the towers' convolutions are modulated deformable ones.
            num_rays: n.
            box_branch: whether a third tower regresses boxes.
        """
        super().__init__()
        self.cls_tower = build_tower(channels, num_convs, norm, deformable)
        self.mask_tower = build_tower(channels, num_convs, norm, deformable)
        self.cls_logits = build_prediction(channels, num_classes)
        self.centerness = build_prediction(channels, 1)
        self.ray_pred = build_prediction(channels, num_rays)
        self.mask_scales = nn.ModuleList(LevelScale() for _ in range(num_levels))
        self.has_boxes = box_branch
        if box_branch:
            self.box_tower = build_tower(channels, num_convs, norm, deformable)
            self.box_pred = build_prediction(channels, 4)
            self.box_scales = nn.ModuleList(LevelScale() for _ in range(num_levels))
        init_head(self, self.cls_logits, prior_prob)

    def forward(self, features: list[Tensor]) -> PolarMaps:
        """(N, C, Hi, Wi) of every level -> the raw maps of every level."""
        maps = PolarMaps([], [], [], [])
        for level, feature in enumerate(features):
            cls_feature = self.cls_tower(feature)
            maps.cls_logits.append(self.cls_logits(cls_feature))
            maps.centerness_logits.append(self.centerness(cls_feature))
            mask_feature = self.mask_tower(feature)
            maps.ray_logits.append(predict_log_sizes(self.ray_pred, self.mask_scales[level], mask_feature))
            if self.has_boxes:
                box_feature = self.box_tower(feature)
                maps.box_logits.append(predict_log_sizes(self.box_pred, self.box_scales[level], box_feature))
        return maps
