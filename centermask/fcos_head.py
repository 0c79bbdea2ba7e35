"""CenterMask-FCOS's head: FCOS v1's branches, and local shapes on the box tower at the locations that are asked for.

Shape shorthand: N images, C channels, K classes, L levels, P locations, S side of a shape, Hi, Wi size of a level.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from centermask.shape import gather_neighborhoods, kernel_matrix
from segzoo.modeling.fcos.head import LevelScale, build_prediction, build_tower, init_head, predict_log_sizes


class FCOSMaskMaps(NamedTuple):
    """Raw outputs, one map a level but for the saliency.

    cls_logits: (N, K, Hi, Wi). box_logits: (N, 4, Hi, Wi) of l, t, r, b before exp. centerness_logits: (N, 1, Hi, Wi).
    box_features: (N, C, Hi, Wi) of the box tower, which shapes are made of. saliency: (N, Cs, H, W) logits at stride 4,
    or None.
    """

    cls_logits: list[Tensor]
    box_logits: list[Tensor]
    centerness_logits: list[Tensor]
    box_features: list[Tensor]
    saliency: Tensor | None = None


class FCOSMaskHead(nn.Module):
    """Class and box towers shared over the levels, centerness on the class tower, shapes on the box tower."""

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
        shape_size: int,
    ) -> None:
        """
        Args:
            channels, num_classes, num_levels, num_convs, norm, prior_prob, deformable: see `FCOSHead`.
            shape_size: S; 0 = no shapes.
        """
        super().__init__()
        self.cls_tower = build_tower(channels, num_convs, norm, deformable)
        self.box_tower = build_tower(channels, num_convs, norm, deformable)
        self.cls_logits = build_prediction(channels, num_classes)
        self.box_pred = build_prediction(channels, 4)
        self.centerness = build_prediction(channels, 1)
        self.box_scales = nn.ModuleList(LevelScale() for _ in range(num_levels))
        self.shape_size = shape_size
        self.shape_pred = build_prediction(channels, shape_size**2) if shape_size else None
        init_head(self, self.cls_logits, prior_prob)

    def forward(self, features: list[Tensor]) -> FCOSMaskMaps:
        """(N, C, Hi, Wi) of every level -> the raw maps of every level, without a saliency."""
        maps = FCOSMaskMaps([], [], [], [])
        for feature, scale in zip(features, self.box_scales, strict=True):
            cls_feature, box_feature = self.cls_tower(feature), self.box_tower(feature)
            maps.cls_logits.append(self.cls_logits(cls_feature))
            maps.centerness_logits.append(self.centerness(cls_feature))
            maps.box_logits.append(predict_log_sizes(self.box_pred, scale, box_feature))
            maps.box_features.append(box_feature)
        return maps

    def shapes_at(self, box_features: list[Tensor], levels: Tensor, images: Tensor, cells: Tensor) -> Tensor | None:
        """Local shapes at P locations, by one matrix product for all levels.

        Args:
            box_features: (N, C, Hi, Wi) of every level.
            levels, images: (P,) int64 numbers of level and image.
            cells: (P, 2) int64 column and row.

        Returns:
            (P, S, S) float32 logits, or None without shapes.
        """
        if self.shape_pred is None:
            return None
        order = levels.argsort(stable=True)
        parts = order.split(torch.bincount(levels, minlength=len(box_features)).tolist())
        gathered = [
            gather_neighborhoods(feature, images[own], cells[own])
            for feature, own in zip(box_features, parts, strict=True)
        ]
        return self.shapes_from(torch.cat(gathered)[order.argsort()])

    def shapes_from(self, neighborhoods: Tensor) -> Tensor:
        """(P, S, S) float32 logits of (P, 9 * C) neighbourhoods; only of a head with shapes."""
        assert self.shape_pred is not None
        logits = functional.linear(neighborhoods, kernel_matrix(self.shape_pred), self.shape_pred.bias)
        return logits.float().view(-1, self.shape_size, self.shape_size)
