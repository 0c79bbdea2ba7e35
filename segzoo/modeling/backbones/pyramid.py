"""The feature pyramid that the backbones of this package share: Detectron2's FPN and its top block, by config."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.modeling.backbone import FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from torch import nn

from segzoo.errors import ConfigError

# What Detectron2's `get_norm` knows by name; GN has groups of one size.
NORMS = ("", "GN", "BN", "SyncBN", "FrozenBN", "LN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")
GN_GROUPS = 32


def check_norm(key: str, norm: str, channels: int) -> None:
    """Whether Detectron2 can build the norm `norm` over `channels` channels.

    Args:
        key: of the config, for the error.

    Raises:
        ConfigError: an unknown norm, or channels that GN's groups do not divide.
    """
    if norm not in NORMS:
        raise ConfigError(f"{key} is {norm!r}", f"allowed: {', '.join(map(repr, NORMS))}")
    if norm == "GN" and channels % GN_GROUPS:
        raise ConfigError(
            f"{key} is 'GN' over {channels} channels (MODEL.FPN.OUT_CHANNELS is the pyramid's)",
            f'GN needs a multiple of {GN_GROUPS}; change the channels, or use "BN" or ""',
        )


def build_pyramid(cfg: CfgNode, bottom_up: Backbone, in_features: Sequence[str], top_block: nn.Module) -> FPN:
    """Detectron2's FPN over `in_features` of `bottom_up`, with the channels, norm and fusion of MODEL.FPN.

    Returns:
        A backbone (N, 3, H, W) -> {"p<i>": (N, OUT_CHANNELS, H / 2^i, W / 2^i)}.

    Raises:
        ConfigError: an impossible MODEL.FPN.NORM.
    """
    check_norm("MODEL.FPN.NORM", cfg.MODEL.FPN.NORM, cfg.MODEL.FPN.OUT_CHANNELS)
    return FPN(
        bottom_up=bottom_up,
        in_features=list(in_features),
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


def build_top_block(cfg: CfgNode, bottom_up: Backbone, last_feature: str) -> LastLevelP6P7:
    """Two more levels by stride-2 convolutions, from where MODEL.FPN.TOP_IN_FEATURE says.

    "p5" is FCOS's own choice; "c5" is RetinaNet's, the raw feature of the bottom-up network.

    Args:
        last_feature: the coarsest bottom-up feature in the pyramid, "res5" in the usual one.

    Raises:
        ConfigError: MODEL.FPN.TOP_IN_FEATURE is neither.
    """
    source = cfg.MODEL.FPN.TOP_IN_FEATURE
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    stage = last_feature.removeprefix("res")
    if source in (f"p{stage}", "p5"):
        return LastLevelP6P7(channels, channels, in_feature=f"p{stage}")
    if source in (f"c{stage}", last_feature, "c5"):
        return LastLevelP6P7(bottom_up.output_shape()[last_feature].channels, channels, in_feature=last_feature)
    raise ConfigError(
        f"MODEL.FPN.TOP_IN_FEATURE is {source!r}",
        '"p5" takes P6 from the pyramid, "c5" from the bottom-up network',
    )
