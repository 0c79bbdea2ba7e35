"""Darknet-53 (Redmon and Farhadi, "YOLOv3", table 1) of any depth and width, without its classifier.

Shape shorthand: N images, C channels, H, W size of the (padded) image.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone
from torch import Tensor, nn

from segzoo.errors import ConfigError
from segzoo.modeling.norms import norm_of_run

logger = logging.getLogger(__name__)

LEAKY_SLOPE = 0.1
STAGES = ("res1", "res2", "res3", "res4", "res5")
STAGE_CHOICES = ", ".join(STAGES)


def build_conv_block(in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, norm: str) -> Conv2d:
    """Convolution without bias, norm and leaky ReLU, initialised as PyTorch does.

    Returns:
        (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride)); parameters `weight`, `norm.*`.
    """
    return Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        padding=kernel_size // 2,
        bias=False,
        norm=get_norm(norm, out_channels),
        activation=nn.LeakyReLU(LEAKY_SLOPE, inplace=True),
    )


class DarknetBlock(nn.Module):
    """1x1 to half the channels, 3x3 back to all, added to the input."""

    def __init__(self, channels: int, norm: str) -> None:
        super().__init__()
        self.conv1 = build_conv_block(channels, channels // 2, 1, norm=norm)
        self.conv2 = build_conv_block(channels // 2, channels, 3, norm=norm)

    def forward(self, feature: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        out: Tensor = feature + self.conv2(self.conv1(feature))
        return out


class DarknetStage(nn.Module):
    """A 3x3 convolution of stride 2 that doubles the channels, and residual blocks."""

    def __init__(self, in_channels: int, num_blocks: int, norm: str) -> None:
        super().__init__()
        channels = 2 * in_channels
        self.down = build_conv_block(in_channels, channels, 3, stride=2, norm=norm)
        self.blocks = nn.Sequential(*(DarknetBlock(channels, norm) for _ in range(num_blocks)))

    def forward(self, feature: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, 2C, H / 2, W / 2)."""
        out: Tensor = self.blocks(self.down(feature))
        return out


class Darknet(Backbone):
    """A stem of stride 1 and five stages, each with half the resolution and twice the channels of the one before.

    Args:
        blocks_per_stage: residual blocks of res1..res5; Darknet-53 has (1, 2, 8, 8, 4).
        stem_channels: C of the stem; res<i> has C * 2^i.
        norm: a name that Detectron2's `get_norm` knows.
        out_features: names of the features to give, in any order.
        freeze_at: everything up to res<freeze_at> gets no gradient and its norms stay in eval mode; 0 freezes nothing.
        in_channels: of the image.

    Raises:
        ConfigError: impossible `out_features`.
    """

    def __init__(
        self,
        *,
        blocks_per_stage: Sequence[int] = (1, 2, 8, 8, 4),
        stem_channels: int = 32,
        norm: str = "BN",
        out_features: Sequence[str] = STAGES,
        freeze_at: int = 0,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        _check_names("out_features", out_features)
        self.stem = build_conv_block(in_channels, stem_channels, 3, norm=norm)
        self._shapes: dict[str, ShapeSpec] = {}
        for index, (name, num_blocks) in enumerate(zip(STAGES, blocks_per_stage, strict=True)):
            channels = stem_channels * 2**index
            self.add_module(name, DarknetStage(channels, num_blocks, norm))
            self._shapes[name] = ShapeSpec(channels=2 * channels, stride=2 ** (index + 1))
        self._out_features = [name for name in STAGES if name in out_features]
        self._frozen = [self.get_submodule(name) for name in ("stem", *STAGES)[: freeze_at + 1]] if freeze_at else []
        for module in self._frozen:
            module.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) normalised images -> {"res<i>": (N, C, H / 2^i, W / 2^i)}, finest first."""
        feature = self.stem(images)
        features = {}
        for name in STAGES[: STAGES.index(self._out_features[-1]) + 1]:
            feature = self.get_submodule(name)(feature)
            if name in self._out_features:
                features[name] = feature
        return features

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of every feature by name."""
        return {name: self._shapes[name] for name in self._out_features}

    @property
    def size_divisibility(self) -> int:
        """Sides of this multiple halve evenly down to the last stage."""
        return 32

    def train(self, mode: bool = True) -> Darknet:
        """As nn.Module.train, but frozen parts stay in eval mode."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self


def _check_names(key: str, names: Sequence[str]) -> None:
    if not names or len(set(names)) != len(names) or not set(names) <= set(STAGES):
        raise ConfigError(f"{key} is {list(names)}", f"name some of {STAGE_CHOICES}, each once")


def check_darknet(cfg: CfgNode) -> None:
    """Checks MODEL.DARKNET, and MODEL.BACKBONE.FREEZE_AT for it.

    Raises:
        ConfigError: names the key, its value and what is allowed.
    """
    node, freeze_at = cfg.MODEL.DARKNET, cfg.MODEL.BACKBONE.FREEZE_AT
    blocks = list(node.BLOCKS_PER_STAGE)
    if len(blocks) != len(STAGES) or not all(type(count) is int and count >= 0 for count in blocks):
        raise ConfigError(
            f"MODEL.DARKNET.BLOCKS_PER_STAGE is {blocks}",
            f"it must be five numbers from 0, for {STAGE_CHOICES}; Darknet-53 has (1, 2, 8, 8, 4)",
        )
    if node.STEM_CHANNELS < 1:
        raise ConfigError(f"MODEL.DARKNET.STEM_CHANNELS is {node.STEM_CHANNELS}", "it must be at least 1")
    _check_names("MODEL.DARKNET.OUT_FEATURES", node.OUT_FEATURES)
    if not 0 <= freeze_at <= len(STAGES):
        raise ConfigError(
            f"MODEL.BACKBONE.FREEZE_AT is {freeze_at}", f"0 freezes nothing, 1..{len(STAGES)} all up to that stage"
        )


@BACKBONE_REGISTRY.register()
def build_darknet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Darknet:
    """Darknet of MODEL.DARKNET, with MODEL.BACKBONE.FREEZE_AT as in `Darknet` where MODEL.WEIGHTS fills it.

    Raises:
        ConfigError: an impossible value, see `check_darknet`.
    """
    check_darknet(cfg)
    node, freeze_at = cfg.MODEL.DARKNET, cfg.MODEL.BACKBONE.FREEZE_AT
    if freeze_at and not cfg.MODEL.WEIGHTS:
        # Frozen random convolutions only withhold from the rest what it could learn from, and their norms in eval mode
        # have no statistics.
        logger.warning(
            "MODEL.BACKBONE.FREEZE_AT (%d) has no effect from scratch (MODEL.WEIGHTS is empty): nothing is frozen",
            freeze_at,
        )
        freeze_at = 0
    return Darknet(
        blocks_per_stage=node.BLOCKS_PER_STAGE,
        stem_channels=node.STEM_CHANNELS,
        norm=norm_of_run("MODEL.DARKNET.NORM", node.NORM, cfg.MODEL.DEVICE),
        out_features=node.OUT_FEATURES,
        freeze_at=freeze_at,
        in_channels=input_shape.channels,
    )
