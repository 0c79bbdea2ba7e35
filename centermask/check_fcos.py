"""Values of MODEL.CENTERMASK_FCOS that cannot work, found before a model is built."""

from __future__ import annotations

import itertools
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import Backbone

from centermask.check_masks import check_masks
from centermask.maps import MAP_STRIDE
from segzoo.errors import ConfigError
from segzoo.modeling.check_values import Range, check_ranges

# Key -> its range; those of masks are in check_masks.py.
RANGES: dict[str, Range] = {
    "SALIENCY_NUM_CONVS": (lambda value: value >= 0, "at least 0"),
    "MAX_MASKS": (lambda value: value >= 1, "at least 1"),
}


def check_centermask_fcos(cfg: CfgNode, backbone: Backbone) -> None:
    """Checks MODEL.CENTERMASK_FCOS on its own and against the backbone's levels; MODEL.FCOS has a check of its own.

    Raises:
        ConfigError: names the key, its value and what is allowed.
    """
    node = cfg.MODEL.CENTERMASK_FCOS
    check_ranges("MODEL.CENTERMASK_FCOS", node, RANGES)
    check_masks("MODEL.CENTERMASK_FCOS", node)
    _check_stride(list(cfg.MODEL.FCOS.IN_FEATURES), backbone)
    if node.SALIENCY != "none":
        _check_features(list(node.SALIENCY_FEATURES), list(cfg.MODEL.FCOS.IN_FEATURES), backbone)


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
