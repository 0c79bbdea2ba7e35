"""Impossible values of MODEL.CENTERMASK are refused by name, value and range (ACCEPTANCE case 45)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor

from centermask import check
from centermask.check import check_centermask
from centermask.check_masks import MASK_CHOICES, MASK_RANGES
from projects import get_cfg
from segzoo.config import merge_config
from segzoo.errors import ConfigError

CHOICES = MASK_CHOICES | check.CHOICES
RANGES = MASK_RANGES | check.RANGES
# What each range refuses, and the ends that it allows.
WEIGHTS = [f"{name}_LOSS_WEIGHT" for name in ("HEATMAP", "OFFSET", "SIZE", "MASK", "SALIENCY")]
REFUSED: dict[str, list[Any]] = {
    "NUM_CLASSES": [0, -1],
    "FUSED_CHANNELS": [0, 16, 33, -32],
    "HEAD_CHANNELS": [0, -2],
    "SHAPE_SIZE": [0, 1, -2],
    "SALIENCY_PRIOR": [0.0, 1.0, -0.1, 1.1],
    **{key: [-1.0] for key in WEIGHTS},
    "MAX_OBJECTS": [0, -1],
    "SCORE_THRESH_TEST": [-0.1, 1.1],
    "MASK_THRESH": [0.0, 1.0, 1.5],
}
ALLOWED: dict[str, list[Any]] = {
    "NUM_CLASSES": [1],
    "FUSED_CHANNELS": [32, 96],
    "HEAD_CHANNELS": [1],
    "SHAPE_SIZE": [2, 24, 48],
    "SALIENCY_PRIOR": [1e-3, 0.999],
    **{key: [0.0, 20] for key in WEIGHTS},
    "MAX_OBJECTS": [1],
    "SCORE_THRESH_TEST": [0.0, 1.0],
    "MASK_THRESH": [0.01, 0.99],
}
NO_NUMBERS: list[Any] = [True, None, "1", [1], float("nan"), float("inf")]


class Levels(Backbone):
    """A backbone of nothing but its features."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {}

    def output_shape(self) -> dict[str, ShapeSpec]:
        stacks = {f"stack{i}": ShapeSpec(channels=8, stride=4) for i in range(2)}
        return {"p2": ShapeSpec(channels=8, stride=4), **stacks} | {
            f"res{i}": ShapeSpec(channels=8 * i, stride=2**i) for i in range(1, 7)
        }


def config(**changes: object) -> CfgNode:
    cfg = get_cfg()
    for key, value in changes.items():
        # Not merged: the types that yacs would refuse must not get further either.
        cfg.MODEL.CENTERMASK[key] = value
    return cfg


def assert_refused(key: str, value: object, message: str, **changes: object) -> None:
    with pytest.raises(ConfigError, match=rf"(?s)^MODEL\.CENTERMASK\.{key} is .*{message}"):
        check_centermask(config(**{key: value}, **changes), Levels())


@pytest.mark.parametrize("key", CHOICES)
def test_check_centermask_allows_the_choices_and_nothing_else(key: str) -> None:
    for allowed in CHOICES[key]:
        check_centermask(config(**{key: allowed}, SALIENCY_LOSS_WEIGHT=0.0), Levels())
    for value in ("", "other", CHOICES[key][0].swapcase(), None, 1):
        assert_refused(key, value, f"use one of {', '.join(CHOICES[key])}")


@pytest.mark.parametrize("key", RANGES)
def test_check_centermask_allows_the_ends_of_the_ranges_and_nothing_beyond(key: str) -> None:
    for value in ALLOWED[key]:
        check_centermask(config(**{key: value}), Levels())
    for value in (*REFUSED[key], *NO_NUMBERS):
        assert_refused(key, value, f"it must be {RANGES[key][1]}")


def test_every_number_and_word_of_centermask_is_checked() -> None:
    values = get_cfg().MODEL.CENTERMASK.items()
    numbers = {key for key, value in values if isinstance(value, int | float) and not isinstance(value, bool)}
    assert numbers == set(RANGES)
    assert {key for key, value in values if isinstance(value, str)} == set(CHOICES)


def test_check_centermask_wants_something_to_make_masks_of() -> None:
    for value in (None, 1, "yes"):
        assert_refused("SHAPE_ON", value, "use True or False")
    assert_refused("SHAPE_ON", False, "nothing is left", SALIENCY="none", SALIENCY_LOSS_WEIGHT=0.0)
    assert_refused("SALIENCY_LOSS_WEIGHT", 0.5, "SALIENCY is 'none'.*set the weight to 0", SALIENCY="none")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "the backbone Levels gives"),
        (["p3"], "the backbone Levels gives"),
        (["p2", "p2"], r"strides \[4, 4\]"),
        (["res3"], r"strides \[8\]"),
        (["res1", "res2"], r"strides \[2, 4\]"),
        (["res3", "res2"], r"strides \[8, 4\]"),
        (["p2", "stack0", "res3"], r"strides \[4, 4, 8\]"),
    ],
)
def test_check_centermask_wants_stacks_or_a_pyramid(names: list, message: str) -> None:
    assert_refused("IN_FEATURES", names, message)


@pytest.mark.parametrize("names", [["p2"], ["stack0", "stack1"], ["res2", "res3", "res4", "res5"], ["p2", "res6"]])
def test_check_centermask_takes_stacks_and_pyramids(names: list) -> None:
    check_centermask(config(IN_FEATURES=names), Levels())


def test_check_centermask_wants_at_least_one_detection() -> None:
    cfg = config()
    cfg.TEST.DETECTIONS_PER_IMAGE = 0
    with pytest.raises(ConfigError, match=r"TEST\.DETECTIONS_PER_IMAGE is 0"):
        check_centermask(cfg, Levels())


def test_recipe_is_the_papers(repository: Path) -> None:
    for leaf, images, features in (("DLA34", 64, ["p2"]), ("HG104", 24, ["stack0", "stack1"])):
        cfg = merge_config(get_cfg(), str(repository / f"configs/centermask_{leaf}.yaml"))
        solver, node = cfg.SOLVER, cfg.MODEL.CENTERMASK
        assert (solver.OPTIMIZER, solver.BASE_LR, solver.GAMMA) == ("ADAM", 2.5e-4, 0.1)
        assert solver.IMS_PER_BATCH == solver.RECIPE_IMS_PER_BATCH == images
        epoch = 118_287 / images
        assert pytest.approx(130 * epoch, rel=0.01) == solver.MAX_ITER
        assert (pytest.approx(100 * epoch, rel=0.01), pytest.approx(120 * epoch, rel=0.01)) == solver.STEPS
        assert (cfg.MODEL.BACKBONE.FREEZE_AT, cfg.MODEL.WEIGHTS, solver.CLIP_GRADIENTS.ENABLED) == (0, "", False)
        assert (cfg.INPUT.RESIZE, cfg.INPUT.FIXED_SIZE, cfg.INPUT.RESIZE_TRAIN) == ("fix_res", (512, 512), "warp")
        assert (node.SHAPE_SIZE, node.SALIENCY, node.MASK_THRESH, node.SIZE_LOSS_WEIGHT) == (
            32,
            "class_specific",
            0.4,
            0.1,
        )
        assert features == node.IN_FEATURES
        assert cfg.TEST.DETECTIONS_PER_IMAGE == 100
