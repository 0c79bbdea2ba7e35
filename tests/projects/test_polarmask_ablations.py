"""Every row of PolarMask's tables is there with the paper's figures, and its model trains and predicts."""

from __future__ import annotations

import pytest
from detectron2.config import CfgNode

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

POLARMASK = read_study("PolarMask")

# Written down from the paper, not from the file: row -> AP AP50 AP75 APs APm APl, as far as the table prints them.
POLARMASK_AP = """
1a-18  26.2 48.7 25.4 11.8 28.2 38.0
1a-24  27.3 49.5 26.9 12.4 29.5 40.1
1a-36  27.7 49.6 27.4 12.6 30.2 39.7
1a-72  27.6 49.7 27.2 12.9 30.0 39.7
1b-smooth-l1-0.05  24.7 47.1 23.7 11.3 26.7 36.8
1b-smooth-l1-0.30  25.1 46.4 24.5 10.6 27.3 37.3
1b-smooth-l1-1.00  20.2 37.9 19.6 8.6 20.6 31.1
1b-polar-iou-1.00  27.7 49.6 27.4 12.6 30.2 39.7
1c-original  27.7 49.6 27.4 12.6 30.2 39.7
1c-polar  29.1 49.5 29.7 12.6 31.8 42.3
1d-with  27.7 49.6 27.4 12.6 30.2 39.7
1d-without  27.5 49.8 27.0 13.0 30.0 40.0
1e-R-50  29.1 49.5 29.7 12.6 31.8 42.3
1e-R-101  30.4 51.1 31.2 13.5 33.5 43.9
1e-X-101  32.6 54.4 33.7 15.0 36.0 47.1
1f-400  22.9 39.8 23.2 4.5 24.4 41.7
1f-600  27.6 47.5 28.3 9.8 30.1 43.1
1f-800  29.1 49.5 29.7 12.6 31.8 42.3
2-R-101  30.4 51.9 31.0 13.4 32.4 42.8
2-R-101-2x  32.1 53.7 33.1 14.7 33.8 45.3
2-X-101  32.9 55.4 33.8 15.5 35.1 46.3
2-X-101-DCN-2x  36.2 59.4 37.7 17.8 37.7 51.5
5-R-50-1x  29.1
5-R-101-1x  30.4
5-X-101-1x  32.6
5-R-50-DCN-1x  32.0
5-R-101-DCN-1x  33.5
5-X-101-DCN-1x  34.9
5-R-50-2x  30.5
5-R-101-2x  31.9
5-X-101-2x  33.5
5-R-50-DCN-2x  33.3
5-R-101-DCN-2x  34.3
5-X-101-DCN-2x  35.9
6-neither  25.1 46.4 24.5
6-both  29.1 49.5 29.7
6-ESE-Seg  21.6 48.7 22.4
"""
# Frames a second in all and of the network alone; GMAC and millions of parameters; frames a second and milliseconds.
POLARMASK_COSTS: dict[str, dict[str, float]] = {
    "1f-400": {"FPS": 26.3, "network FPS": 46.7},
    "1f-600": {"FPS": 21.7, "network FPS": 34.1},
    "1f-800": {"FPS": 17.2, "network FPS": 23.9},
    "3-FCOS": {"GMAC": 200.4, "trainable M": 32.02},
    "3-without-box": {"GMAC": 202.3, "trainable M": 32.09},
    "3-with-box": {"GMAC": 252.7, "trainable M": 34.46},
    "3-Mask-R-CNN": {"GMAC": 275.5, "trainable M": 44.18},
    "3-YOLACT": {"GMAC": 196.8, "trainable M": 31.16},
    "4-R-101": {"FPS": 12.3, "ms": 81},
    "4-TensorMask-R-101": {"FPS": 2.63, "ms": 380},
    "4-R-101-DCN": {"FPS": 8.18, "ms": 122},
    "4-Mask-R-CNN-R-101": {"FPS": 5.12, "ms": 195},
}
COLUMNS = [f"segm/{name}" for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")]


def test_polarmask_has_every_row_of_the_paper_with_its_figures() -> None:
    assert printed(POLARMASK) == figures(POLARMASK_AP, COLUMNS, POLARMASK_COSTS)


def test_polarmask_rows_that_share_a_model_and_its_evaluation_have_the_same_figures() -> None:
    assert count_equal_models(POLARMASK) == 10


def test_polarmask_base_conditions_are_those_of_the_paper() -> None:
    with_box = {"BOX_BRANCH": True, "BOXES": "predicted", "CENTERNESS": "cartesian"}
    for row in ("1a-36", "1b-polar-iou-1.00", "1c-original", "1d-with", "3-with-box"):
        assert changes(POLARMASK[row], "POLARMASK") == with_box, row
    assert changes(POLARMASK["1a-18"], "POLARMASK") == with_box | {"NUM_RAYS": 18}
    smooth_l1 = with_box | {"MASK_LOSS": "smooth_l1"}
    assert (
        changes(POLARMASK["1b-smooth-l1-0.30"], "POLARMASK")
        == changes(POLARMASK["6-neither"], "POLARMASK")
        == smooth_l1 | {"MASK_LOSS_WEIGHT": 0.3}
    )
    assert changes(POLARMASK["1d-without"], "POLARMASK") == {"CENTERNESS": "cartesian"}
    for row in ("1c-polar", "1e-R-50", "1f-400", "1f-800", "3-without-box", "5-R-50-DCN-2x", "6-both"):
        assert changes(POLARMASK[row], "POLARMASK") == {}, row


def test_polarmask_backbones_deformable_and_long_rows_are_as_the_paper_says() -> None:
    cfg = row_config(POLARMASK["5-X-101-DCN-2x"], get_cfg())
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.BASE_LR) == (180_000, (120_000, 160_000), 0.01)
    assert (cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING) == ((640, 800), "range")
    resnets = cfg.MODEL.RESNETS
    assert (resnets.DEPTH, resnets.NUM_GROUPS, resnets.WIDTH_PER_GROUP, resnets.STRIDE_IN_1X1) == (101, 64, 4, False)
    assert (resnets.DEFORM_ON_PER_STAGE, resnets.DEFORM_MODULATED) == ([False, True, True, True], False)
    assert (cfg.MODEL.FCOS.DEFORMABLE, cfg.INPUT.FORMAT) == (True, "RGB")
    assert (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD) == ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
    cfg = row_config(POLARMASK["5-R-101-1x"], get_cfg())
    assert (cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.NUM_GROUPS, cfg.MODEL.FCOS.DEFORMABLE) == (101, 1, False)
    assert (cfg.SOLVER.MAX_ITER, cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.FORMAT) == (90_000, (800,), "BGR")
    assert "MSRA/R-101" in cfg.MODEL.WEIGHTS


def test_polarmask_test_dev_rows_are_marked() -> None:
    assert {row.dataset for row in POLARMASK.values() if row.table == "2"} == {"coco_2017_test-dev"}
    others = {row.dataset for row in POLARMASK.values() if row.table != "2" and "train" in row.kinds}
    assert others == {"coco_2017_val"}


SIZE = (96, 128)
# One object for each of the levels P3 to P7, with narrow_config's limits between them: center (x, y), radii, px.
OBJECTS = [((60, 12), (9, 7)), ((24, 76), (16, 12)), ((108, 24), (16, 20)), ((36, 36), (27, 26)), ((70, 70), (50, 20))]


# One of each kind; the others differ from them in a number, or only in their schedule.
QUICK = {"1a-18", "1b-smooth-l1-0.30", "1d-without", "1e-R-50", "1e-R-101", "1e-X-101", "3-FCOS", "3-Mask-R-CNN"}
QUICK |= {"5-R-50-DCN-1x", "5-X-101-DCN-1x"}


def narrow_config(row: Row) -> CfgNode:
    """A row at its depth, but with few channels, group norms (frozen ones need real weights) and a short head.

    Without weight decay, so that only gradients move parameters.
    """
    cfg = row_config(row, get_cfg())
    cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE = "", "cpu"
    cfg.SOLVER.WEIGHT_DECAY = cfg.SOLVER.WEIGHT_DECAY_NORM = 0.0
    resnets = cfg.MODEL.RESNETS
    resnets.NORM = "GN"
    resnets.STEM_OUT_CHANNELS = resnets.RES2_OUT_CHANNELS = 32
    resnets.NUM_GROUPS = min(resnets.NUM_GROUPS, 8)
    resnets.WIDTH_PER_GROUP = 32 // resnets.NUM_GROUPS
    cfg.MODEL.FPN.OUT_CHANNELS = 64
    fcos, roi = cfg.MODEL.FCOS, cfg.MODEL.ROI_HEADS
    fcos.NUM_CONVS, fcos.NUM_CLASSES, roi.NUM_CLASSES = 1, NUM_CLASSES, NUM_CLASSES
    fcos.SIZES_OF_INTEREST = [12, 24, 30, 40]
    fcos.SCORE_THRESH_TEST = roi.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM, cfg.MODEL.ROI_MASK_HEAD.CONV_DIM, cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 32, 16, 1
    cfg.TEST.DETECTIONS_PER_IMAGE = 5
    return cfg


# A leaf that no row of a table names.
OFFICIAL = Row("official", "", "", {}, str(REPOSITORY / "configs" / "polarmask_R50_official.yaml"), {})


@pytest.mark.parametrize("row", [*own_models(POLARMASK.values(), QUICK), pytest.param(OFFICIAL, id="official")])
def test_polarmask_row_takes_two_steps_and_predicts(row: Row) -> None:
    masks = [ellipse(SIZE, center, radii) for center, radii in OBJECTS]
    batch = [make_input(SIZE, masks, seed=0), make_input(SIZE, masks[:1], seed=1)]
    # Small contours leave degrees empty, a centerness of nearly 0: too little to move a level's scale from 1.
    check_steps_and_inference(narrow_config(row), batch, may_stay="mask_scales" if row is OFFICIAL else "")
