"""Impossible values of MODEL.FCOS are refused by name, value and range (ACCEPTANCE case 45)."""

from __future__ import annotations

import pytest
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import Backbone
from torch import Tensor

from segzoo.config import get_segzoo_cfg
from segzoo.errors import ConfigError
from segzoo.modeling.backbones.pyramid import NORMS
from segzoo.modeling.fcos.check import RANGES, check_fcos


class Levels(Backbone):
    """A backbone of nothing but its levels; "res5" has other channels than the pyramid."""

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        self.shapes = {f"p{i}": ShapeSpec(channels=channels, stride=2**i) for i in range(3, 8)}
        self.shapes["res6"] = ShapeSpec(channels=channels + 32, stride=64)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self.shapes


def config(**changes: object) -> CfgNode:
    cfg = get_segzoo_cfg()
    for key, value in changes.items():
        cfg.merge_from_list([f"MODEL.FCOS.{key}", value])
    return cfg


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("NUM_CLASSES", 0, "at least 1"),
        ("NUM_CONVS", -1, "at least 0"),
        ("PRE_NMS_TOPK", 0, "at least 1"),
        ("CENTER_SAMPLING_RADIUS", -0.5, "at least 0"),
        ("CENTER_SAMPLING_RADIUS", float("inf"), "at least 0"),
        ("PRIOR_PROB", 0.0, "greater than 0 and less than 1"),
        ("PRIOR_PROB", 1.0, "greater than 0 and less than 1"),
        ("FOCAL_ALPHA", -0.1, "between 0 and 1"),
        ("FOCAL_ALPHA", 1.1, "between 0 and 1"),
        ("FOCAL_GAMMA", -1.0, "at least 0"),
        ("FOCAL_GAMMA", float("nan"), "at least 0"),
        ("SCORE_THRESH_TEST", 1.5, "between 0 and 1"),
        ("NMS_THRESH_TEST", -0.1, "between 0 and 1"),
        ("SIZES_OF_INTEREST", [64, 128, 256], r"4: one for each level"),
        ("SIZES_OF_INTEREST", [64, 128, 128, 512], "must increase"),
        ("SIZES_OF_INTEREST", [0, 128, 256, 512], "positive"),
        ("SIZES_OF_INTEREST", [64, 128, 256, float("nan")], "positive"),
        ("SIZES_OF_INTEREST", ["a", 128, 256, 512], "positive"),
        ("IN_FEATURES", [], r"the backbone Levels gives \['p3'"),
        ("IN_FEATURES", ["p3", "p4", "p5", "p6", "p8"], r"'p8'.*the backbone Levels gives \['p3'"),
        ("IN_FEATURES", [["p3"], "p4", "p5", "p6", "p7"], "the backbone Levels gives"),
        ("IN_FEATURES", ["p4", "p3", "p5", "p6", "p7"], r"strides \[16, 8, 32, 64, 128\]"),
        ("IN_FEATURES", ["p3", "p3", "p5", "p6", "p7"], "must ascend"),
        ("IN_FEATURES", ["p3", "p4", "p5", "res6", "p7"], r"\[64, 64, 64, 96, 64\] channels"),
        ("NORM", "GroupNorm", "allowed: '', 'GN'"),
    ],
)
def test_check_fcos_names_key_value_and_range(key: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"(?s)^MODEL\.FCOS\.{key} is .*{message}"):
        check_fcos(config(**{key: value}), Levels())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"CENTER_SAMPLING_RADIUS": 1.5, "NUM_CONVS": 0, "NUM_CLASSES": 1, "PRE_NMS_TOPK": 1},
        {"FOCAL_ALPHA": 0.0, "FOCAL_GAMMA": 0.0, "SCORE_THRESH_TEST": 0.0, "NMS_THRESH_TEST": 1.0},
        {"IN_FEATURES": ["p4", "p5"], "SIZES_OF_INTEREST": [99.5]},
        {"IN_FEATURES": ["p4"], "SIZES_OF_INTEREST": []},
    ],
)
def test_check_fcos_lets_the_ends_of_the_ranges_pass(changes: dict[str, object]) -> None:
    check_fcos(config(**changes), Levels())


def test_check_fcos_group_norm_needs_channels_that_its_groups_divide() -> None:
    with pytest.raises(ConfigError, match=r"MODEL\.FCOS\.NORM is 'GN' over 48 channels"):
        check_fcos(config(), Levels(channels=48))
    check_fcos(config(NORM="BN"), Levels(channels=48))


def test_check_fcos_wants_at_least_one_detection() -> None:
    # Python's [:-1] would silently drop the last detection.
    cfg = config()
    cfg.TEST.DETECTIONS_PER_IMAGE = -1
    with pytest.raises(ConfigError, match=r"TEST\.DETECTIONS_PER_IMAGE is -1"):
        check_fcos(cfg, Levels())


def test_check_fcos_deformable_is_a_truth_value_and_needs_convolutions() -> None:
    check_fcos(config(DEFORMABLE=True), Levels())
    cfg = config()
    cfg.MODEL.FCOS.DEFORMABLE = "yes"
    with pytest.raises(ConfigError, match=r"(?s)MODEL\.FCOS\.DEFORMABLE is 'yes'.*True or False"):
        check_fcos(cfg, Levels())
    with pytest.raises(ConfigError, match=r"(?s)MODEL\.FCOS\.DEFORMABLE is True.*MODEL\.FCOS\.NUM_CONVS is 0"):
        check_fcos(config(DEFORMABLE=True, NUM_CONVS=0), Levels())


def test_every_number_of_fcos_has_a_range() -> None:
    values = get_segzoo_cfg().MODEL.FCOS.items()
    numbers = {key for key, value in values if isinstance(value, int | float) and not isinstance(value, bool)}
    assert numbers == set(RANGES)


@pytest.mark.parametrize("norm", NORMS)
def test_norms_are_those_that_detectron2_builds(norm: str) -> None:
    assert (get_norm(norm, 64) is None) == (norm == "")
