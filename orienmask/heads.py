"""OrienMask's network above its backbone: YOLOv3's neck and box heads, and the orientation branch (section 3.1).

Shape shorthand: N images, K classes, A anchors of a level, C channels, Hi, Wi size of a level's map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from orienmask.neck import YOLONeck, build_five_convs, upsample_to
from segzoo.modeling.backbones.darknet import build_conv_block
from segzoo.modeling.precision import predict_in_fp32

# Of a box beside its classes: tx, ty, tw, th, objectness.
BOX_VALUES = 5


class LevelBoxHead(nn.Module):
    """3x3 conv block to twice the channels, 1x1 prediction with bias."""

    def __init__(self, *, channels: int, num_anchors: int, num_classes: int, norm: str) -> None:
        super().__init__()
        self.conv = build_conv_block(channels, 2 * channels, 3, norm=norm)
        self.pred = nn.Conv2d(2 * channels, num_anchors * (BOX_VALUES + num_classes), 1)

    def forward(self, level: Tensor) -> Tensor:
        """(N, C, Hi, Wi) -> raw (N, A * (5 + K), Hi, Wi)."""
        return predict_in_fp32(self.pred, self.conv(level))


class BoxHead(nn.ModuleList):
    """One `LevelBoxHead` a level, finest first: `0` is that of stride 8 (Darknet's files begin with stride 32)."""

    def __init__(self, *, channels: Sequence[int], num_anchors: int, num_classes: int, norm: str) -> None:
        """
        Args:
            channels: of the neck's levels, finest first.
            num_anchors: A, as many at each level.
            num_classes: K.
            norm: a name that Detectron2's `get_norm` knows.
        """
        super().__init__(
            LevelBoxHead(channels=level_channels, num_anchors=num_anchors, num_classes=num_classes, norm=norm)
            for level_channels in channels
        )

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """The neck's levels (N, C, Hi, Wi) -> raw (N, A * (5 + K), Hi, Wi) of each; see `OrienMaps`."""
        return [head(level) for head, level in zip(self, levels, strict=True)]


class OrienHead(nn.Module):
    """The orientations of all anchors at stride 4, from the backbone's stride-4 feature and the neck's levels.

    Parameters: `fuse.p{5,4,3,2}` ("fpn_plus") or `lateral3` ("fpn"), `neck.{0..4}`, `tower.{0..4}`, `pred`.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        neck_channels: Sequence[int],
        channels: int,
        num_anchors: int,
        orien_input: str,
        norm: str,
    ) -> None:
        """
        Args:
            in_channels: of the feature of stride 4.
            neck_channels: of the neck's levels of strides 8, 16 and 32.
            channels: of this branch; even, as laterals have half.
            num_anchors: of all levels together.
            orien_input: "fpn_plus" (the stride-4 feature and all levels, each through a lateral) or "fpn" (that
                feature as it is, and a lateral of the level of stride 8).
            norm: a name that Detectron2's `get_norm` knows.
        """
        super().__init__()
        half = channels // 2
        self.takes_all_levels = orien_input == "fpn_plus"
        if self.takes_all_levels:
            names = ("p5", "p4", "p3", "p2")
            widths = (*reversed(neck_channels), in_channels)
            self.fuse = nn.ModuleDict(
                {name: build_conv_block(width, half, 1, norm=norm) for name, width in zip(names, widths, strict=True)}
            )
            self.neck = build_five_convs(4 * half, channels, norm)
        else:
            self.lateral3 = build_conv_block(neck_channels[0], half, 1, norm=norm)
            self.neck = build_five_convs(half + in_channels, channels, norm)
        self.tower = nn.Sequential(
            build_conv_block(channels, 2 * channels, 3, norm=norm),
            build_conv_block(2 * channels, channels, 1, norm=norm),
            build_conv_block(channels, 2 * channels, 3, norm=norm),
            build_conv_block(2 * channels, channels, 1, norm=norm),
            build_conv_block(channels, 2 * channels, 3, norm=norm),
        )
        self.pred = nn.Conv2d(2 * channels, 2 * num_anchors, 1)

    def forward(self, feature: Tensor, levels: Sequence[Tensor]) -> Tensor:
        """The orientations; see `OrienMaps` for their channels.

        Args:
            feature: (N, in_channels, H / 4, W / 4) of the backbone.
            levels: (N, neck_channels[i], Hi, Wi) of the neck, strides 8, 16 and 32.

        Returns:
            (N, 2 * num_anchors, H / 4, W / 4).
        """
        if self.takes_all_levels:
            coarse_to_fine = (*reversed(levels), feature)
            laterals = [lateral(level) for lateral, level in zip(self.fuse.values(), coarse_to_fine, strict=True)]
            parts = [upsample_to(lateral, feature) for lateral in laterals]
        else:
            parts = [upsample_to(self.lateral3(levels[0]), feature), feature]
        return predict_in_fp32(self.pred, self.tower(self.neck(torch.cat(parts, dim=1))))


def build_network(
    *,
    feature_channels: Sequence[int],
    neck_channels: Sequence[int],
    orien_channels: int,
    num_anchors: int,
    num_classes: int,
    orien_input: str,
    norm: str,
) -> dict[str, nn.Module]:
    """The modules "neck", "box_head" and "orien_head" for a backbone with any channels.

    Args:
        feature_channels: of the backbone's features of strides 4, 8, 16 and 32.
        neck_channels: of the neck at strides 8, 16 and 32.
        orien_channels: of the orientation branch, even.
        num_anchors: A, as many for each of the three box maps.
        num_classes: K.
        orien_input: "fpn_plus" or "fpn", see `OrienHead`.
        norm: a name that Detectron2's `get_norm` knows.
    """
    return {
        "neck": YOLONeck(in_channels=feature_channels[1:], channels=neck_channels, norm=norm),
        "box_head": BoxHead(channels=neck_channels, num_anchors=num_anchors, num_classes=num_classes, norm=norm),
        "orien_head": OrienHead(
            in_channels=feature_channels[0],
            neck_channels=neck_channels,
            channels=orien_channels,
            num_anchors=num_anchors * len(neck_channels),
            orien_input=orien_input,
            norm=norm,
        ),
    }
