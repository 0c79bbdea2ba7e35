"""Towers and scales of an FCOS head.

Shape shorthand: N images, C channels, K classes, L levels.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from detectron2.layers import get_norm
from torch import Tensor, nn

from segzoo.modeling.deformable import ModulatedDeformConv, zero_offsets

# exp() of more than this (about 16,000 px) is never a size in an image; keeps fp16 and wild logits finite.
MAX_LOG_SIZE = math.log(16_384.0)


class LevelScale(nn.Module):
    """A learnable factor of one level, 1 at first."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, feature: Tensor) -> Tensor:
        """Multiplies a map of any shape."""
        return feature * self.scale


def build_tower(channels: int, num_convs: int, norm: str, deformable: bool = False) -> nn.Sequential:
    """`num_convs` times 3x3 convolution, norm, ReLU.

    Args:
        channels: of the feature and of every layer.
        num_convs: 0 makes a tower that does nothing.
        norm: "GN", another norm of Detectron2, or "" for none.
        deformable: whether all convolutions are modulated deformable ones, which always have a bias; plain ones have
            one only without a norm.
    """
    layers: list[nn.Module] = []
    for _ in range(num_convs):
        if deformable:
            layers.append(ModulatedDeformConv(channels, channels, kernel_size=3, padding=1))
        else:
            layers.append(nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=not norm))
        if norm:
            layers.append(get_norm(norm, channels))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def build_prediction(channels: int, outputs: int) -> nn.Conv2d:
    """The 3x3 convolution with bias that ends a branch."""
    return nn.Conv2d(channels, outputs, kernel_size=3, padding=1)


def init_head(head: nn.Module, cls_logits: nn.Conv2d, prior_prob: float) -> None:
    """Normal(0, 0.01) weights and zero biases; the classifier starts at `prior_prob` everywhere (RetinaNet).

    Offsets of deformable convolutions start at 0, as in the DCN papers. No paper on such a head says how its deformable
    filters start; they are given the normal(0, 0.01) of all the head's convolutions.
    """
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.01)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    # After the loop, which also met the convolutions of the offsets.
    for module in head.modules():
        if isinstance(module, ModulatedDeformConv):
            zero_offsets(module.offset)
    assert cls_logits.bias is not None
    nn.init.constant_(cls_logits.bias, -math.log((1 - prior_prob) / prior_prob))


def predict_log_sizes(prediction: nn.Module, scale: nn.Module, feature: Tensor) -> Tensor:
    """Logarithms of sizes, always in fp32: near log(200 px) two neighbouring bfloat16 values are 3 % apart.

    Args:
        prediction: the last convolution of the branch.
        scale: the level's `LevelScale`.
        feature: (N, C, H, W) in any precision.
    """
    with torch.autocast(feature.device.type, enabled=False):
        return scale(prediction(feature.float()))


def exp_size(scaled_logits: Tensor) -> Tensor:
    """Sizes in pixels, > 0 and finite: exp in fp32 with a clamp, so that no precision overflows."""
    return scaled_logits.float().clamp(max=MAX_LOG_SIZE).exp()


class FCOSMaps(NamedTuple):
    """Raw outputs of the head, one map a level: (N, K, Hi, Wi), (N, 4, Hi, Wi) before exp, (N, 1, Hi, Wi)."""

    cls_logits: list[Tensor]
    box_logits: list[Tensor]
    centerness_logits: list[Tensor]


class FCOSHead(nn.Module):
    """Class and box towers shared over the levels; centerness on the class tower, as in FCOS v1."""

    def __init__(
        self,
        *,
        channels: int,
        num_classes: int,
        num_levels: int,
        num_convs: int,
        norm: str,
        prior_prob: float,
        deformable: bool = False,
    ) -> None:
        """
        Args:
            channels: channels of the features and of the towers.
            num_classes: K.
            num_levels: L, one box scale each.
            num_convs: 3x3 convolutions of each tower.
            norm: "GN", "" or another norm of Detectron2.
            prior_prob: initial foreground probability.
            deformable: whether the towers' convolutions are modulated deformable ones.
        """
        super().__init__()
        self.cls_tower = build_tower(channels, num_convs, norm, deformable)
        self.box_tower = build_tower(channels, num_convs, norm, deformable)
        self.cls_logits = build_prediction(channels, num_classes)
        self.box_pred = build_prediction(channels, 4)
        self.centerness = build_prediction(channels, 1)
        self.box_scales = nn.ModuleList(LevelScale() for _ in range(num_levels))
        init_head(self, self.cls_logits, prior_prob)

    def forward(self, features: list[Tensor]) -> FCOSMaps:
        """(N, C, Hi, Wi) of every level -> the raw maps of every level."""
        maps = FCOSMaps([], [], [])
        for feature, scale in zip(features, self.box_scales, strict=True):
            cls_feature = self.cls_tower(feature)
            maps.cls_logits.append(self.cls_logits(cls_feature))
            maps.centerness_logits.append(self.centerness(cls_feature))
            maps.box_logits.append(predict_log_sizes(self.box_pred, scale, self.box_tower(feature)))
        return maps
