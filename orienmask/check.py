"""Values of MODEL.ORIENMASK that cannot work, found before a model is built."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import Backbone

from segzoo.errors import ConfigError
from segzoo.modeling.check_values import Range, check_choices, check_ranges, is_number

logger = logging.getLogger(__name__)

# Features of these strides, finest first: the orientation maps', then those of the box maps.
FEATURE_STRIDES = (4, 8, 16, 32)
# Key -> allowed values.
CHOICES = {
    "ORIEN_INPUT": ("fpn_plus", "fpn"),
    "NORM": ("BN", "SyncBN"),
    "BASE_POSITION": ("box", "grid"),
    "OVERLAP_ORDER": ("large_first", "given"),
}
# Key -> its range.
RANGES: dict[str, Range] = {
    "NUM_CLASSES": (lambda value: value >= 1, "at least 1"),
    "ORIEN_CHANNELS": (lambda value: value >= 2 and value % 2 == 0, "an even number, such as 128"),
    "IGNORE_THRESH": (lambda value: 0 <= value <= 1, "between 0 and 1"),
    "EXPAND_RATIO": (lambda value: value > 0, "greater than 0, such as 1.2"),
    "ORIEN_LOSS_WEIGHT": (lambda value: value >= 0, "at least 0"),
    "TAU": (lambda value: value > 0, "greater than 0, such as 0.6"),
    "SCORE_THRESH_TEST": (lambda value: 0 <= value <= 1, "between 0 and 1"),
    "PRE_NMS_TOPK": (lambda value: value >= 1, "at least 1"),
    "NMS_THRESH_TEST": (lambda value: 0 <= value <= 1, "between 0 and 1"),
}


def check_orienmask(cfg: CfgNode, backbone: Backbone) -> None:
    """Checks MODEL.ORIENMASK (and TEST.DETECTIONS_PER_IMAGE) on its own and against the backbone's features.

    Raises:
        ConfigError: names the key, its value and what is allowed.
    """
    node = cfg.MODEL.ORIENMASK
    check_choices("MODEL.ORIENMASK", node, CHOICES)
    check_ranges("MODEL.ORIENMASK", node, RANGES)
    if cfg.TEST.DETECTIONS_PER_IMAGE < 1:
        raise ConfigError(f"TEST.DETECTIONS_PER_IMAGE is {cfg.TEST.DETECTIONS_PER_IMAGE}", "it must be at least 1")
    _check_channels(list(node.NECK_CHANNELS))
    _check_anchors(list(node.ANCHORS))
    _warn_of_large_anchors(cfg)
    _check_features(list(node.IN_FEATURES), backbone)


def _check_channels(channels: list[Any]) -> None:
    is_usable = all(is_number(value) and isinstance(value, int) and value > 0 for value in channels)
    if len(channels) != len(FEATURE_STRIDES) - 1 or not is_usable:
        raise ConfigError(
            f"MODEL.ORIENMASK.NECK_CHANNELS is {channels}", "give three positive numbers, for the strides 8, 16 and 32"
        )


def _check_anchors(anchors: list[Any]) -> None:
    given = f"MODEL.ORIENMASK.ANCHORS is {anchors}"
    if not anchors or len(anchors) % 3:
        raise ConfigError(f"{given}, {len(anchors)} anchors", "give as many for each of the strides 8, 16 and 32")
    for anchor in anchors:
        is_pair = isinstance(anchor, Sequence) and len(anchor) == 2
        if not is_pair or not all(is_number(side) and side > 0 for side in anchor):
            raise ConfigError(
                f"{given}; {anchor!r} is no anchor", "an anchor is [width, height] in pixels, both positive"
            )
    repeated = [anchor for index, anchor in enumerate(anchors) if list(anchor) in map(list, anchors[:index])]
    if repeated:
        raise ConfigError(
            f"{given}; {list(repeated[0])} stands there twice, and the second would get no object",
            "give every anchor a size of its own",
        )
    areas = [width * height for width, height in anchors]
    per_level = len(anchors) // 3
    means = [sum(areas[level * per_level : (level + 1) * per_level]) for level in range(3)]
    if means != sorted(means):
        raise ConfigError(
            f"{given}: the first third is for stride 8 and must be the smallest, the last for stride 32 the largest",
            "list the anchors by size, smallest first",
        )


def _warn_of_large_anchors(cfg: CfgNode) -> None:
    # Height and width, as an anchor is width and height.
    size = tuple(cfg.INPUT.FIXED_SIZE)
    anchors = cfg.MODEL.ORIENMASK.ANCHORS
    large = [anchor for anchor in anchors if any(side > limit for side, limit in zip(anchor, reversed(size)))]
    if large and cfg.INPUT.RESIZE in ("fixed", "letterbox"):
        logger.warning(
            "MODEL.ORIENMASK.ANCHORS are in pixels of the network input: %s is larger than INPUT.FIXED_SIZE %s "
            "(height, width); scale them to it",
            large[0],
            size,
        )


def _check_features(in_features: list[Any], backbone: Backbone) -> None:
    shapes = backbone.output_shape()
    given = f"MODEL.ORIENMASK.IN_FEATURES is {in_features}"
    absent = [name for name in in_features if name not in list(shapes)]
    if absent:
        raise ConfigError(f"{given}; the backbone {type(backbone).__name__} gives {list(shapes)}", "name four of these")
    strides = tuple(shapes[name].stride for name in in_features)
    if strides != FEATURE_STRIDES:
        raise ConfigError(f"{given}, with strides {strides}", f"name features of the strides {FEATURE_STRIDES}")
