"""Every row of FCOSIS's tables is there with the paper's figures, and its model trains and predicts."""

from __future__ import annotations

from typing import Any

import pytest
from detectron2.config import CfgNode
from torch import nn

from fcosis.fcosis import FCOSIS
from fcosis.head import GroupingHead
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

STUDY = read_study("FCOSIS")

# Written down from the paper, not from the file: row -> AP AP50 AP75 APs APm APl of boxes.
BOXES = """
1-FCOS  37.1 55.9 39.8 21.3 41.0 47.8
1-FCOSreg  37.5 56.4 40.3 21.4 42.1 50.0
1-MaskFCOS  39.8 57.9 43.2 23.2 43.8 52.5
1-FCOSIS  38.2 56.2 42.1 22.7 42.3 51.2
"""
# The same of masks.
MASKS = """
2-MaskFCOS  34.8 55.3 37.4 15.7 37.9 51.9
2-FCOSIS  32.4 51.5 34.3 12.9 35.2 49.2
3a-without  28.9 48.9 29.6 10.6 30.8 43.5
3a-with  32.4 51.5 34.3 12.9 35.2 49.2
3b-zero  30.9 50.8 32.0 12.6 33.1 46.2
3b-learned  32.4 51.5 34.3 12.9 35.2 49.2
3c-box  31.5 50.9 32.9 12.7 34.5 47.4
3c-grouping  32.4 51.5 34.3 12.9 35.2 49.2
"""
NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl")
# It shows maps alone.
FIGURE_6 = ("figure 6-1-0-0", "figure 6-0-1-0", "figure 6-thirds")
# The keys of MODEL.FCOSIS that a row sets; the other rows are of models as they come.
CHANGES: dict[str, dict[str, Any]] = {
    "3a-without": {"ATTENTION": "none"},
    "3b-zero": {"LEARN_MU": False},
    "3c-box": {"ATTENTION": "box"},
    "figure 6-1-0-0": {"REGULARIZATION": [1.0, 0.0, 0.0]},
    "figure 6-0-1-0": {"REGULARIZATION": [0.0, 1.0, 0.0]},
}
# Rows that evaluate another row's model.
SHARED = {
    "2-MaskFCOS": "1-MaskFCOS",
    "2-FCOSIS": "1-FCOSIS",
    "3a-with": "1-FCOSIS",
    "3b-learned": "1-FCOSIS",
    "3c-grouping": "1-FCOSIS",
    "figure 6-thirds": "1-FCOSreg",
}


def test_fcosis_has_every_row_of_the_paper_with_its_figures() -> None:
    expected = figures(BOXES, [f"bbox/{name}" for name in NAMES], {})
    expected |= figures(MASKS, [f"segm/{name}" for name in NAMES], {})
    expected |= {row: {"bbox/AP": None} for row in FIGURE_6}
    assert printed(STUDY) == expected


def test_fcosis_rows_that_share_a_model() -> None:
    assert {row.id: row.model_of for row in STUDY.values() if row.model_of} == SHARED
    # Table 2 alone has the images of table 1.
    assert count_equal_models(STUDY) == 2


def test_fcosis_rows_change_what_the_paper_says() -> None:
    assert {row.id: changes(row, "FCOSIS") for row in STUDY.values()} == {row: CHANGES.get(row, {}) for row in STUDY}
    default = get_cfg().MODEL.FCOSIS
    assert (default.ATTENTION, default.LEARN_MU, default.REGULARIZATION) == ("grouping", True, [1 / 3] * 3)


def test_fcosis_rows_are_of_their_architectures() -> None:
    found = {row.id: row_config(row, get_cfg()).MODEL.META_ARCHITECTURE for row in STUDY.values()}
    expected = dict.fromkeys(STUDY, "FCOSIS")
    expected |= {"1-FCOS": "FCOS", "1-FCOSreg": "FCOSReg", "1-MaskFCOS": "MaskFCOS", "2-MaskFCOS": "MaskFCOS"}
    expected |= dict.fromkeys(FIGURE_6, "FCOSReg")
    assert found == expected


def test_fcosis_alone_has_a_level_of_stride_4() -> None:
    """A level that nothing is made of costs 42 GMAC, and has parameters without a gradient."""
    for row in STUDY.values():
        cfg = row_config(row, get_cfg())
        has_p2 = cfg.MODEL.BACKBONE.NAME == "build_resnet_fpn_p2p7_backbone"
        assert has_p2 == ("res2" in cfg.MODEL.FPN.IN_FEATURES) == (cfg.MODEL.META_ARCHITECTURE == "FCOSIS"), row.id


def test_fcosis_data_sets_of_the_tables() -> None:
    for row in STUDY.values():
        assert row.dataset == ("coco_2017_test-dev" if row.table in ("1", "2") else "coco_2017_val"), row.id


def test_fcosis_recipe_is_fcos_for_24_epochs() -> None:
    for row in STUDY.values():
        cfg = row_config(row, get_cfg())
        assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.GAMMA) == (0.01, 16, 0.1), row.id
        epochs = [step * 16 / 118_287 for step in (*cfg.SOLVER.STEPS, cfg.SOLVER.MAX_ITER)]
        # A tenth after 14 and after 21.
        assert epochs == pytest.approx([14, 21, 24], rel=0.02), row.id
        assert (cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN) == ((800,), 1333), row.id
        assert (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST) == (800, 1333), row.id
        assert (cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.FCOS.CENTER_SAMPLING_RADIUS) == (50, 0.0), row.id


SIZE = (128, 128)
# Of several sizes, overlapping: center (x, y), radii, px.
OBJECTS = [((60, 12), (9, 7)), ((24, 90), (16, 12)), ((108, 24), (16, 20)), ((36, 36), (27, 26)), ((70, 80), (50, 24))]


def narrow_config(row: Row) -> CfgNode:
    """A row at its depth, but with few channels, and group norms in place of frozen ones, which need real weights.

    Without weight decay, so that only gradients move parameters.
    """
    cfg = row_config(row, get_cfg())
    cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE = "", "cpu"
    cfg.SOLVER.WEIGHT_DECAY = cfg.SOLVER.WEIGHT_DECAY_NORM = cfg.SOLVER.WEIGHT_DECAY_BIAS = 0.0
    fcos, resnets = cfg.MODEL.FCOS, cfg.MODEL.RESNETS
    resnets.NORM = "GN"
    resnets.STEM_OUT_CHANNELS = resnets.RES2_OUT_CHANNELS = resnets.WIDTH_PER_GROUP = 32
    cfg.MODEL.FPN.OUT_CHANNELS = 64
    fcos.NUM_CLASSES = cfg.MODEL.ROI_HEADS.NUM_CLASSES = NUM_CLASSES
    fcos.NUM_CONVS, fcos.SCORE_THRESH_TEST, fcos.SIZES_OF_INTEREST = 1, 0.0, [12, 24, 30, 40]
    # Two channels a group of the baseline's norms: one alone would lose what its pooling of the whole image gives.
    cfg.MODEL.FCOSIS.SEG_CHANNELS = 64
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM, cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 16, 1
    cfg.TEST.DETECTIONS_PER_IMAGE = 5
    return cfg


def see_objects(model: nn.Module) -> None:
    """At 0.01 everywhere, a new coarse segmentation would move lambda by less than float32 resolves in two steps."""
    if isinstance(model, FCOSIS) and isinstance(model.head, GroupingHead):
        assert model.head.coarse_logits.bias is not None
        nn.init.zeros_(model.head.coarse_logits.bias)
        nn.init.normal_(model.segmentation.pred.weight, std=0.1)


# Each takes some two seconds, so that none is left to the slow tests.
@pytest.mark.parametrize("row", own_models(STUDY.values(), quick=STUDY))
def test_fcosis_row_takes_two_steps_and_predicts(row: Row) -> None:
    masks = [ellipse(SIZE, center, radii) for center, radii in OBJECTS]
    batch = [make_input(SIZE, masks, seed=0), make_input(SIZE, masks[:1], seed=1)]
    check_steps_and_inference(narrow_config(row), batch, prepare=see_objects)
