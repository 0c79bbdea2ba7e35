"""What the networks of CenterNet are built of: convolution with batch norm, and the residual block of two of them.

Children are named as in the weights of CenterNet, timm and ImageNet, so that these fit as they are.

Shape shorthand: N images, C channels, H, W size of a feature.
"""

from __future__ import annotations

import logging

from detectron2.config import CfgNode
from detectron2.layers import get_norm
from torch import Tensor, nn

logger = logging.getLogger(__name__)


def build_conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    """Convolution without bias that keeps the size at stride 1, initialised as PyTorch does."""
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2, bias=False)


def build_conv_sequence(
    in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, norm: str, has_relu: bool = True
) -> nn.Sequential:
    """Convolution, norm and, if `has_relu`, ReLU; parameters `0.weight` and `1.*`."""
    layers = [build_conv(in_channels, out_channels, kernel_size, stride), get_norm(norm, out_channels)]
    return nn.Sequential(*layers, *([nn.ReLU(inplace=True)] if has_relu else []))


class ConvNorm(nn.Module):
    """Convolution, norm and ReLU; parameters `conv.weight` and `bn.*`."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, norm: str) -> None:
        super().__init__()
        self.conv = build_conv(in_channels, out_channels, kernel_size, stride)
        self.bn = get_norm(norm, out_channels)

    def forward(self, feature: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride)."""
        out: Tensor = self.bn(self.conv(feature)).relu_()
        return out


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with norms, added to a shortcut that the caller makes (He et al., CVPR 2016, figure 2)."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, norm: str) -> None:
        super().__init__()
        self.conv1 = build_conv(in_channels, out_channels, 3, stride)
        self.bn1 = get_norm(norm, out_channels)
        self.conv2 = build_conv(out_channels, out_channels, 3)
        self.bn2 = get_norm(norm, out_channels)

    def forward(self, feature: Tensor, shortcut: Tensor) -> Tensor:
        """(N, in_channels, H, W) and a shortcut of the output's shape -> (N, out_channels, H / stride, W / stride)."""
        inner = self.bn1(self.conv1(feature)).relu_()
        out: Tensor = (self.bn2(self.conv2(inner)) + shortcut).relu_()
        return out


def warn_nothing_frozen(cfg: CfgNode) -> None:
    """Says that a backbone trained from scratch, as all of CenterNet's are, has no stages to freeze."""
    if cfg.MODEL.BACKBONE.FREEZE_AT > 0:
        logger.warning(
            "MODEL.BACKBONE.FREEZE_AT (%d) has no effect on %s: nothing is frozen",
            cfg.MODEL.BACKBONE.FREEZE_AT,
            cfg.MODEL.BACKBONE.NAME,
        )
