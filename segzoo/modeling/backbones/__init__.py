"""Backbones in Detectron2's BACKBONE_REGISTRY; importing this package registers them."""

from __future__ import annotations

from segzoo.modeling.backbones.darknet import build_darknet_backbone
from segzoo.modeling.backbones.dla import build_dla_backbone
from segzoo.modeling.backbones.hourglass import build_hourglass_backbone
from segzoo.modeling.backbones.resnet_fpn import build_resnet_fpn_p2p7_backbone, build_resnet_fpn_p3p7_backbone
from segzoo.modeling.backbones.timm_fpn import (
    build_timm_backbone,
    build_timm_fpn_backbone,
    build_timm_fpn_rcnn_backbone,
)

__all__ = [
    "build_darknet_backbone",
    "build_dla_backbone",
    "build_hourglass_backbone",
    "build_resnet_fpn_p2p7_backbone",
    "build_resnet_fpn_p3p7_backbone",
    "build_timm_backbone",
    "build_timm_fpn_backbone",
    "build_timm_fpn_rcnn_backbone",
]
