"""Detectron2's ResNets with a pyramid P3..P7, as FCOS and its descendants use them."""

from __future__ import annotations

import logging

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN, build_resnet_backbone

from segzoo.errors import ConfigError
from segzoo.modeling.backbones.pyramid import build_pyramid, build_top_block

logger = logging.getLogger(__name__)


@BACKBONE_REGISTRY.register()
def build_resnet_fpn_p3p7_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """ResNet (MODEL.RESNETS) and FPN over res3..res5 (MODEL.FPN.IN_FEATURES) with P6 and P7.

    Detectron2's `build_retinanet_resnet_fpn_backbone` takes P6 from res5 only; this one asks MODEL.FPN.TOP_IN_FEATURE.

    Returns:
        A backbone (N, 3, H, W) -> {"p3": (N, C, H / 8, W / 8), ..., "p7": (N, C, H / 128, W / 128)}.

    Raises:
        ConfigError: a feature of MODEL.FPN.IN_FEATURES is not among MODEL.RESNETS.OUT_FEATURES.
    """
    in_features = list(cfg.MODEL.FPN.IN_FEATURES)
    absent = [name for name in in_features if name not in cfg.MODEL.RESNETS.OUT_FEATURES]
    if absent or not in_features:
        raise ConfigError(
            f"MODEL.FPN.IN_FEATURES is {in_features}, MODEL.RESNETS.OUT_FEATURES {cfg.MODEL.RESNETS.OUT_FEATURES}",
            'set both to ["res3", "res4", "res5"]',
        )
    _warn_of_frozen_random_weights(cfg)
    bottom_up = build_resnet_backbone(cfg, input_shape)
    return build_pyramid(cfg, bottom_up, in_features, build_top_block(cfg, bottom_up, in_features[-1]))


def _warn_of_frozen_random_weights(cfg: CfgNode) -> None:
    if cfg.MODEL.WEIGHTS:
        return
    if cfg.MODEL.RESNETS.NORM == "FrozenBN":
        logger.warning(
            "MODEL.WEIGHTS is empty and MODEL.RESNETS.NORM is FrozenBN: training from scratch diverges; use BN or GN"
        )
    if cfg.MODEL.BACKBONE.FREEZE_AT > 0:
        logger.warning(
            "MODEL.WEIGHTS is empty and MODEL.BACKBONE.FREEZE_AT is %d: the frozen stages keep random weights; use 0",
            cfg.MODEL.BACKBONE.FREEZE_AT,
        )
