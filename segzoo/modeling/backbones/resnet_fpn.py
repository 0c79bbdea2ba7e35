"""Detectron2's ResNets with a pyramid P3..P7 or P2..P7, as FCOS and its descendants use them."""

from __future__ import annotations

import logging

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN, build_resnet_backbone

from segzoo.errors import ConfigError
from segzoo.modeling.backbones.deformable_resnet import (
    build_deformable_resnet,
    check_deformable_stages,
    warn_of_frozen_offsets,
)
from segzoo.modeling.backbones.pyramid import build_pyramid, build_top_block

logger = logging.getLogger(__name__)

DEPTHS = (18, 34, 50, 101, 152)
# Name of a builder -> the features that its pyramid stands on.
PYRAMIDS = {
    "build_resnet_fpn_p3p7_backbone": ["res3", "res4", "res5"],
    "build_resnet_fpn_p2p7_backbone": ["res2", "res3", "res4", "res5"],
}
# Key below MODEL.RESNETS -> the only value that the basic blocks of depth 18 and 34 work with.
OF_BASIC_BLOCKS = {"RES2_OUT_CHANNELS": 64, "NUM_GROUPS": 1}


@BACKBONE_REGISTRY.register()
def build_resnet_fpn_p3p7_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """ResNet or ResNeXt (MODEL.RESNETS) and FPN over res3..res5 (MODEL.FPN.IN_FEATURES) with P6 and P7.

    Stages are deformable as MODEL.RESNETS.DEFORM_* say.

    Detectron2's `build_retinanet_resnet_fpn_backbone` takes P6 from res5 only; this one asks MODEL.FPN.TOP_IN_FEATURE.

    Returns:
        A backbone (N, 3, H, W) -> {"p3": (N, C, H / 8, W / 8), ..., "p7": (N, C, H / 128, W / 128)}.

    Raises:
        ConfigError: an impossible value, see `check_resnet_fpn`, or an impossible MODEL.FPN.
    """
    return _build_resnet_fpn(cfg, input_shape)


@BACKBONE_REGISTRY.register()
def build_resnet_fpn_p2p7_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """As `build_resnet_fpn_p3p7_backbone`, but over res2..res5 (MODEL.FPN.IN_FEATURES): P2 for masks of stride 4.

    Returns:
        A backbone (N, 3, H, W) -> {"p2": (N, C, H / 4, W / 4), ..., "p7": (N, C, H / 128, W / 128)}.

    Raises:
        ConfigError: an impossible value, see `check_resnet_fpn`; MODEL.FPN.IN_FEATURES is not res2..res5.
    """
    in_features, wanted = list(cfg.MODEL.FPN.IN_FEATURES), PYRAMIDS["build_resnet_fpn_p2p7_backbone"]
    if in_features != wanted:
        raise ConfigError(
            f"MODEL.FPN.IN_FEATURES is {in_features} with MODEL.BACKBONE.NAME 'build_resnet_fpn_p2p7_backbone'",
            f"set it, and MODEL.RESNETS.OUT_FEATURES, to {wanted}",
        )
    return _build_resnet_fpn(cfg, input_shape)


def _build_resnet_fpn(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    check_resnet_fpn(cfg)
    _warn_of_frozen_random_weights(cfg)
    warn_of_frozen_offsets(cfg)
    # Detectron2's own builder knows deformable stages too, but only with its compiled extension.
    is_deformable = any(cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE)
    bottom_up = (build_deformable_resnet if is_deformable else build_resnet_backbone)(cfg, input_shape)
    in_features = list(cfg.MODEL.FPN.IN_FEATURES)
    return build_pyramid(cfg, bottom_up, in_features, build_top_block(cfg, bottom_up, in_features[-1]))


def check_resnet_fpn(cfg: CfgNode) -> None:
    """Checks MODEL.RESNETS, on its own and against MODEL.FPN.IN_FEATURES.

    Raises:
        ConfigError: names the key, its value and the allowed values.
    """
    resnets, in_features = cfg.MODEL.RESNETS, list(cfg.MODEL.FPN.IN_FEATURES)
    absent = [name for name in in_features if name not in resnets.OUT_FEATURES]
    if absent or not in_features:
        raise ConfigError(
            f"MODEL.FPN.IN_FEATURES is {in_features}, MODEL.RESNETS.OUT_FEATURES {resnets.OUT_FEATURES}",
            f"set both to {PYRAMIDS.get(cfg.MODEL.BACKBONE.NAME, PYRAMIDS['build_resnet_fpn_p3p7_backbone'])}",
        )
    if resnets.DEPTH not in DEPTHS:
        raise ConfigError(f"MODEL.RESNETS.DEPTH is {resnets.DEPTH}", f"allowed: {', '.join(map(str, DEPTHS))}")
    if resnets.RES5_DILATION != 1:
        raise ConfigError(
            f"MODEL.RESNETS.RES5_DILATION is {resnets.RES5_DILATION}",
            "it must be 1: the pyramid needs levels that halve the resolution",
        )
    for key, value in OF_BASIC_BLOCKS.items():
        if resnets.DEPTH < 50 and resnets[key] != value:
            raise ConfigError(
                f"MODEL.RESNETS.{key} is {resnets[key]} with MODEL.RESNETS.DEPTH {resnets.DEPTH}",
                f"this depth needs {value}",
            )
    check_deformable_stages(cfg)


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
