"""Stacked hourglasses (Newell et al., ECCV 2016) as CornerNet and CenterNet have them: Hourglass-104 of any size.

A stem to stride 4, then hourglasses one after the other, each of which halves its input several times and brings it
back. Every one gives a feature of stride 4; in training a method supervises all of them, at test it reads the last.
Children are named as in CenterNet's weights.

Shape shorthand: N images, C channels, H, W size of the (padded) image or of a feature.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone
from torch import Tensor, nn

from segzoo.errors import ConfigError
from segzoo.modeling.backbones.residual import ConvNorm, ResidualBlock, build_conv_sequence, warn_nothing_frozen
from segzoo.modeling.norms import norm_of_run

# Hourglass-104's.
NUM_STACKS, CHANNELS, BLOCKS = 2, (256, 256, 384, 384, 384, 512), (2, 2, 2, 2, 2, 4)
STEM_STRIDE = 4


class SkipBlock(ResidualBlock):
    """A residual block that makes its shortcut itself, by a 1x1 convolution and a norm where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, norm: str) -> None:
        super().__init__(in_channels, out_channels, stride=stride, norm=norm)
        self.skip: nn.Module = nn.Identity()
        if stride > 1 or in_channels != out_channels:
            self.skip = build_conv_sequence(in_channels, out_channels, 1, stride=stride, norm=norm, has_relu=False)

    def forward(self, feature: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride)."""
        return super().forward(feature, self.skip(feature) if shortcut is None else shortcut)


class Hourglass(nn.Module):
    """Half the size, a smaller hourglass, back to the size; beside it blocks at full size, to which it is added.

    Args:
        channels: at full size, half the size, and so on; from two.
        blocks: residual blocks at each of these sizes, on every way; from 1.
        norm: a name that Detectron2's `get_norm` knows.
    """

    def __init__(self, channels: Sequence[int], blocks: Sequence[int], *, norm: str) -> None:
        super().__init__()
        (outer, inner), (num_outer, num_inner) = channels[:2], blocks[:2]
        self.up1 = build_blocks([outer] * (num_outer + 1), norm=norm)
        self.low1 = build_blocks([outer] + [inner] * num_outer, stride=2, norm=norm)
        self.low2: nn.Module = (
            Hourglass(channels[1:], blocks[1:], norm=norm)
            if len(channels) > 2
            else build_blocks([inner] * (num_inner + 1), norm=norm)
        )
        self.low3 = build_blocks([inner] * num_outer + [outer], norm=norm)

    def forward(self, feature: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        low = self.low3(self.low2(self.low1(feature)))
        out: Tensor = self.up1(feature) + F.interpolate(low, scale_factor=2.0, mode="nearest")
        return out


def build_blocks(channels: Sequence[int], *, stride: int = 1, norm: str) -> nn.Sequential:
    """Residual blocks from each number of channels to the next, the first of `stride`."""
    return nn.Sequential(
        *(
            SkipBlock(before, after, stride=stride if i == 0 else 1, norm=norm)
            for i, (before, after) in enumerate(itertools.pairwise(channels))
        )
    )


class StackedHourglass(Backbone):
    """The stem, the hourglasses, and between two of them the merge of the first one's input and output.

    Args:
        num_stacks: hourglasses; the features are called "stack0", "stack1", ...
        channels: at stride 4, 8, and so on; all features have the first, the stem's first convolution half of it.
        blocks: residual blocks at each of these strides, on every way.
        norm: a name that Detectron2's `get_norm` knows.
        in_channels: of the image.
    """

    def __init__(
        self,
        *,
        num_stacks: int = NUM_STACKS,
        channels: Sequence[int] = CHANNELS,
        blocks: Sequence[int] = BLOCKS,
        norm: str = "BN",
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        width, num_merges = channels[0], num_stacks - 1
        self.pre = nn.Sequential(
            ConvNorm(in_channels, width // 2, 7, stride=2, norm=norm),
            SkipBlock(width // 2, width, stride=2, norm=norm),
        )
        self.kps = nn.ModuleList(Hourglass(channels, blocks, norm=norm) for _ in range(num_stacks))
        self.cnvs = nn.ModuleList(ConvNorm(width, width, 3, norm=norm) for _ in range(num_stacks))
        # Of the merges: what takes the sum, the input, and the feature.
        self.inters = nn.ModuleList(SkipBlock(width, width, norm=norm) for _ in range(num_merges))
        self.inters_, self.cnvs_ = (
            nn.ModuleList(build_conv_sequence(width, width, 1, norm=norm, has_relu=False) for _ in range(num_merges))
            for _ in range(2)
        )
        self._shapes = {f"stack{i}": ShapeSpec(channels=width, stride=STEM_STRIDE) for i in range(num_stacks)}
        self._divisor = STEM_STRIDE * 2 ** (len(channels) - 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) normalised images -> {"stack<i>": (N, C, H / 4, W / 4)}, first hourglass first."""
        feature = self.pre(images)
        features = {}
        for i, name in enumerate(self._shapes):
            features[name] = self.cnvs[i](self.kps[i](feature))
            if i < len(self.inters):
                merged = self.inters_[i](feature) + self.cnvs_[i](features[name])
                feature = self.inters[i](merged.relu_())
        return features

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of every hourglass's feature by name, in their order."""
        return dict(self._shapes)

    @property
    def size_divisibility(self) -> int:
        """Sides of this multiple halve evenly down to the middle of an hourglass."""
        return self._divisor


def check_hourglass(cfg: CfgNode) -> None:
    """Checks MODEL.HOURGLASS.

    Raises:
        ConfigError: names the key, its value and what is allowed.
    """
    node = cfg.MODEL.HOURGLASS
    if node.NUM_STACKS < 1:
        raise ConfigError(f"MODEL.HOURGLASS.NUM_STACKS is {node.NUM_STACKS}", "it must be at least 1")
    # The stem begins with half of the first number of channels.
    for key, smallest, default in (("CHANNELS", 2, CHANNELS), ("BLOCKS", 1, BLOCKS)):
        values = list(node[key])
        if len(values) < 2 or not all(isinstance(value, int) and value >= smallest for value in values):
            raise ConfigError(
                f"MODEL.HOURGLASS.{key} is {values}",
                f"it must be two or more whole numbers from {smallest}; Hourglass-104 has {default}",
            )
    if len(node.CHANNELS) != len(node.BLOCKS):
        raise ConfigError(
            f"MODEL.HOURGLASS.CHANNELS has {len(node.CHANNELS)} numbers, BLOCKS has {len(node.BLOCKS)}",
            "both have one for every size, from stride 4 to the middle of an hourglass",
        )


@BACKBONE_REGISTRY.register()
def build_hourglass_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> StackedHourglass:
    """Hourglasses of MODEL.HOURGLASS, each with a feature "stack<i>" of stride 4; nothing of it is ever frozen.

    Raises:
        ConfigError: an impossible value, see `check_hourglass`.
    """
    check_hourglass(cfg)
    warn_nothing_frozen(cfg)
    node = cfg.MODEL.HOURGLASS
    return StackedHourglass(
        num_stacks=node.NUM_STACKS,
        channels=node.CHANNELS,
        blocks=node.BLOCKS,
        norm=norm_of_run("MODEL.HOURGLASS.NORM", node.NORM, cfg.MODEL.DEVICE),
        in_channels=input_shape.channels,
    )
