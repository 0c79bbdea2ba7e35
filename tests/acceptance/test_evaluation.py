"""Cases 47 and 51: what is measured of nothing, and of the ground truth itself, with each method's config."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from segzoo.data.registration import load_dataset
from segzoo.evaluation import evaluate
from segzoo.geometry.polygons import segmentation_to_rle
from segzoo.geometry.rle import RLEMasks
from segzoo.modeling.postprocess import build_instances
from tests.acceptance.runs import plain_config
from tests.contract.toys import FIND_NONE, build_toy
from tests.data.conftest import CocoFolder

Build = Callable[..., nn.Module]


@pytest.fixture
def three_classes(filled: CocoFolder) -> CocoFolder:
    """Polygons of two classes in four images; the third class has no object."""
    filled.content["categories"].append({"id": 3, "name": "eel"})
    triangle = [[3.0, 25.0, 30.0, 27.0, 18.0, 12.0]]
    filled.add_annotation(image_id=2, category_id=2, segmentation=triangle, bbox=[3, 12, 27, 15], area=190.0)
    return filled


class GroundTruth(nn.Module):
    """Finds in an image of "test_set" what its json says."""

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        records = {record["image_id"]: record for record in load_dataset("test_set")}
        return [{"instances": self._found(records[entry["image_id"]])} for entry in batched_inputs]

    def _found(self, record: dict) -> object:
        size, entries = (record["height"], record["width"]), record["annotations"]
        masks = RLEMasks([segmentation_to_rle(entry["segmentation"], *size) for entry in entries], size)
        boxes = torch.tensor([entry["bbox"] for entry in entries])
        classes = torch.tensor([entry["category_id"] for entry in entries])
        return build_instances(size, boxes, torch.ones(len(entries)), classes, masks)


def test_case_47_no_detections_have_an_ap_of_zero_for_boxes_and_masks_and_warn(
    method: str, three_classes: CocoFolder, caplog: pytest.LogCaptureFixture
) -> None:
    three_classes.register()
    cfg = plain_config(method, *FIND_NONE, "INPUT.MIN_SIZE_TEST", 32)
    with caplog.at_level(logging.WARNING):
        results = evaluate(cfg, build_toy(method, *FIND_NONE, "MODEL.TIMM.NAME", "test_efficientnet"), "test_set")
    assert "no detections on test_set: every AP is 0" in caplog.text
    for task in ("bbox", "segm"):
        assert (results[task]["AP"], results[task]["AP-cat"], results[task]["AR100"]) == (0.0, 0.0, 0.0)
        assert math.isnan(results[task]["AP-eel"])


def test_case_51_the_ground_truth_as_predictions_is_100_in_both_engines(
    method: str, three_classes: CocoFolder, tmp_path: Path
) -> None:
    three_classes.register()
    by_engine = []
    for engine, has_boundaries in (("faster", True), ("pycocotools", False)):
        options = ["TEST.COCO_ENGINE", engine, "TEST.BOUNDARY_AP", has_boundaries]
        folder = tmp_path / engine
        by_engine.append(evaluate(plain_config(method, *options), GroundTruth(), "test_set", str(folder)))
        assert json.loads((folder / "metrics.json").read_text())["results"]["segm"]["AP-eel"] is None
    faster, official = by_engine
    assert set(faster) == {"bbox", "segm", "boundary"}
    for task, metrics in faster.items():
        for key in ("AP", "AP50", "AP75", "AP-cat", "AP-dog", "AR100"):
            assert metrics[key] == pytest.approx(100.0, abs=1e-9), (task, key)
        assert math.isnan(metrics["AP-eel"])
    for task, metrics in official.items():
        assert list(metrics) == list(faster[task])
        np.testing.assert_allclose(list(metrics.values()), list(faster[task].values()), rtol=0, atol=1e-9)
