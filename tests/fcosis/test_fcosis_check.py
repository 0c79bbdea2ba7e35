"""Impossible values of MODEL.FCOSIS are refused by name, value and remedy."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor

from fcosis.check import CHOICES, RANGES, check_fcosis, check_regularization
from projects import get_cfg
from segzoo.config import merge_config
from segzoo.errors import ConfigError

# What each range refuses, and the ends that it allows.
REFUSED: dict[str, list[Any]] = {
    "SEG_CHANNELS": [0, -1],
    "GROUP_BUDGET_MB": [0, -1],
}
ALLOWED: dict[str, list[Any]] = {
    "SEG_CHANNELS": [1, 256],
    "GROUP_BUDGET_MB": [0.5, 4096],
}
NO_NUMBERS: list[Any] = [True, None, "1", [1], float("nan"), float("inf")]
# Name -> channels and stride; "odd" is no level of a pyramid.
SHAPES = {f"p{i}": (8, 2**i) for i in range(1, 8)} | {"odd": (8, 12), "twice odd": (8, 24)}


class Levels(Backbone):
    """A backbone of nothing but its features."""

    def __init__(self, shapes: dict[str, tuple[int, int]] = SHAPES) -> None:
        super().__init__()
        self.shapes = shapes

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {name: ShapeSpec(channels=channels, stride=stride) for name, (channels, stride) in self.shapes.items()}


def config(**changes: object) -> CfgNode:
    cfg = get_cfg()
    for key, value in changes.items():
        # Not merged: the types that yacs would refuse must not get further either.
        cfg.MODEL.FCOSIS[key] = value
    return cfg


def assert_refused(message: str, **changes: object) -> None:
    with pytest.raises(ConfigError, match=rf"(?s)^{message}"):
        check_fcosis(config(**changes), Levels())


def test_every_range_is_looked_at() -> None:
    assert set(REFUSED) == set(ALLOWED) == set(RANGES)


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in REFUSED.items() for value in values])
def test_values_out_of_their_range_are_refused(key: str, value: object) -> None:
    text = re.escape(RANGES[key][1])
    assert_refused(rf"MODEL\.FCOSIS\.{key} is {re.escape(repr(value))}\n.*it must be {text}", **{key: value})


@pytest.mark.parametrize("key", RANGES)
@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
def test_what_is_no_number_is_refused(key: str, value: object) -> None:
    assert_refused(rf"MODEL\.FCOSIS\.{key} is {re.escape(repr(value))}\n", **{key: value})


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in ALLOWED.items() for value in values])
def test_values_in_their_range_are_allowed(key: str, value: object) -> None:
    check_fcosis(config(**{key: value}), Levels())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ATTENTION": "boxes"}, r"MODEL\.FCOSIS\.ATTENTION is 'boxes'\n.*grouping, box, none"),
        ({"ATTENTION": None}, r"MODEL\.FCOSIS\.ATTENTION is None\n"),
        ({"LEARN_MU": 0}, r"MODEL\.FCOSIS\.LEARN_MU is 0\n.*True or False"),
        (
            {"ATTENTION": "none", "SEG_CHANNELS": 48},
            r"MODEL\.FCOSIS\.SEG_CHANNELS is 48 with ATTENTION 'none'\n.*multiple of 32",
        ),
        (
            {"ATTENTION": "box", "LEARN_MU": False},
            r"MODEL\.FCOSIS\.LEARN_MU is False with ATTENTION 'box'\n.*by grouping",
        ),
        ({"ATTENTION": "none", "LEARN_MU": False}, r"MODEL\.FCOSIS\.LEARN_MU is False with ATTENTION 'none'\n"),
    ],
    ids=str,
)
def test_impossible_segmentations_are_refused(changes: dict[str, Any], message: str) -> None:
    assert_refused(message, **changes)


@pytest.mark.parametrize("attention", CHOICES["ATTENTION"])
def test_segmentations_of_a_pyramid_are_allowed(attention: str) -> None:
    check_fcosis(config(ATTENTION=attention), Levels())
    check_fcosis(config(ATTENTION="grouping", LEARN_MU=False), Levels())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"p2": None}, r"gives .*build_resnet_fpn_p2p7_backbone.*TIMM\.OUT_STRIDES"),
        ({"p3": (8, 12)}, r"strides \[4, 12, 16\].*twice the last"),
        ({"p2": (8, 8), "p3": (8, 16), "p4": (8, 32)}, r"strides \[8, 16, 32\].*from 4 on"),
        ({"p4": (16, 16)}, r"\[8, 8, 16\] channels.*equal channels"),
    ],
    ids=["no p2", "not twice", "not from 4 on", "channels"],
)
def test_backbones_that_cannot_be_segmented_on_are_refused(
    changes: dict[str, tuple[int, int] | None], message: str
) -> None:
    shapes = {name: shape for name, shape in (SHAPES | changes).items() if shape is not None}
    with pytest.raises(ConfigError, match=rf"(?s)^FCOSIS segments on \['p2', 'p3', 'p4'\].*{message}"):
        check_fcosis(config(), Levels(shapes))


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ([], "give alpha, beta and gamma, none below 0"),
        ([0.5, 0.5], "give alpha, beta and gamma"),
        ([0.25] * 4, "give alpha, beta and gamma"),
        ([1.5, -0.5, 0.0], "give alpha, beta and gamma, none below 0"),
        ([1.0, 0.0, None], "give alpha, beta and gamma"),
        ([True, 0.0, 0.0], "give alpha, beta and gamma"),
        ([float("nan"), 0.5, 0.5], "give alpha, beta and gamma"),
        ([0.5, 0.5, 0.5], r"must be 1 together"),
        ([0.0, 0.0, 0.0], r"must be 1 together"),
    ],
    ids=str,
)
def test_impossible_regularizations_are_refused(rule: list[Any], message: str) -> None:
    given = re.escape(f"MODEL.FCOSIS.REGULARIZATION is {rule}")
    with pytest.raises(ConfigError, match=rf"(?s)^{given}.*{message}"):
        check_regularization(config(REGULARIZATION=rule), Levels())


@pytest.mark.parametrize("rule", [[1, 0, 0], [0.0, 1.0, 0.0], [1 / 3] * 3, [0.3333, 0.3333, 0.3334], [0.2, 0.3, 0.5]])
def test_regularizations_of_1_together_are_allowed(rule: list[float]) -> None:
    check_regularization(config(REGULARIZATION=rule), Levels())


@pytest.mark.parametrize(
    ("names", "strides"),
    [
        (["p1", "p2"], "[2, 4]"),
        (["odd", "twice odd"], "[12, 24]"),
        (["p3", "p5"], "[8, 32]"),
        (["p3", "p4", "p6"], "[8, 16, 64]"),
    ],
)
def test_levels_whose_cells_are_not_made_of_the_finer_ones_are_refused(names: list[str], strides: str) -> None:
    cfg = config()
    cfg.MODEL.FCOS.IN_FEATURES = names
    given = re.escape(f"MODEL.FCOS.IN_FEATURES is {names}, with strides {strides}")
    with pytest.raises(ConfigError, match=rf"(?s)^{given}\n.*cells of 4 px.*twice the last"):
        check_regularization(cfg, Levels())


@pytest.mark.parametrize("names", [["p2", "p3", "p4"], ["p4", "p5"], ["p3"]])
def test_levels_that_double_are_allowed(names: list[str]) -> None:
    cfg = config()
    cfg.MODEL.FCOS.IN_FEATURES = names
    check_regularization(cfg, Levels())


def test_sampling_around_centers_is_refused() -> None:
    cfg = config()
    cfg.MODEL.FCOS.CENTER_SAMPLING_RADIUS = 1.5
    with pytest.raises(ConfigError, match=r"(?s)^MODEL\.FCOS\.CENTER_SAMPLING_RADIUS is 1\.5 with mask.*set it to 0"):
        check_regularization(cfg, Levels())


def test_configs_pass(repository: Path) -> None:
    files = sorted((repository / "configs").rglob("*fcosis_*.yaml")) + [repository / "configs" / "fcosreg_R50.yaml"]
    assert len(files) > 2
    for file in files:
        cfg = merge_config(get_cfg(), str(file))
        check_regularization(cfg, Levels())
        check_fcosis(cfg, Levels())
