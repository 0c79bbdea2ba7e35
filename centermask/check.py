"""Values of MODEL.CENTERMASK that cannot work, found before a model is built."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import Backbone

from centermask.maps import MAP_STRIDE
from segzoo.errors import ConfigError

# Groups of the norm of summed features.
NORM_GROUPS = 32
# Key -> allowed values.
CHOICES = {
    "SALIENCY": ("class_specific", "class_agnostic", "none"),
    "CROP_BOXES": ("gt", "predicted"),
}
# Key -> whether a finite number is allowed, and how to say so.
RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "NUM_CLASSES": (lambda value: value >= 1, "at least 1"),
    "FUSED_CHANNELS": (
        lambda value: value >= NORM_GROUPS and value % NORM_GROUPS == 0,
        f"a multiple of {NORM_GROUPS}, such as 64",
    ),
    "HEAD_CHANNELS": (lambda value: value >= 1, "at least 1"),
    "SHAPE_SIZE": (lambda value: value >= 2, "at least 2, such as 32"),
    "SALIENCY_PRIOR": (lambda value: 0 < value < 1, "between 0 and 1, without them"),
    "HEATMAP_LOSS_WEIGHT": (lambda value: value >= 0, "at least 0"),
    "OFFSET_LOSS_WEIGHT": (lambda value: value >= 0, "at least 0"),
    "SIZE_LOSS_WEIGHT": (lambda value: value >= 0, "at least 0"),
    "MASK_LOSS_WEIGHT": (lambda value: value >= 0, "at least 0"),
    "SALIENCY_LOSS_WEIGHT": (lambda value: value >= 0, "at least 0"),
    "MAX_OBJECTS": (lambda value: value >= 1, "at least 1"),
    "SCORE_THRESH_TEST": (lambda value: 0 <= value <= 1, "between 0 and 1"),
    "MASK_THRESH": (lambda value: 0 < value < 1, "between 0 and 1, without them"),
}


def check_centermask(cfg: CfgNode, backbone: Backbone) -> None:
    """Checks MODEL.CENTERMASK (and TEST.DETECTIONS_PER_IMAGE) on its own and against the backbone's features.

    Raises:
        ConfigError: names the key, its value and what is allowed.
    """
    node = cfg.MODEL.CENTERMASK
    for key, allowed in CHOICES.items():
        if node[key] not in allowed:
            raise ConfigError(f"MODEL.CENTERMASK.{key} is {node[key]!r}", f"use one of {', '.join(allowed)}")
    for key, (is_allowed, text) in RANGES.items():
        if not (_is_number(node[key]) and is_allowed(node[key])):
            raise ConfigError(f"MODEL.CENTERMASK.{key} is {node[key]!r}", f"it must be {text}")
    if cfg.TEST.DETECTIONS_PER_IMAGE < 1:
        raise ConfigError(f"TEST.DETECTIONS_PER_IMAGE is {cfg.TEST.DETECTIONS_PER_IMAGE}", "it must be at least 1")
    _check_mask_parts(node)
    _check_features(list(node.IN_FEATURES), backbone)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_mask_parts(node: CfgNode) -> None:
    if not isinstance(node.SHAPE_ON, bool):
        raise ConfigError(f"MODEL.CENTERMASK.SHAPE_ON is {node.SHAPE_ON!r}", "use True or False")
    if node.SALIENCY != "none":
        return
    if not node.SHAPE_ON:
        raise ConfigError(
            "MODEL.CENTERMASK.SHAPE_ON is False and SALIENCY is 'none': nothing is left to make masks of",
            "leave at least one of them on",
        )
    if node.SALIENCY_LOSS_WEIGHT > 0:
        raise ConfigError(
            f"MODEL.CENTERMASK.SALIENCY_LOSS_WEIGHT is {node.SALIENCY_LOSS_WEIGHT}, but SALIENCY is 'none'",
            "without a saliency there is none to supervise: set the weight to 0",
        )


def _check_features(in_features: list[Any], backbone: Backbone) -> None:
    shapes = backbone.output_shape()
    given = f"MODEL.CENTERMASK.IN_FEATURES is {in_features}"
    absent = [name for name in in_features if name not in list(shapes)]
    if absent or not in_features:
        raise ConfigError(f"{given}; the backbone {type(backbone).__name__} gives {list(shapes)}", "name some of these")
    strides = [shapes[name].stride for name in in_features]
    is_stack = set(strides) == {MAP_STRIDE}
    is_pyramid = strides[0] == MAP_STRIDE and all(after > before for before, after in itertools.pairwise(strides))
    if len(set(map(str, in_features))) != len(in_features) or not (is_stack or is_pyramid):
        raise ConfigError(
            f"{given}, with strides {strides}",
            f"name features of stride {MAP_STRIDE}, which are supervised each, or of rising strides from "
            f"{MAP_STRIDE} on, which are summed",
        )
