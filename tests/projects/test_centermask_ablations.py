"""Every row of CenterMask's tables is there with the paper's figures, and its model trains and predicts."""

from __future__ import annotations

from typing import Any

import pytest
from detectron2.config import CfgNode
from torch import nn

from projects import get_cfg
from segzoo.engine.ablations import Row, row_config
from tests.contract.toys import NUM_CLASSES, ellipse, make_input
from tests.projects.studies import (
    REPOSITORY,
    changes,
    check_steps_and_inference,
    count_equal_models,
    figures,
    own_models,
    printed,
    read_study,
)

CENTERMASK = read_study("CenterMask")

# Written down from the paper, not from the file: row -> AP AP50 AP75 APs APm APl, as far as the table prints them.
AP = """
1a-24  32.0 52.8 33.8 14.0 36.3 48.5
1a-32  32.5 53.6 33.9 14.3 36.3 48.7
1a-48  32.5 53.4 34.1 13.8 36.6 49.0
1b-DLA-34  32.5 53.6 33.9 14.3 36.3 48.7
1b-Hourglass-104  33.9 55.6 35.5 16.1 37.8 49.2
1c-without  21.7 44.7 18.3 9.8 24.0 31.8
1c-with  31.5 53.7 32.4 15.1 35.5 45.5
1d-without  26.5 51.8 24.5 12.7 29.8 38.2
1d-with  31.5 53.7 32.4 15.1 35.5 45.5
1e-agnostic  31.5 53.7 32.4 15.1 35.5 45.5
1e-specific  33.9 55.6 35.5 16.1 37.8 49.2
1f-without  33.9 55.6 35.5 16.1 37.8 49.2
1f-with  34.4 55.8 36.2 16.1 38.3 50.2
2-DLA-34  33.1 53.8 34.9 13.4 35.7 48.8
2-Hourglass-104  34.5 56.1 36.3 16.3 37.4 48.4
3-R-101  36.1 58.7 38.0 16.5 38.4 51.2
3-X-101  36.7 59.3 38.8 17.4 38.7 51.4
3-R-101-DCN  37.6 60.4 39.8 17.3 39.8 53.4
3-X-101-DCN  38.5 61.5 41.0 18.7 40.5 54.8
4-Mask-R-CNN-R-101  36.0
4-CenterMask-FCOS-R-101  40.0
"""
COLUMNS = [f"segm/{name}" for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")]
FRAMES = {"1b-DLA-34": {"FPS": 25.2}, "1b-Hourglass-104": {"FPS": 12.3}}


def test_centermask_has_every_row_of_the_paper_with_its_figures() -> None:
    assert printed(CENTERMASK) == figures(AP, COLUMNS, FRAMES)


def test_centermask_rows_that_share_a_model_and_its_evaluation_have_the_same_figures() -> None:
    assert count_equal_models(CENTERMASK) == 5


def test_centermask_tables_1_and_2_vary_what_the_paper_says() -> None:
    stacks, unsupervised = {"IN_FEATURES": ["stack0", "stack1"]}, {"SALIENCY_LOSS_WEIGHT": 0.0}
    agnostic = stacks | unsupervised | {"SALIENCY": "class_agnostic"}
    expected: dict[str, dict[str, Any]] = {
        "1a-24": unsupervised | {"SHAPE_SIZE": 24},
        "1a-32": unsupervised,
        "1a-48": unsupervised | {"SHAPE_SIZE": 48},
        "1b-DLA-34": unsupervised,
        "1b-Hourglass-104": stacks | unsupervised,
        "1c-without": agnostic | {"SHAPE_ON": False},
        "1c-with": agnostic,
        "1d-without": stacks | unsupervised | {"SALIENCY": "none"},
        "1d-with": agnostic,
        "1e-agnostic": agnostic,
        "1e-specific": stacks | unsupervised,
        "1f-without": stacks | unsupervised,
        "1f-with": stacks,
        "2-DLA-34": {},
        "2-Hourglass-104": stacks,
    }
    found = {
        row.id: changes(row, "CENTERMASK") for row in CENTERMASK.values() if row.table in ("2", *expected_tables())
    }
    assert found == expected
    for row in expected:
        backbone = "build_hourglass_backbone" if "IN_FEATURES" in expected[row] else "build_dla_backbone"
        assert backbone == row_config(CENTERMASK[row], get_cfg()).MODEL.BACKBONE.NAME, row


def expected_tables() -> set[str]:
    return {row.table for row in CENTERMASK.values() if row.table.startswith("1")}


def test_centermask_recipe_is_that_of_the_paper_on_centernets_input() -> None:
    for row, batch, iterations in (("1a-32", 64, 240_000), ("1f-with", 24, 641_000)):
        cfg = row_config(CENTERMASK[row], get_cfg())
        assert (cfg.SOLVER.OPTIMIZER, cfg.SOLVER.BASE_LR, cfg.MODEL.WEIGHTS) == ("ADAM", 0.00025, "")
        assert (batch, iterations) == (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER)
        # 130 epochs, a tenth after 100 and after 120.
        assert iterations * batch / 118_287 == pytest.approx(130, abs=0.2)
        assert [step * batch / 118_287 for step in cfg.SOLVER.STEPS] == pytest.approx([100, 120], abs=0.2)
        assert (cfg.INPUT.RESIZE, cfg.INPUT.RESIZE_TRAIN, cfg.INPUT.FIXED_SIZE) == ("fix_res", "warp", (512, 512))
        assert (cfg.INPUT.FORMAT, cfg.INPUT.RESAMPLING, cfg.INPUT.RANDOM_FLIP) == ("BGR", "opencv", "horizontal")
        jitter = cfg.INPUT.COLOR_JITTER
        assert (jitter.BRIGHTNESS, jitter.CONTRAST, jitter.SATURATION, jitter.HUE) == (0.4, 0.4, 0.4, 0.0)
        assert jitter.LIGHTING == 0.1
        mean, std = (0.40789654, 0.44719302, 0.47026115), (0.28863828, 0.27408164, 0.27809835)
        assert pytest.approx([255 * value for value in mean], abs=0.1) == cfg.MODEL.PIXEL_MEAN
        assert pytest.approx([255 * value for value in std], abs=0.1) == cfg.MODEL.PIXEL_STD


def test_centermask_fcos_rows_differ_in_their_backbone_alone() -> None:
    for row, groups, is_deformable in (
        ("3-R-101", 1, False),
        ("3-X-101", 64, False),
        ("3-R-101-DCN", 1, True),
        ("3-X-101-DCN", 64, True),
    ):
        cfg = row_config(CENTERMASK[row], get_cfg())
        assert cfg.MODEL.META_ARCHITECTURE == "CenterMaskFCOS"
        assert changes(CENTERMASK[row], "CENTERMASK_FCOS") == {}
        assert (101, groups) == (cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.NUM_GROUPS)
        assert any(cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE) == is_deformable
        assert (cfg.SOLVER.MAX_ITER, cfg.INPUT.MIN_SIZE_TRAIN) == (180_000, (640, 800))
        assert cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range"


def test_centermask_data_sets_of_the_tables() -> None:
    datasets = {table: {row.dataset for row in CENTERMASK.values() if row.table == table} for table in "234"}
    assert datasets == {"2": {"coco_2017_test-dev"}, "3": {"coco_2017_test-dev"}, "4": {"lvis_v0.5_val_cocofied"}}
    assert CENTERMASK["4-CenterMask-FCOS-R-101"].model_of == "3-R-101"
    assert {row.dataset for row in CENTERMASK.values() if row.table in expected_tables()} == {"coco_2017_val"}


SIZE = (128, 128)
# Of several sizes, overlapping: center (x, y), radii, px.
OBJECTS = [((60, 12), (9, 7)), ((24, 90), (16, 12)), ((108, 24), (16, 20)), ((36, 36), (27, 26)), ((70, 80), (50, 24))]


def narrow_config(row: Row) -> CfgNode:
    """A row at its depth, but with few channels, and group norms in place of frozen ones, which need real weights.

    Without weight decay, so that only gradients move parameters.
    """
    cfg = row_config(row, get_cfg())
    cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE, cfg.MODEL.TIMM.WEIGHTS = "", "cpu", ""
    cfg.SOLVER.WEIGHT_DECAY = cfg.SOLVER.WEIGHT_DECAY_NORM = cfg.SOLVER.WEIGHT_DECAY_BIAS = 0.0
    cfg.MODEL.DLA.CHANNELS = (4, 4, 8, 8, 16, 16)
    cfg.MODEL.HOURGLASS.CHANNELS = (8, 8, 8, 8, 8, 8)
    node, fcos, roi = cfg.MODEL.CENTERMASK, cfg.MODEL.FCOS, cfg.MODEL.ROI_HEADS
    node.HEAD_CHANNELS = node.FUSED_CHANNELS = 32
    node.NUM_CLASSES = fcos.NUM_CLASSES = roi.NUM_CLASSES = NUM_CLASSES
    node.SCORE_THRESH_TEST = fcos.SCORE_THRESH_TEST = roi.SCORE_THRESH_TEST = 0.0
    resnets = cfg.MODEL.RESNETS
    resnets.NORM = "GN"
    resnets.STEM_OUT_CHANNELS = resnets.RES2_OUT_CHANNELS = 32
    resnets.NUM_GROUPS = min(resnets.NUM_GROUPS, 8)
    resnets.WIDTH_PER_GROUP = 32 // resnets.NUM_GROUPS
    cfg.MODEL.FPN.OUT_CHANNELS = 64
    fcos.NUM_CONVS, cfg.MODEL.CENTERMASK_FCOS.SALIENCY_NUM_CONVS = 1, 1
    fcos.SIZES_OF_INTEREST = [12, 24, 30, 40]
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM, cfg.MODEL.ROI_MASK_HEAD.CONV_DIM, cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 32, 16, 1
    cfg.TEST.DETECTIONS_PER_IMAGE = 5
    return cfg


def enlarge_sizes(model: nn.Module) -> None:
    """CenterNet's boxes begin at some 12 px: a new model's may be smaller than nothing.

    Smaller than all OBJECTS, so that all pull in one direction: the signs of an L1 loss could cancel.
    """
    for head in getattr(model, "heads", ()):
        nn.init.constant_(head.size[-1].bias, 3.0)


def leaf(name: str) -> Row:
    """A config that no row of a table names."""
    return Row(name, "", "", {}, str(REPOSITORY / "configs" / name), {})


NAMED = {row.config_file.rsplit("/", 1)[-1] for row in CENTERMASK.values()}
LEAVES = [path.name for path in sorted((REPOSITORY / "configs").glob("centermask_*.yaml")) if path.name not in NAMED]
# One of each kind; the others differ from them in a number, or in their backbone.
QUICK = {"1a-24", "1a-32", "1c-without", "1d-without", "1e-agnostic", "1f-with", "3-R-101", "3-X-101-DCN"}


@pytest.mark.parametrize(
    "row", [*own_models(CENTERMASK.values(), QUICK), *(pytest.param(leaf(name), id=name) for name in LEAVES)]
)
def test_centermask_row_takes_two_steps_and_predicts(row: Row) -> None:
    masks = [ellipse(SIZE, center, radii) for center, radii in OBJECTS]
    batch = [make_input(SIZE, masks, seed=0), make_input(SIZE, masks[:1], seed=1)]
    check_steps_and_inference(narrow_config(row), batch, prepare=enlarge_sizes)
