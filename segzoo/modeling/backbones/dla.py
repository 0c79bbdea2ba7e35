"""DLA-34 (Yu et al., "Deep Layer Aggregation", CVPR 2018) with CenterNet's deformable up-sampling to stride 4.

The trunk has six levels of strides 1 to 32. Levels 2 to 5 are trees: residual blocks whose outputs a root merges. Above
it two kinds of iterative aggregation bring levels 2 to 5 (`DlaUp`) and then the three finest results (the last `IdaUp`)
to stride 4. Children are named as in CenterNet's weights.

Shape shorthand: N images, C channels, H, W size of the (padded) image or of a feature.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone
from torch import Tensor, nn

from segzoo.errors import ConfigError
from segzoo.modeling.backbones.residual import ConvNorm, ResidualBlock, build_conv_sequence, warn_nothing_frozen
from segzoo.modeling.deformable import ModulatedDeformConv
from segzoo.modeling.norms import norm_of_run

LEVELS = ("level0", "level1", "level2", "level3", "level4", "level5")
# The finest level that is a tree, of stride 4, and so the finest that is aggregated.
FIRST_TREE = 2
# CenterNet leaves level5 out of the second aggregation: DlaUp has merged it into the finer ones.
NUM_LAST = 3
# DLA-34's.
TREE_DEPTHS, CHANNELS = (1, 2, 2, 1), (16, 32, 64, 128, 256, 512)
OUT_FEATURE = "p2"


class DlaPair(nn.Module):
    """The smallest tree: two residual blocks, and a root that merges their outputs and what is passed on to it."""

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int = 1, passed_channels: int = 0, norm: str
    ) -> None:
        """
        Args:
            stride: of the first block, 1 or 2.
            passed_channels: sum of the channels of what `forward` is passed.
        """
        super().__init__()
        self.stride = stride
        self.tree1 = ResidualBlock(in_channels, out_channels, stride=stride, norm=norm)
        self.tree2 = ResidualBlock(out_channels, out_channels, norm=norm)
        self.root = ConvNorm(2 * out_channels + passed_channels, out_channels, 1, norm=norm)
        self.project: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.project = build_conv_sequence(in_channels, out_channels, 1, norm=norm, has_relu=False)

    def forward(self, feature: Tensor, passed: Sequence[Tensor] = ()) -> Tensor:
        """(N, in_channels, H, W) and features of the output's size -> (N, out_channels, H / stride, W / stride)."""
        first = self.tree1(feature, self.project(pool(feature, self.stride)))
        second = self.tree2(first, first)
        out: Tensor = self.root(torch.cat((second, first, *passed), dim=1))
        return out


class DlaTree(nn.Module):
    """Two trees in a row, each of one depth less; the root of the second also merges the output of the first.

    The authors' program has a projection here, too, whose result it never uses; ours has none, as a parameter without
    a gradient stops a distributed run.
    """

    def __init__(
        self, depth: int, in_channels: int, out_channels: int, *, stride: int = 1, passed_channels: int = 0, norm: str
    ) -> None:
        """
        Args:
            depth: from 2; the tree has 2^depth residual blocks.
            stride, passed_channels: see `DlaPair`.
        """
        super().__init__()
        self.tree1 = build_tree(depth - 1, in_channels, out_channels, stride=stride, norm=norm)
        self.tree2 = build_tree(
            depth - 1, out_channels, out_channels, passed_channels=passed_channels + out_channels, norm=norm
        )

    def forward(self, feature: Tensor, passed: Sequence[Tensor] = ()) -> Tensor:
        """See `DlaPair`."""
        first = self.tree1(feature)
        out: Tensor = self.tree2(first, (*passed, first))
        return out


def build_tree(
    depth: int, in_channels: int, out_channels: int, *, stride: int = 1, passed_channels: int = 0, norm: str
) -> DlaPair | DlaTree:
    """A tree of 2^depth residual blocks, depth from 1; for the rest see `DlaPair`."""
    if depth == 1:
        return DlaPair(in_channels, out_channels, stride=stride, passed_channels=passed_channels, norm=norm)
    return DlaTree(depth, in_channels, out_channels, stride=stride, passed_channels=passed_channels, norm=norm)


def pool(feature: Tensor, stride: int) -> Tensor:
    """(N, C, H, W) -> (N, C, H / stride, W / stride), the largest value of every cell."""
    return F.max_pool2d(feature, stride) if stride > 1 else feature


class DlaTrunk(Backbone):
    """Levels of strides 1, 2, 4, 8, 16, 32: a 7x7 and two 3x3 convolutions, then four trees.

    Args:
        tree_depths: of level2..level5; a tree of depth d has 2^d residual blocks.
        channels: of level0..level5.
        norm: a name that Detectron2's `get_norm` knows.
        in_channels: of the image.
    """

    def __init__(
        self,
        *,
        tree_depths: Sequence[int] = TREE_DEPTHS,
        channels: Sequence[int] = CHANNELS,
        norm: str = "BN",
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.base_layer = build_conv_sequence(in_channels, channels[0], 7, norm=norm)
        self.level0 = build_conv_sequence(channels[0], channels[0], 3, norm=norm)
        self.level1 = build_conv_sequence(channels[0], channels[1], 3, stride=2, norm=norm)
        for level, depth in enumerate(tree_depths, start=FIRST_TREE):
            before, after = channels[level - 1 : level + 1]
            passed_channels = before if level > FIRST_TREE else 0
            tree = build_tree(depth, before, after, stride=2, passed_channels=passed_channels, norm=norm)
            self.add_module(LEVELS[level], tree)
        self._shapes = {
            name: ShapeSpec(channels=width, stride=2**level)
            for level, (name, width) in enumerate(zip(LEVELS, channels, strict=True))
        }

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) normalised images -> {"level<i>": (N, C, H / 2^i, W / 2^i)}, finest first."""
        features = {"level0": self.level0(self.base_layer(images))}
        features["level1"] = feature = self.level1(features["level0"])
        for level, name in enumerate(LEVELS[FIRST_TREE:], start=FIRST_TREE):
            # From level3 on the last root of a tree also sees the tree's input.
            passed = (pool(feature, 2),) if level > FIRST_TREE else ()
            features[name] = feature = self.get_submodule(name)(feature, passed)
        return features

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of every level by name."""
        return dict(self._shapes)

    @property
    def size_divisibility(self) -> int:
        """Sides of this multiple halve evenly down to the last level."""
        return 32


class DeformBlock(nn.Module):
    """A 3x3 convolution with bias, modulated deformable or plain, norm and ReLU."""

    def __init__(self, in_channels: int, out_channels: int, *, is_deformable: bool, norm: str) -> None:
        super().__init__()
        conv = ModulatedDeformConv if is_deformable else nn.Conv2d
        self.conv = conv(in_channels, out_channels, 3, padding=1)
        self.norm = get_norm(norm, out_channels)

    def forward(self, feature: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H, W)."""
        out: Tensor = self.norm(self.conv(feature)).relu_()
        return out


def build_upsampling(channels: int, factor: int) -> nn.ConvTranspose2d:
    """Transposed convolution of every channel alone that starts as bilinear interpolation, (H, W) -> `factor` as large.

    Args:
        channels: C.
        factor: an even number.
    """
    conv = nn.ConvTranspose2d(
        channels, channels, 2 * factor, stride=factor, padding=factor // 2, groups=channels, bias=False
    )
    # The filter's positions in input cells from its middle: a triangle of height 1 that ends a cell away.
    distances = (torch.arange(2 * factor) + 0.5) / factor - 1
    triangle = 1 - distances.abs()
    with torch.no_grad():
        conv.weight.copy_(triangle[:, None] * triangle)
    return conv


class IdaUp(nn.Module):
    """Iterative aggregation: from fine to coarse, every feature is brought to the finest size and merged.

    Args:
        out_channels: of what it gives.
        in_channels: of the features, finest first.
        factors: of the strides of the second feature and on, to the first one's.
        is_deformable: whether its convolutions are modulated deformable ones.
        norm: a name that Detectron2's `get_norm` knows.
    """

    def __init__(
        self,
        out_channels: int,
        in_channels: Sequence[int],
        factors: Sequence[int],
        *,
        is_deformable: bool,
        norm: str,
    ) -> None:
        super().__init__()
        for i, (width, factor) in enumerate(zip(in_channels[1:], factors, strict=True), start=1):
            self.add_module(f"proj_{i}", DeformBlock(width, out_channels, is_deformable=is_deformable, norm=norm))
            self.add_module(f"up_{i}", build_upsampling(out_channels, factor))
            self.add_module(
                f"node_{i}", DeformBlock(out_channels, out_channels, is_deformable=is_deformable, norm=norm)
            )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Merges without touching what it is given.

        Args:
            features: finest first; the first has `out_channels`.

        Returns:
            The first feature, and what it is after every merge with another one, all of the first one's shape.
        """
        merged = [features[0]]
        for i, feature in enumerate(features[1:], start=1):
            raised = self.get_submodule(f"up_{i}")(self.get_submodule(f"proj_{i}")(feature))
            merged.append(self.get_submodule(f"node_{i}")(raised + merged[-1]))
        return merged


class DlaUp(nn.Module):
    """Aggregates the coarsest two features at the finer one's size, then these and the next finer one, and so on.

    Args:
        channels: of the features, finest first, each of half the stride of the next.
        is_deformable, norm: see `IdaUp`.
    """

    def __init__(self, channels: Sequence[int], *, is_deformable: bool, norm: str) -> None:
        super().__init__()
        in_channels = list(channels)
        for k, start in enumerate(reversed(range(len(channels) - 1))):
            num_coarser = len(channels) - 1 - start
            ida = IdaUp(channels[start], in_channels[start:], [2] * num_coarser, is_deformable=is_deformable, norm=norm)
            self.add_module(f"ida_{k}", ida)
            in_channels[start:] = [channels[start]] * (num_coarser + 1)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Finest first, all of different strides -> the most merged feature of every stride, finest first."""
        layers, most_merged = list(features), [features[-1]]
        for k, start in enumerate(reversed(range(len(features) - 1))):
            layers[start:] = self.get_submodule(f"ida_{k}")(layers[start:])
            most_merged.insert(0, layers[-1])
        return most_merged


class Dla(Backbone):
    """The trunk and both aggregations: one feature "p2" of stride 4 with the channels of level2 (64 in DLA-34).

    Args:
        tree_depths, channels, norm, in_channels: see `DlaTrunk`.
        is_deformable: whether the convolutions of the up-sampling are modulated deformable ones (CenterNet's).
    """

    def __init__(
        self,
        *,
        tree_depths: Sequence[int] = TREE_DEPTHS,
        channels: Sequence[int] = CHANNELS,
        is_deformable: bool = True,
        norm: str = "BN",
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.bottom_up = DlaTrunk(tree_depths=tree_depths, channels=channels, norm=norm, in_channels=in_channels)
        merged = channels[FIRST_TREE:]
        self.dla_up = DlaUp(merged, is_deformable=is_deformable, norm=norm)
        self.ida_up = IdaUp(
            merged[0],
            merged[:NUM_LAST],
            [2**i for i in range(1, NUM_LAST)],
            is_deformable=is_deformable,
            norm=norm,
        )
        self._shapes = {OUT_FEATURE: ShapeSpec(channels=merged[0], stride=2**FIRST_TREE)}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) normalised images -> {"p2": (N, C, H / 4, W / 4)}."""
        levels = self.bottom_up(images)
        merged = self.dla_up([levels[name] for name in LEVELS[FIRST_TREE:]])
        return {OUT_FEATURE: self.ida_up(merged[:NUM_LAST])[-1]}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of the feature by its name."""
        return dict(self._shapes)

    @property
    def size_divisibility(self) -> int:
        """Sides of this multiple halve evenly down to the trunk's last level."""
        return self.bottom_up.size_divisibility


def check_dla(cfg: CfgNode) -> None:
    """Checks MODEL.DLA.

    Raises:
        ConfigError: names the key, its value and what is allowed.
    """
    rules = (("TREE_DEPTHS", TREE_DEPTHS, LEVELS[FIRST_TREE:]), ("CHANNELS", CHANNELS, LEVELS))
    for key, default, levels in rules:
        values = list(cfg.MODEL.DLA[key])
        if len(values) != len(default) or not all(isinstance(value, int) and value >= 1 for value in values):
            raise ConfigError(
                f"MODEL.DLA.{key} is {values}",
                f"it must be {len(default)} whole numbers from 1, for {levels[0]}..{levels[-1]}; DLA-34 has {default}",
            )


@BACKBONE_REGISTRY.register()
def build_dla_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Dla:
    """DLA of MODEL.DLA, up-sampled to one feature "p2" of stride 4; nothing of it is ever frozen.

    Raises:
        ConfigError: an impossible value, see `check_dla`.
    """
    check_dla(cfg)
    warn_nothing_frozen(cfg)
    node = cfg.MODEL.DLA
    return Dla(
        tree_depths=node.TREE_DEPTHS,
        channels=node.CHANNELS,
        is_deformable=node.DEFORMABLE,
        norm=norm_of_run("MODEL.DLA.NORM", node.NORM, cfg.MODEL.DEVICE),
        in_channels=input_shape.channels,
    )
