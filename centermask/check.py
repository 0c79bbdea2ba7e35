"""Values of MODEL.CENTERMASK that cannot work, found before a model is built."""

from __future__ import annotations

import itertools
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import Backbone

from centermask.check_masks import check_masks
from centermask.maps import MAP_STRIDE
from segzoo.errors import ConfigError
from segzoo.modeling.check_values import Range, check_choices, check_ranges

# Groups of the norm of summed features.
NORM_GROUPS = 32
# Key -> allowed values; those of masks are in check_masks.py.
CHOICES = {"CROP_BOXES": ("gt", "predicted")}
# Key -> its range.
RANGES: dict[str, Range] = {
    "NUM_CLASSES": (lambda value: value >= 1, "at least 1"),
    "FUSED_CHANNELS": (
        lambda value: value >= NORM_GROUPS and value % NORM_GROUPS == 0,
        f"a multiple of {NORM_GROUPS}, such as 64",
    ),
    "HEAD_CHANNELS": (lambda value: value >= 1, "at least 1"),
    "HEATMAP_LOSS_WEIGHT": (lambda value: value >= 0, "at least 0"),
    "OFFSET_LOSS_WEIGHT": (lambda value: value >= 0, "at least 0"),
    "SIZE_LOSS_WEIGHT": (lambda value: value >= 0, "at least 0"),
    "MAX_OBJECTS": (lambda value: value >= 1, "at least 1"),
    "SCORE_THRESH_TEST": (lambda value: 0 <= value <= 1, "between 0 and 1"),
}


def check_centermask(cfg: CfgNode, backbone: Backbone) -> None:
    """Checks MODEL.CENTERMASK (and TEST.DETECTIONS_PER_IMAGE) on its own and against the backbone's features.

    Raises:
        ConfigError: names the key, its value and what is allowed.
    """
    node = cfg.MODEL.CENTERMASK
    check_choices("MODEL.CENTERMASK", node, CHOICES)
    check_ranges("MODEL.CENTERMASK", node, RANGES)
    check_masks("MODEL.CENTERMASK", node)
    if cfg.TEST.DETECTIONS_PER_IMAGE < 1:
        raise ConfigError(f"TEST.DETECTIONS_PER_IMAGE is {cfg.TEST.DETECTIONS_PER_IMAGE}", "it must be at least 1")
    _check_features(list(node.IN_FEATURES), backbone)


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
