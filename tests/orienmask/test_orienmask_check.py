"""Impossible values of MODEL.ORIENMASK are refused by name, value and range (ACCEPTANCE case 45)."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor

from orienmask.check import CHOICES, RANGES, check_orienmask
from orienmask.config import YOLOV4_ANCHORS
from projects import get_cfg
from segzoo.config import merge_config
from segzoo.errors import ConfigError

NAMES = ["res2", "res3", "res4", "res5"]
# What each range refuses, and the ends that it allows.
REFUSED: dict[str, list[Any]] = {
    "NUM_CLASSES": [0, -1],
    "ORIEN_CHANNELS": [0, 1, 127, -2],
    "IGNORE_THRESH": [-0.1, 1.1],
    "EXPAND_RATIO": [0.0, -1.2],
    "ORIEN_LOSS_WEIGHT": [-1.0],
    "TAU": [0.0, -0.6],
    "SCORE_THRESH_TEST": [-0.1, 1.1],
    "PRE_NMS_TOPK": [0, -1],
    "NMS_THRESH_TEST": [-0.1, 1.1],
}
ALLOWED: dict[str, list[Any]] = {
    "NUM_CLASSES": [1],
    "ORIEN_CHANNELS": [2, 128],
    "IGNORE_THRESH": [0.0, 1.0],
    "EXPAND_RATIO": [0.1],
    "ORIEN_LOSS_WEIGHT": [0.0, 20],
    "TAU": [0.1, 2.0],
    "SCORE_THRESH_TEST": [0.0, 1.0],
    "PRE_NMS_TOPK": [1],
    "NMS_THRESH_TEST": [0.0, 1.0],
}
NO_NUMBERS: list[Any] = [True, None, "1", [1], float("nan"), float("inf")]


class Levels(Backbone):
    """A backbone of nothing but its features."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {f"res{i}": ShapeSpec(channels=8, stride=2**i) for i in range(1, 7)}


def config(**changes: object) -> CfgNode:
    cfg = get_cfg()
    for key, value in changes.items():
        # Not merged: the types that yacs would refuse must not get further either.
        cfg.MODEL.ORIENMASK[key] = value
    return cfg


def assert_refused(key: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"(?s)^MODEL\.ORIENMASK\.{key} is .*{message}"):
        check_orienmask(config(**{key: value}), Levels())


@pytest.mark.parametrize("key", CHOICES)
def test_check_orienmask_allows_the_choices_and_nothing_else(key: str) -> None:
    for allowed in CHOICES[key]:
        check_orienmask(config(**{key: allowed}), Levels())
    for value in ("", "other", CHOICES[key][0].swapcase(), None, 1):
        assert_refused(key, value, f"use one of {', '.join(CHOICES[key])}")


@pytest.mark.parametrize("key", RANGES)
def test_check_orienmask_allows_the_ends_of_the_ranges_and_nothing_beyond(key: str) -> None:
    for value in ALLOWED[key]:
        check_orienmask(config(**{key: value}), Levels())
    for value in (*REFUSED[key], *NO_NUMBERS):
        assert_refused(key, value, f"it must be {RANGES[key][1]}")


def test_every_number_and_word_of_orienmask_is_checked() -> None:
    values = get_cfg().MODEL.ORIENMASK.items()
    assert {key for key, value in values if isinstance(value, int | float)} == set(RANGES)
    assert {key for key, value in values if isinstance(value, str)} == set(CHOICES)


@pytest.mark.parametrize(
    "channels", [[], [8, 16], [8, 16, 32, 64], [True, 2, 2], [8, 0, 32], [8, -16, 32], [8, 16.0, 32], [8, "16", 32]]
)
def test_check_orienmask_wants_three_counts_of_channels(channels: list) -> None:
    assert_refused("NECK_CHANNELS", channels, "three positive numbers")


@pytest.mark.parametrize(
    ("anchors", "message"),
    [
        ([], "0 anchors"),
        ([[8, 8], [16, 16], [32, 32], [64, 64]], "4 anchors.*as many for each"),
        ([[8, 8], [16, 16, 16], [32, 32]], r"\[16, 16, 16\] is no anchor"),
        ([[8, 8], 16, [32, 32]], "16 is no anchor"),
        ([[8, 8], "ab", [32, 32]], "'ab' is no anchor"),
        ([[8, 8], [16, 0], [32, 32]], r"\[16, 0\] is no anchor"),
        ([[8, 8], [-16, 16], [32, 32]], r"\[-16, 16\] is no anchor"),
        ([[8, 8], [True, 16], [32, 32]], r"\[True, 16\] is no anchor"),
        ([[8, 8], [16, float("nan")], [32, 32]], "is no anchor"),
        ([[8, 8], [16, float("inf")], [32, 32]], "is no anchor"),
        ([[32, 32], [16, 16], [8, 8]], "smallest first"),
        ([[8, 8], [32, 32], [16, 16]], "smallest first"),
        ([[8, 8], [16, 16], [16, 16]], r"\[16, 16\] stands there twice"),
        ([[8, 8], [8, 8.0], [16, 16], [16, 8], [32, 32], [64, 64]], "stands there twice"),
        ([[8, 8], (8, 8), [32, 32]], "stands there twice"),
    ],
)
def test_check_orienmask_refuses_impossible_anchors(anchors: list, message: str) -> None:
    assert_refused("ANCHORS", anchors, message)


def test_check_orienmask_takes_anchors_of_one_area_and_other_shapes() -> None:
    check_orienmask(config(ANCHORS=[[8, 8], [16, 4], [4, 16]]), Levels())


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "strides \\(\\)"),
        (NAMES[:3], "strides \\(4, 8, 16\\)"),
        (["res1", *NAMES], "strides \\(2, 4"),
        (["res3", "res2", "res4", "res5"], "strides \\(8, 4"),
        (["res2", "res3", "res4", "res6"], "strides \\(4, 8, 16, 64\\)"),
        (["res2", "res3", "res4", "p5"], r"the backbone Levels gives \['res1'"),
        ([["res2"], "res3", "res4", "res5"], "the backbone Levels gives"),
    ],
)
def test_check_orienmask_wants_features_of_its_strides(names: list, message: str) -> None:
    assert_refused("IN_FEATURES", names, message)


def test_check_orienmask_wants_at_least_one_detection() -> None:
    cfg = config()
    cfg.TEST.DETECTIONS_PER_IMAGE = 0
    with pytest.raises(ConfigError, match=r"TEST\.DETECTIONS_PER_IMAGE is 0"):
        check_orienmask(cfg, Levels())


@pytest.mark.parametrize(
    ("resize", "size", "is_warned"),
    [
        ("fixed", (401, 459), False),
        ("fixed", (400, 459), True),
        ("letterbox", (401, 458), True),
        ("shortest_edge", (64, 64), False),
    ],
)
def test_check_orienmask_warns_of_anchors_larger_than_the_input(
    resize: str, size: tuple[int, int], is_warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = config()
    cfg.INPUT.RESIZE, cfg.INPUT.FIXED_SIZE = resize, size
    with caplog.at_level(logging.WARNING, logger="orienmask"):
        check_orienmask(cfg, Levels())
    assert (f"{YOLOV4_ANCHORS[-1]} is larger than INPUT.FIXED_SIZE {size}" in caplog.text) is is_warned


def test_configs_pass_without_a_warning(repository: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = sorted((repository / "configs").rglob("orienmask_*.yaml"))
    with caplog.at_level(logging.WARNING, logger="orienmask"):
        for file in files:
            check_orienmask(merge_config(get_cfg(), str(file)), Levels())
    assert files
    assert caplog.text == ""
