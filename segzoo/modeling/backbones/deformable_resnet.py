"""ResNets and ResNeXts whose stages are deformable, without Detectron2's compiled extension.

Shape shorthand: N images, C channels, H, W size of a feature.
"""

from __future__ import annotations

import logging
from typing import Any

import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import CNNBlockBase, Conv2d, ShapeSpec
from detectron2.modeling.backbone import ResNet
from detectron2.modeling.backbone.resnet import BasicStem, BottleneckBlock
from torch import Tensor

from segzoo.errors import ConfigError
from segzoo.modeling.deformable import DeformConv, build_offset_conv, predict_offsets

logger = logging.getLogger(__name__)

# Blocks of res2..res5 (He et al., table 1) by depth, of those with a bottleneck.
BLOCKS_PER_STAGE = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
ALL_PLAIN = [False, False, False, False]


class DeformableBottleneck(BottleneckBlock):
    """A bottleneck with a deformable 3x3 convolution.

    Parameters: Detectron2's, that is those of the plain block (so that ImageNet weights fill them) and
    `conv2_offset.{weight,bias}`.
    """

    conv2: Conv2d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        deform_modulated: bool = False,
        deform_num_groups: int = 1,
        **bottleneck: Any,
    ) -> None:
        """
        Args:
            in_channels, out_channels: of the block.
            deform_modulated: version 2 (offsets and masks) instead of version 1 (offsets).
            deform_num_groups: parts of the 3x3 convolution's input channels with offsets of their own.
            bottleneck: the other arguments of `BottleneckBlock`.
        """
        super().__init__(in_channels, out_channels, **bottleneck)
        plain = self.conv2
        self.conv2 = DeformConv(
            plain.in_channels,
            plain.out_channels,
            kernel_size=plain.kernel_size,
            stride=plain.stride,
            padding=plain.padding,
            dilation=plain.dilation,
            groups=plain.groups,
            bias=False,
            norm=plain.norm,
            modulated=deform_modulated,
        )
        self.conv2.weight = plain.weight
        self.conv2_offset = build_offset_conv(self.conv2, modulated=deform_modulated, groups=deform_num_groups)

    def forward(self, feature: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride)."""
        out = F.relu_(self.conv1(feature))
        out = F.relu_(self.conv2(out, predict_offsets(self.conv2_offset, out)))
        shortcut = feature if self.shortcut is None else self.shortcut(feature)
        return F.relu_(self.conv3(out) + shortcut)


def build_deformable_resnet(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Detectron2's `build_resnet_backbone` with the stages of MODEL.RESNETS.DEFORM_ON_PER_STAGE deformable.

    The configuration is taken as checked (`check_deformable_stages`), and nothing as dilated.
    """
    resnets = cfg.MODEL.RESNETS
    stem = BasicStem(in_channels=input_shape.channels, out_channels=resnets.STEM_OUT_CHANNELS, norm=resnets.NORM)
    stages = [_build_stage(resnets, index) for index in range(4)]
    return ResNet(stem, stages, out_features=resnets.OUT_FEATURES, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT)


def _build_stage(resnets: CfgNode, index: int) -> list[CNNBlockBase]:
    # Stage `index` is res<index + 2>; each has twice the channels and half the resolution of the one before.
    num_blocks = BLOCKS_PER_STAGE[resnets.DEPTH][index]
    out_channels = resnets.RES2_OUT_CHANNELS * 2**index
    block_class: type[BottleneckBlock] = BottleneckBlock
    deformation = {}
    if resnets.DEFORM_ON_PER_STAGE[index]:
        block_class = DeformableBottleneck
        deformation = {
            "deform_modulated": resnets.DEFORM_MODULATED,
            "deform_num_groups": resnets.DEFORM_NUM_GROUPS,
        }
    return ResNet.make_stage(
        block_class,
        num_blocks,
        in_channels=out_channels // 2 if index else resnets.STEM_OUT_CHANNELS,
        out_channels=out_channels,
        stride_per_block=[2 if index else 1] + [1] * (num_blocks - 1),
        bottleneck_channels=_bottleneck_channels(resnets, index),
        num_groups=resnets.NUM_GROUPS,
        norm=resnets.NORM,
        stride_in_1x1=resnets.STRIDE_IN_1X1,
        **deformation,
    )


def _bottleneck_channels(resnets: CfgNode, index: int) -> int:
    return resnets.NUM_GROUPS * resnets.WIDTH_PER_GROUP * 2**index


def check_deformable_stages(cfg: CfgNode) -> None:
    """Checks MODEL.RESNETS.DEFORM_*.

    Raises:
        ConfigError: names the key, its value and the allowed values.
    """
    resnets = cfg.MODEL.RESNETS
    stages = list(resnets.DEFORM_ON_PER_STAGE)
    given = f"MODEL.RESNETS.DEFORM_ON_PER_STAGE is {stages}"
    if len(stages) != 4 or not all(isinstance(stage, bool) for stage in stages):
        raise ConfigError(
            given, "it must be four of True and False, for res2 to res5, such as [False, True, True, True]"
        )
    if not isinstance(resnets.DEFORM_MODULATED, bool):
        raise ConfigError(
            f"MODEL.RESNETS.DEFORM_MODULATED is {resnets.DEFORM_MODULATED!r}",
            "it must be True (offsets and masks) or False (offsets only)",
        )
    if not any(stages):
        return
    if resnets.DEPTH not in BLOCKS_PER_STAGE:
        raise ConfigError(
            f"{given}, but the blocks of MODEL.RESNETS.DEPTH {resnets.DEPTH} are no bottlenecks",
            f"use a depth of {', '.join(map(str, BLOCKS_PER_STAGE))}, or leave the stages at {ALL_PLAIN}",
        )
    # Later stages are wider by powers of two.
    channels = _bottleneck_channels(resnets, stages.index(True))
    groups = resnets.DEFORM_NUM_GROUPS
    if not isinstance(groups, int) or groups < 1 or channels % groups:
        raise ConfigError(
            f"MODEL.RESNETS.DEFORM_NUM_GROUPS is {groups!r}",
            f"it must be a positive divisor of the {channels} channels of the first deformable stage, such as 1",
        )


def warn_of_frozen_offsets(cfg: CfgNode) -> None:
    """Says which deformable stages MODEL.BACKBONE.FREEZE_AT keeps from learning offsets."""
    freeze_at = cfg.MODEL.BACKBONE.FREEZE_AT
    stages = enumerate(cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE, start=2)
    frozen = [f"res{stage}" for stage, is_deformable in stages if is_deformable and stage <= freeze_at]
    if frozen:
        logger.warning(
            "MODEL.BACKBONE.FREEZE_AT %d freezes the deformable %s: offsets stay as loaded, 0 with ImageNet weights",
            freeze_at,
            ", ".join(frozen),
        )
