"""Training and evaluation read one json alike: crowds, image sizes."""

from __future__ import annotations

from typing import Any

import pytest
from detectron2.config import CfgNode

from segzoo.data.audit import audit_dataset
from segzoo.data.coco_json import read_coco_json
from segzoo.evaluation import CocoEvaluator
from segzoo.evaluation.ground_truth import load_ground_truth

CROWD_SPELLINGS = [("0", 0), ("1", 1), (1.0, 1), (0.0, 0), (True, 1), (False, 0), (None, 0), (2, 1)]


@pytest.mark.parametrize(("written", "expected"), CROWD_SPELLINGS)
def test_iscrowd_means_the_same_to_training_and_evaluation(written: Any, expected: int, folder: Any) -> None:
    folder.add_image()
    folder.add_annotation(iscrowd=written)
    json_file = folder.write()
    (record,) = read_coco_json(json_file, str(folder.root)).dicts
    assert record["annotations"][0]["iscrowd"] == expected
    assert load_ground_truth(json_file).annotations[0]["iscrowd"] == expected


def test_json_without_image_sizes_that_the_audit_accepts_is_evaluated(folder: Any, cfg: CfgNode) -> None:
    for size in ((40, 30), (50, 20)):
        entry = folder.add_image(*size)
        del entry["width"]
        folder.add_annotation(image_id=entry["id"])
    folder.content["images"][1]["width"] = None
    name = folder.register()
    audit_dataset(name, cfg)
    truth = load_ground_truth(folder.write(), str(folder.root))
    assert [(image["height"], image["width"]) for image in truth.images.values()] == [(30, 40), (20, 50)]
    assert CocoEvaluator(name, cfg).evaluate()["bbox"]["AP"] == 0.0
