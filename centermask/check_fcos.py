"""Values of MODEL.CENTERMASK_FCOS that cannot work, found before a model is built."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import Backbone

from centermask.maps import MAP_STRIDE
from segzoo.errors import ConfigError

SALIENCIES = ("class_specific", "class_agnostic", "none")
# Key -> whether a finite number is allowed, and how to say so.
RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "SHAPE_SIZE": (lambda value: value >= 2, "at least 2, such as 32"),
    "SALIENCY_NUM_CONVS": (lambda value: value >= 0, "at least 0"),
    "SALIENCY_PRIOR": (lambda value: 0 < value < 1, "between 0 and 1, without them"),
    "MASK_LOSS_WEIGHT": (lambda value: value >= 0, "at least 0"),
    "SALIENCY_LOSS_WEIGHT": (lambda value: value >= 0, "at least 0"),
    "MAX_MASKS": (lambda value: value >= 1, "at least 1"),
    "MASK_THRESH": (lambda value: 0 < value < 1, "between 0 and 1, without them"),
}


def check_centermask_fcos(cfg: CfgNode, backbone: Backbone) -> None:
    """Checks MODEL.CENTERMASK_FCOS on its own and against the backbone's levels; MODEL.FCOS has a check of its own.

    Raises:
        ConfigError: names the key, its value and what is allowed.
    """
    node = cfg.MODEL.CENTERMASK_FCOS
    for key, (is_allowed, text) in RANGES.items():
        value = node[key]
        if not (isinstance(value, int | float) and math.isfinite(value) and is_allowed(value)):
            raise ConfigError(f"MODEL.CENTERMASK_FCOS.{key} is {value!r}", f"it must be {text}")
    if node.SALIENCY not in SALIENCIES:
        raise ConfigError(f"MODEL.CENTERMASK_FCOS.SALIENCY is {node.SALIENCY!r}", f"use one of {', '.join(SALIENCIES)}")
    if not isinstance(node.SHAPE_ON, bool):
        raise ConfigError(f"MODEL.CENTERMASK_FCOS.SHAPE_ON is {node.SHAPE_ON!r}", "use True or False")
    _check_stride(list(cfg.MODEL.FCOS.IN_FEATURES), backbone)
    if node.SALIENCY != "none":
        _check_features(list(node.SALIENCY_FEATURES), list(cfg.MODEL.FCOS.IN_FEATURES), backbone)
        return
    if not node.SHAPE_ON:
        raise ConfigError(
            "MODEL.CENTERMASK_FCOS.SHAPE_ON is False and SALIENCY is 'none': nothing is left to make masks of",
            "leave at least one of them on",
        )
    if node.SALIENCY_LOSS_WEIGHT > 0:
        raise ConfigError(
            f"MODEL.CENTERMASK_FCOS.SALIENCY_LOSS_WEIGHT is {node.SALIENCY_LOSS_WEIGHT}, but SALIENCY is 'none'",
            "without a saliency there is none to supervise: set the weight to 0",
        )


def _check_stride(in_features: list[Any], backbone: Backbone) -> None:
    stride = backbone.output_shape()[in_features[0]].stride
    if stride % MAP_STRIDE:
        raise ConfigError(
            f"MODEL.FCOS.IN_FEATURES begins with {in_features[0]!r}, of stride {stride}",
            f"masks are trained on maps of stride {MAP_STRIDE}: begin with a multiple of it",
        )


def _check_features(names: list[Any], in_features: list[Any], backbone: Backbone) -> None:
    given = f"MODEL.CENTERMASK_FCOS.SALIENCY_FEATURES is {names}"
    absent = [name for name in names if name not in in_features]
    if absent or not names:
        raise ConfigError(f"{given}; MODEL.FCOS.IN_FEATURES is {in_features}", "name one or more of these")
    strides = [backbone.output_shape()[name].stride for name in names]
    if names[0] != in_features[0] or any(fine >= coarse for fine, coarse in itertools.pairwise(strides)):
        raise ConfigError(
            f"{given}, with strides {strides}",
            f"begin with {in_features[0]!r}, the finest, and name coarser ones after",
        )
