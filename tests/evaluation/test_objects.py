"""Objects one by one: IoU with the best detection, right and wrong as COCO counts, and the best threshold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from segzoo.evaluation.coco import box_detection, mask_detection
from segzoo.evaluation.curves import CURVE_IOUS, precision_curves
from segzoo.evaluation.ground_truth import GroundTruth, ground_truth_of
from segzoo.evaluation.metrics import coco_metrics
from segzoo.evaluation.objects import FoundObjects, best_threshold, find_objects

SIZE = 40


def mask_of(left: int, top: int, width: int, height: int) -> np.ndarray:
    mask = np.zeros((SIZE, SIZE), dtype=np.uint8, order="F")
    mask[top : top + height, left : left + width] = 1
    return mask


def rle_of(*box: int) -> dict:
    rle = coco_mask.encode(mask_of(*box))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def truth_of(objects: list[tuple[int, int, tuple[int, ...], int]], num_images: int = 2) -> GroundTruth:
    """Objects as (image, category, box xywh, crowd); annotation ids 100, 101, ..."""
    return ground_truth_of(
        {
            "images": [{"id": number, "height": SIZE, "width": SIZE} for number in range(num_images)],
            "categories": [{"id": 3, "name": "leaf"}, {"id": 7, "name": "star"}],
            "annotations": [
                {
                    "id": 100 + place,
                    "image_id": image,
                    "category_id": category,
                    "segmentation": rle_of(*box),
                    "bbox": list(box),
                    "area": box[2] * box[3],
                    "iscrowd": crowd,
                }
                for place, (image, category, box, crowd) in enumerate(objects)
            ],
        },
        "made-up.json",
    )


def detection(image: int, category: int, box: tuple[int, ...], score: float) -> dict[str, Any]:
    return {
        "image_id": image,
        "category_id": category,
        "bbox": [float(value) for value in box],
        "score": score,
        "segmentation": rle_of(*box),
    }


@pytest.mark.parametrize("iou_type", ["segm", "bbox"])
def test_find_objects_takes_the_best_detection_of_the_class_in_the_image(iou_type: str) -> None:
    truth = truth_of([(0, 3, (0, 0, 10, 10), 0), (0, 7, (20, 20, 10, 10), 0), (1, 3, (0, 0, 10, 10), 0)])
    detections = [
        detection(0, 3, (0, 0, 10, 5), 0.9),
        detection(0, 3, (0, 0, 10, 8), 0.2),
        detection(0, 3, (20, 20, 10, 10), 0.8),
        detection(1, 7, (0, 0, 10, 10), 0.7),
    ]
    found = find_objects(truth, detections, iou_type)
    assert found.ious == pytest.approx({1: 0.8, 2: 0.0, 3: 0.0})
    assert found.best == {1: 1}
    assert truth.annotation_ids == {1: 100, 2: 101, 3: 102}


def test_find_objects_gives_each_object_to_the_better_scored_detection_alone() -> None:
    truth = truth_of([(0, 3, (0, 0, 10, 10), 0), (0, 3, (20, 0, 10, 10), 0)])
    detections = [
        detection(0, 3, (0, 0, 10, 9), 0.6),
        detection(0, 3, (0, 0, 10, 10), 0.5),
        detection(0, 3, (20, 0, 10, 4), 0.9),
    ]
    found = find_objects(truth, detections, "segm")
    by_score = dict(zip(found.scores.tolist(), found.is_right.tolist(), strict=True))
    assert by_score == {0.9: False, 0.6: True, 0.5: False}
    assert found.ious == pytest.approx({1: 1.0, 2: 0.4})


def test_find_objects_counts_no_detection_that_lies_in_a_crowd() -> None:
    truth = truth_of([(0, 3, (0, 0, 20, 20), 1), (0, 3, (30, 30, 10, 10), 0)])
    detections = [detection(0, 3, (0, 0, 5, 5), 0.9), detection(0, 3, (30, 0, 5, 5), 0.8)]
    found = find_objects(truth, detections, "segm")
    assert found.scores.tolist() == [0.8]
    assert found.ious == {2: 0.0}


def test_find_objects_without_detections_finds_nothing() -> None:
    truth = truth_of([(0, 3, (0, 0, 20, 20), 0)])
    found = find_objects(truth, [], "segm")
    assert (found.ious, found.best, len(found.scores)) == ({1: 0.0}, {}, 0)
    assert best_threshold(found) == (0.0, 0.0)


def test_find_objects_is_right_as_often_as_coco_recalls() -> None:
    generator = np.random.default_rng(4)
    boxes = [tuple(int(value) for value in generator.integers(1, 20, 4)) for _ in range(60)]
    truth = truth_of([(place % 4, 3 if place % 3 else 7, box, int(place == 5)) for place, box in enumerate(boxes)], 4)
    detections = [
        detection(place % 4, 3 if place % 3 else 7, (box[0] + place % 3, box[1], box[2], box[3]), 0.01 * place + 0.1)
        for place, box in enumerate(boxes)
    ]
    found = find_objects(truth, detections, "segm")
    metrics = coco_metrics(truth, [mask_detection(one) for one in detections], "segm", "pycocotools")
    curves = precision_curves(truth, [mask_detection(one) for one in detections], "segm", "faster")
    assert set(curves) == set(CURVE_IOUS)
    for iou, name in ((0.5, "AP50"), (0.75, "AP75"), (0.0, "AP")):
        recall, precision = curves[iou]
        assert recall.shape == precision.shape == (101,)
        assert 100 * precision.mean() == pytest.approx(metrics[name])
    # Recall at IoU 0.5 of each class, from COCO's program, must be that of what is called right here.
    boxes_of = coco_metrics(truth, [box_detection(one) for one in detections], "bbox", "pycocotools")
    assert boxes_of["AP50"] == pytest.approx(metrics["AP50"])
    assert 20 < found.is_right.sum() <= len(found.ious) == 59


def test_precision_curves_are_empty_where_nothing_is_to_be_found() -> None:
    truth = truth_of([(0, 3, (0, 0, 20, 20), 1)])
    assert precision_curves(truth, [mask_detection(detection(0, 3, (0, 0, 5, 5), 0.9))], "segm", "faster") == {}


def f1_oracle(scores: list[float], is_right: list[bool], num_objects: int) -> tuple[float, float]:
    """Every score tried as a threshold, the highest of equally good ones."""
    best = (0.0, 0.0)
    for threshold in sorted(set(scores), reverse=True):
        shown = [right for score, right in zip(scores, is_right, strict=True) if score >= threshold]
        f1 = 2 * sum(shown) / (len(shown) + num_objects)
        if f1 > best[1]:
            best = (threshold, f1)
    return best


@pytest.mark.parametrize("seed", range(20))
def test_best_threshold_is_the_best_of_all_scores(seed: int) -> None:
    generator = np.random.default_rng(seed)
    scores = generator.integers(1, 9, 12) / 8
    is_right = generator.random(12) < scores * 0.7
    found = FoundObjects(dict.fromkeys(range(10), 0.0), {}, scores, is_right)
    assert best_threshold(found) == pytest.approx(f1_oracle(scores.tolist(), is_right.tolist(), 10))
