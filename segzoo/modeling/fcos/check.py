"""Values of MODEL.FCOS that cannot work, found before the head is built.

The engine's own check runs on whole configs only; this one also meets a model that a script builds by itself.
"""

from __future__ import annotations

import itertools
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import Backbone

from segzoo.errors import ConfigError
from segzoo.modeling.backbones.pyramid import check_norm
from segzoo.modeling.check_values import Range, check_ranges, is_number

# Key below MODEL.FCOS -> its range.
RANGES: dict[str, Range] = {
    "NUM_CLASSES": (lambda value: value >= 1, "at least 1"),
    "NUM_CONVS": (lambda value: value >= 0, "at least 0"),
    "PRE_NMS_TOPK": (lambda value: value >= 1, "at least 1"),
    "CENTER_SAMPLING_RADIUS": (lambda value: value >= 0, "at least 0 (0 = whole boxes)"),
    "PRIOR_PROB": (lambda value: 0 < value < 1, "greater than 0 and less than 1, such as 0.01"),
    "FOCAL_ALPHA": (lambda value: 0 <= value <= 1, "between 0 and 1"),
    "FOCAL_GAMMA": (lambda value: value >= 0, "at least 0"),
    "SCORE_THRESH_TEST": (lambda value: 0 <= value <= 1, "between 0 and 1"),
    "NMS_THRESH_TEST": (lambda value: 0 <= value <= 1, "between 0 and 1"),
}


def check_fcos(cfg: CfgNode, backbone: Backbone) -> None:
    """Checks MODEL.FCOS (and TEST.DETECTIONS_PER_IMAGE) on its own and against the levels of the backbone.

    Args:
        cfg: with MODEL.FCOS.
        backbone: that gives the levels MODEL.FCOS.IN_FEATURES.

    Raises:
        ConfigError: names the key, its value and the allowed range.
    """
    fcos = cfg.MODEL.FCOS
    check_ranges("MODEL.FCOS", fcos, RANGES)
    if cfg.TEST.DETECTIONS_PER_IMAGE < 1:
        raise ConfigError(f"TEST.DETECTIONS_PER_IMAGE is {cfg.TEST.DETECTIONS_PER_IMAGE}", "it must be at least 1")
    if not isinstance(fcos.DEFORMABLE, bool):
        raise ConfigError(f"MODEL.FCOS.DEFORMABLE is {fcos.DEFORMABLE!r}", "it must be True or False")
    if fcos.DEFORMABLE and fcos.NUM_CONVS == 0:
        raise ConfigError(
            "MODEL.FCOS.DEFORMABLE is True, but there is no convolution: MODEL.FCOS.NUM_CONVS is 0",
            "give the towers convolutions, such as 4, or leave DEFORMABLE at False",
        )
    channels = _check_levels(list(fcos.IN_FEATURES), backbone)
    _check_sizes(list(fcos.SIZES_OF_INTEREST), len(fcos.IN_FEATURES))
    check_norm("MODEL.FCOS.NORM", fcos.NORM, channels)


def _check_levels(in_features: list[Any], backbone: Backbone) -> int:
    """The channels that all levels have."""
    shapes = backbone.output_shape()
    given = f"MODEL.FCOS.IN_FEATURES is {in_features}"
    # A list, because a yaml file may name something that cannot be looked up in a dict.
    absent = [name for name in in_features if name not in list(shapes)]
    if absent or not in_features:
        raise ConfigError(
            f"{given}; the backbone {type(backbone).__name__} gives {list(shapes)}",
            "name one or more of these, the finest first",
        )
    strides = [shapes[name].stride for name in in_features]
    if any(fine >= coarse for fine, coarse in itertools.pairwise(strides)):
        raise ConfigError(f"{given}, with strides {strides}", "strides must ascend: name the finest level first")
    channels = [shapes[name].channels for name in in_features]
    if len(set(channels)) > 1:
        raise ConfigError(
            f"{given}, with {channels} channels",
            "all levels go through one head and must have equal channels: take those of the pyramid (p3, p4, ...)",
        )
    return int(channels[0])


def _check_sizes(sizes: list[Any], num_levels: int) -> None:
    given = f"MODEL.FCOS.SIZES_OF_INTEREST is {sizes}"
    if len(sizes) != num_levels - 1:
        raise ConfigError(
            f"{given}, {len(sizes)} limits for the {num_levels} levels of MODEL.FCOS.IN_FEATURES",
            f"give {num_levels - 1}: one for each level but the last",
        )
    if not all(is_number(size) and size > 0 for size in sizes):
        raise ConfigError(given, "limits are positive numbers of pixels")
    if any(small >= large for small, large in itertools.pairwise(sizes)):
        raise ConfigError(given, "limits must increase, such as [64, 128, 256, 512]")
