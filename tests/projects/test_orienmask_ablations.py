"""Every row of OrienMask's tables is there with the paper's figures, and its model trains and predicts."""

from __future__ import annotations

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from orienmask.config import YOLOV4_ANCHORS
from projects import get_cfg
from segzoo.engine.ablations import Row, row_config
from tests.contract.toys import NUM_CLASSES, ellipse, make_input
from tests.projects.studies import (
    changes,
    check_steps_and_inference,
    count_equal_models,
    figures,
    own_models,
    printed,
    read_study,
)

ORIENMASK = read_study("OrienMask")

# Written down from the paper, not from the file: row -> AP AP50 AP75 APs APm APl of masks, as far as printed.
AP = """
1-1.0  32.0 53.4 33.1
1-1.2  32.5 53.9 33.6
1-1.4  32.3 53.8 33.0
1-1.6  31.9 53.6 32.5
2-5  31.0 52.7 31.3
2-10  31.8 53.5 32.5
2-15  32.1 53.4 33.3
2-20  32.5 53.9 33.6
3-0.4  30.4 50.7 31.3
3-0.5  32.2 52.9 33.2
3-0.6  32.5 53.9 33.6
3-0.7  31.7 53.8 32.4
3-0.8  30.1 52.8 29.9
4-base  32.5 53.9 33.6
4-box-centroid  33.3 54.8 34.4
4-larger-anchors  33.8 55.2 35.2
4-fpn-plus  34.1 55.7 35.4
5-OrienMask  34.8 56.7 36.4 16.0 38.2 47.8
6-OrienMask  34.5 56.0 35.8 16.8 38.5 49.1
"""
COLUMNS = [f"segm/{name}" for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")]
# What else the tables print: AP of boxes, frames a second, MiB of the maps.
OTHERS: dict[str, dict[str, float]] = {
    "1-1.0": {"bbox/AP": 37.0},
    "1-1.2": {"bbox/AP": 37.4},
    "1-1.4": {"bbox/AP": 37.4},
    "1-1.6": {"bbox/AP": 37.1},
    "2-5": {"bbox/AP": 36.7},
    "2-10": {"bbox/AP": 36.8},
    "2-15": {"bbox/AP": 37.1},
    "2-20": {"bbox/AP": 37.4},
    "5-OrienMask": {"FPS": 42.7},
    "6-OrienMask": {"FPS": 41.9, "maps MiB": 1.27},
}
# YOLOv3's anchors, centres of cells, a plain pyramid.
BASE = {
    "ANCHORS": [[10, 13], [16, 30], [33, 23], [30, 61], [62, 45], [59, 119], [116, 90], [156, 198], [373, 326]],
    "BASE_POSITION": "grid",
    "ORIEN_INPUT": "fpn",
}


def test_orienmask_has_every_row_of_the_paper_with_its_figures() -> None:
    assert printed(ORIENMASK) == figures(AP, COLUMNS, OTHERS)


def test_orienmask_rows_that_share_a_model_and_its_evaluation_have_the_same_figures() -> None:
    assert count_equal_models(ORIENMASK) == 3


def test_orienmask_tables_1_to_3_change_one_number_of_the_base_model() -> None:
    assert (get_cfg().MODEL.ORIENMASK.EXPAND_RATIO, get_cfg().MODEL.ORIENMASK.ORIEN_LOSS_WEIGHT) == (1.2, 20.0)
    assert get_cfg().MODEL.ORIENMASK.TAU == 0.6
    for table, key, base in (("1", "EXPAND_RATIO", 1.2), ("2", "ORIEN_LOSS_WEIGHT", 20.0), ("3", "TAU", 0.6)):
        for row in (row for row in ORIENMASK.values() if row.table == table):
            value = float(row.id.removeprefix(f"{table}-"))
            assert changes(row, "ORIENMASK") == BASE | ({} if value == base else {key: value}), row.id
            assert (row.model_of == "4-base") == (table == "3" or value == base), row.id


def differences(first: str, second: str) -> set[str]:
    """The keys in which the whole configs of two rows differ."""
    lines = [
        dict(line.split("=", 1) for line in flat(row_config(ORIENMASK[row], get_cfg()))) for row in (first, second)
    ]
    return {key for key in lines[0] if lines[0][key] != lines[1][key]}


def flat(node: CfgNode, prefix: str = "") -> list[str]:
    return [
        line
        for key, value in node.items()
        for line in (flat(value, f"{prefix}{key}.") if isinstance(value, CfgNode) else [f"{prefix}{key}={value!r}"])
    ]


def test_orienmask_table_4_adds_one_thing_a_row_and_the_final_model_synchronised_norms() -> None:
    rows = ("4-base", "4-box-centroid", "4-larger-anchors", "4-fpn-plus", "6-OrienMask")
    steps = ({"BASE_POSITION"}, {"ANCHORS"}, {"ORIEN_INPUT"}, {"NORM"})
    for first, second, keys in zip(rows, rows[1:], steps, strict=False):
        expected = {f"MODEL.ORIENMASK.{key}" for key in keys} | ({"MODEL.DARKNET.NORM"} if keys == {"NORM"} else set())
        assert differences(first, second) == expected, second
    assert changes(ORIENMASK["4-base"], "ORIENMASK") == BASE
    assert changes(ORIENMASK["4-fpn-plus"], "ORIENMASK") == {}
    assert changes(ORIENMASK["6-OrienMask"], "ORIENMASK") == {"NORM": "SyncBN"}
    assert changes(ORIENMASK["6-OrienMask"], "DARKNET") == {"NORM": "SyncBN"}
    assert YOLOV4_ANCHORS[::4] == [[12, 16], [76, 55], [459, 401]]


def test_orienmask_test_dev_is_the_final_model_on_other_images() -> None:
    test_dev, final = ORIENMASK["5-OrienMask"], ORIENMASK["6-OrienMask"]
    assert test_dev.model_of == final.id
    assert (test_dev.dataset, final.dataset) == ("coco_2017_test-dev", "coco_2017_val")
    assert {row.dataset for row in ORIENMASK.values() if row.table != "5"} == {"coco_2017_val"}


def test_orienmask_maps_have_the_size_of_table_6() -> None:
    row = ORIENMASK["6-OrienMask"]
    with torch.no_grad():
        maps = build_model(narrow_config(row)).eval().dense_outputs(torch.zeros(1, 3, *row.image_size))
    assert maps.orientations.dtype == torch.float32
    assert maps.orientations.numel() * 4 / 2**20 == pytest.approx(row.figures["maps MiB"], abs=0.005)


SIZE = (96, 128)
# Of every level's anchors at narrow_config's size: center (x, y), radii, px.
OBJECTS = [((60, 12), (3, 4)), ((24, 76), (8, 10)), ((108, 24), (14, 12)), ((36, 36), (27, 26)), ((80, 62), (45, 32))]


def narrow_config(row: Row) -> CfgNode:
    """A row with few channels, one residual block a stage and its anchors at a fifth of their size.

    Without weight decay, so that only gradients move parameters.
    """
    cfg = row_config(row, get_cfg())
    cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE = "", "cpu"
    cfg.SOLVER.WEIGHT_DECAY = cfg.SOLVER.WEIGHT_DECAY_NORM = cfg.SOLVER.WEIGHT_DECAY_BIAS = 0.0
    cfg.MODEL.DARKNET.STEM_CHANNELS, cfg.MODEL.DARKNET.BLOCKS_PER_STAGE = 4, (1, 1, 1, 1, 1)
    node = cfg.MODEL.ORIENMASK
    node.NECK_CHANNELS, node.ORIEN_CHANNELS, node.NUM_CLASSES = [8, 16, 32], 16, NUM_CLASSES
    node.ANCHORS = [[width / 5, height / 5] for width, height in node.ANCHORS]
    node.SCORE_THRESH_TEST = 0.0
    cfg.TEST.DETECTIONS_PER_IMAGE = 5
    return cfg


# Each takes a fraction of a second, so that none is left to the slow tests.
@pytest.mark.parametrize("row", own_models(ORIENMASK.values(), quick=ORIENMASK))
def test_orienmask_row_takes_two_steps_and_predicts(row: Row) -> None:
    masks = [ellipse(SIZE, center, radii) for center, radii in OBJECTS]
    check_steps_and_inference(
        narrow_config(row), [make_input(SIZE, masks, seed=0), make_input(SIZE, masks[:1], seed=1)]
    )
