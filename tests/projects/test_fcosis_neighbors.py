"""The study of how far a neighbour of the same colour moves a mask."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from fcosis.fcosis import FCOSIS
from projects.FCOSIS.neighbors import Moved, box_gaps, compare_batch, main, summarize
from tests.contract.toys import make_input, toy_config


def test_box_gaps_are_distances_to_the_nearest_box_of_the_group() -> None:
    boxes = torch.tensor([[0.0, 0, 4, 4], [7, 8, 9, 9], [4, 0, 6, 2], [20, 0, 22, 2], [50, 50, 60, 60]])
    gaps = box_gaps(boxes, torch.tensor([0, 0, 1, 1, 2]))
    assert gaps.tolist() == [5.0, 5.0, 14.0, 14.0, math.inf]
    assert box_gaps(boxes[:0], torch.zeros(0, dtype=torch.int64)).shape == (0,)


def test_summary_counts_masks_by_their_gap() -> None:
    rows = summarize([Moved(np.array([0.0, 3.0, 5.0]), np.array([0.9, 1.0, 0.97])), Moved(np.zeros(0), np.zeros(0))])
    assert [row["masks"] for row in rows] == [2, 1, 0, 0]
    assert rows[0] == {
        "from_px": 0.0,
        "to_px": 4.0,
        "masks": 2,
        "mean_iou": pytest.approx(0.95),
        "least_iou": 0.9,
        "stay": 0.5,
    }
    assert rows[3]["to_px"] is None


def wide_awake(model: FCOSIS) -> FCOSIS:
    """A new model whose segmentation depends on what it sees."""
    torch.manual_seed(0)
    with torch.no_grad():
        model.segmentation.pred.weight.normal_(std=1.0)
    return model


def test_only_detections_that_share_a_group_are_compared() -> None:
    torch.manual_seed(1)
    options = ("MODEL.FCOS.SCORE_THRESH_TEST", "0.0", "MODEL.FCOS.NMS_THRESH_TEST", "0.0")
    model = wide_awake(build_model(toy_config("FCOSIS", *options, "TEST.DETECTIONS_PER_IMAGE", "12")).eval())
    inputs = [make_input((128, 160), [], seed) for seed in range(2)]
    moved = compare_batch(model, inputs, min_score=0.0)
    assert len(moved.ious) > 0
    assert ((moved.ious >= 0) & (moved.ious <= 1)).all()
    # Without a neighbour nothing moves.
    one = build_model(toy_config("FCOSIS", *options, "TEST.DETECTIONS_PER_IMAGE", "1")).eval()
    assert len(compare_batch(wide_awake(one), inputs, min_score=0.0).ious) == 0


def test_a_folder_without_a_run_is_refused(tmp_path: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "error:" in capsys.readouterr().err
