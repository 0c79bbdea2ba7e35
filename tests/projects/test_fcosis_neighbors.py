"""The study of how far a neighbour of the same colour moves a mask."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from fcosis.coloring import color_boxes
from fcosis.fcosis import FCOSIS
from fcosis.objects import Objects
from projects.FCOSIS.neighbors import Moved, alone, box_gaps, compare_batch, main, summarize
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


def median_score(model: FCOSIS, inputs: list[dict]) -> float:
    with torch.no_grad():
        return float(torch.cat([one["instances"].scores for one in model(inputs)]).median())


def test_alone_gives_every_object_a_group_of_its_own() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [20.0, 0, 30, 10], [0.0, 20, 10, 30]])
    zeros = torch.zeros(3, dtype=torch.int64)
    objects = Objects(boxes, boxes, boxes[:, :2], zeros, zeros + 3, zeros, zeros, [2, 1])
    apart = alone(objects)
    assert color_boxes(objects.apart_px, [2, 1]).num_colors == [1, 1]
    assert color_boxes(apart.apart_px, [2, 1]).num_colors == [2, 1]
    assert torch.equal(apart.boxes_px, boxes)


def test_only_detections_that_share_a_group_are_compared() -> None:
    torch.manual_seed(1)
    options = ("MODEL.FCOS.SCORE_THRESH_TEST", "0.0", "MODEL.FCOS.NMS_THRESH_TEST", "0.0")
    model = wide_awake(build_model(toy_config("FCOSIS", *options, "TEST.DETECTIONS_PER_IMAGE", "12")).eval())
    inputs = [make_input((128, 160), [], seed) for seed in range(2)]
    moved = compare_batch(model, inputs, min_score=0.0)
    assert len(moved.ious) > 1
    assert ((moved.ious >= 0) & (moved.ious <= 1)).all()
    # A neighbour moves a mask, if only a little.
    assert moved.ious.min() < 1
    # All detections are in the groups, whichever are compared.
    best = compare_batch(model, inputs, min_score=median_score(model, inputs))
    assert 0 < len(best.ious) < len(moved.ious)
    assert set(zip(best.gaps_px.tolist(), best.ious.tolist(), strict=True)) <= set(
        zip(moved.gaps_px.tolist(), moved.ious.tolist(), strict=True)
    )
    # Without a neighbour nothing moves.
    one = build_model(toy_config("FCOSIS", *options, "TEST.DETECTIONS_PER_IMAGE", "1")).eval()
    assert len(compare_batch(wide_awake(one), inputs, min_score=0.0).ious) == 0


def test_a_folder_without_a_run_is_refused(tmp_path: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "error:" in capsys.readouterr().err
