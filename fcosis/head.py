"""FCOSIS's detection head: FCOS v1's branches, a coarse segmentation and the way to the centre of mass.

Shape shorthand: N images, C channels, K classes, Hi, Wi size of a level.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from segzoo.modeling.fcos.head import FCOSHead, build_prediction, predict_log_sizes


class DetectionMaps(NamedTuple):
    """Raw outputs, one map a level.

    cls_logits: (N, K, Hi, Wi). box_logits: (N, 4, Hi, Wi) of l, t, r, b before exp. centerness_logits and
    coarse_logits: (N, 1, Hi, Wi). center_offsets: (N, 2, Hi, Wi) x and y from a location to its object's centre of
    mass, in strides of the level.
    """

    cls_logits: list[Tensor]
    box_logits: list[Tensor]
    centerness_logits: list[Tensor]
    coarse_logits: list[Tensor]
    center_offsets: list[Tensor]


class GroupingHead(FCOSHead):
    """FCOS's head with a coarse segmentation on the class tower and centre offsets on the box tower."""

    def __init__(self, *, channels: int, **kwargs: Any) -> None:
        """
        Args:
            channels, kwargs: see `FCOSHead`.
        """
        super().__init__(channels=channels, **kwargs)
        self.coarse_logits = build_prediction(channels, 1)
        self.center_offsets = build_prediction(channels, 2)
        for prediction in (self.coarse_logits, self.center_offsets):
            nn.init.normal_(prediction.weight, std=0.01)
            assert prediction.bias is not None
            nn.init.zeros_(prediction.bias)

    def forward(self, features: list[Tensor]) -> DetectionMaps:  # type: ignore[override]
        """(N, C, Hi, Wi) of every level -> the raw maps of every level."""
        maps = DetectionMaps([], [], [], [], [])
        for feature, scale in zip(features, self.box_scales, strict=True):
            cls_feature, box_feature = self.cls_tower(feature), self.box_tower(feature)
            maps.cls_logits.append(self.cls_logits(cls_feature))
            maps.centerness_logits.append(self.centerness(cls_feature))
            maps.coarse_logits.append(self.coarse_logits(cls_feature))
            maps.box_logits.append(predict_log_sizes(self.box_pred, scale, box_feature))
            maps.center_offsets.append(self.center_offsets(box_feature))
        return maps
