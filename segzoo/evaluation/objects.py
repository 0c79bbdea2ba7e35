"""Object by object: how well each is found, and the score above which detections are worth showing.

Shape shorthand: D detections and M objects of one class in one image.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from segzoo.evaluation.ground_truth import GroundTruth
from segzoo.evaluation.metrics import MAX_DETECTIONS

# A detection is right when it has at least this IoU with an object of its class that no better one has taken.
MATCH_IOU = 0.5


@dataclass(frozen=True)
class FoundObjects:
    """What the detections of a model are worth, object by object.

    ious: annotation's number in the ground truth -> IoU with the best detection of its class, 0 without any. best:
    -> place of that detection in the list that was given. scores, is_right: of all detections outside of crowds.
    """

    ious: dict[int, float]
    best: dict[int, int]
    scores: np.ndarray
    is_right: np.ndarray


def find_objects(truth: GroundTruth, detections: Sequence[Mapping[str, Any]], iou_type: str) -> FoundObjects:
    """Compares the detections of each image, as COCO does at most 100 of a class, with its objects of that class.

    An object's IoU is that with the detection that fits it best, whatever its score and whether it fits another
    object, too. Right or wrong is decided as COCO does at `MATCH_IOU`: by falling score, each object once. Crowds are
    no objects, and detections that lie in them are neither right nor wrong.

    Args:
        truth: the ground truth.
        detections: COCO results with ids as whole numbers.
        iou_type: "segm" or "bbox".
    """
    key = "segmentation" if iou_type == "segm" else "bbox"
    objects: dict[tuple[int, int], list[dict]] = defaultdict(list)
    for annotation in truth.annotations:
        objects[annotation["image_id"], annotation["category_id"]].append(annotation)
    found: dict[tuple[int, int], list[int]] = defaultdict(list)
    for place in sorted(range(len(detections)), key=lambda place: -detections[place]["score"]):
        found[detections[place]["image_id"], detections[place]["category_id"]].append(place)
    ious: dict[int, float] = {}
    best: dict[int, int] = {}
    scores: list[float] = []
    is_right: list[bool] = []
    for group in sorted(objects.keys() | found.keys()):
        places, annotations = found[group][: MAX_DETECTIONS[-1]], objects[group]
        is_crowd = np.array([bool(annotation["iscrowd"]) for annotation in annotations], dtype=bool)
        overlaps = _overlaps([detections[place][key] for place in places], [one[key] for one in annotations], is_crowd)
        for column in np.flatnonzero(~is_crowd):
            number = annotations[column]["id"]
            row = int(overlaps[:, column].argmax()) if places else -1
            ious[number] = float(overlaps[row, column]) if places else 0.0
            if ious[number] > 0:
                best[number] = places[row]
        right, is_counted = _match(overlaps, is_crowd)
        scores += [detections[place]["score"] for place, counts in zip(places, is_counted) if counts]
        is_right += right[is_counted].tolist()
    return FoundObjects(ious, best, np.array(scores, dtype=np.float64), np.array(is_right, dtype=bool))


def best_threshold(found: FoundObjects) -> tuple[float, float]:
    """The score whose detections and those above have the best F1 (harmonic mean of precision and recall).

    Returns:
        the score and its F1 (0..1); (0, 0) where nothing is right.
    """
    order = np.argsort(-found.scores, kind="stable")
    num_right = np.cumsum(found.is_right[order])
    if not len(order) or not num_right[-1]:
        return 0.0, 0.0
    f1 = 2 * num_right / (np.arange(1, len(order) + 1) + len(found.ious))
    # Equal scores cannot be told apart: only the last of them is a threshold.
    ordered = found.scores[order]
    f1[:-1][ordered[:-1] == ordered[1:]] = -1
    place = int(f1.argmax())
    return float(ordered[place]), float(f1[place])


def _overlaps(found: list, objects: list, is_crowd: np.ndarray) -> np.ndarray:
    """(D, M) IoU of masks or of boxes xywh; with a crowd, the share of the detection that lies in it."""
    if not found or not objects:
        return np.zeros((len(found), len(objects)))
    is_box = not isinstance(found[0], Mapping)
    both = [np.array(one, dtype=np.float64) if is_box else one for one in (found, objects)]
    return np.asarray(coco_mask.iou(*both, is_crowd.astype(np.uint8).tolist()))


def _match(overlaps: np.ndarray, is_crowd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(D,) bool each: which detections, best score first, are right, and which of them count at all."""
    right, is_counted = np.zeros(len(overlaps), dtype=bool), np.ones(len(overlaps), dtype=bool)
    is_free = ~is_crowd
    for row, own in enumerate(overlaps):
        candidates = np.where(is_free, own, -1.0)
        column = int(candidates.argmax()) if len(candidates) else -1
        if column >= 0 and candidates[column] >= MATCH_IOU:
            right[row], is_free[column] = True, False
        elif len(own) and (own[is_crowd] >= MATCH_IOU).any():
            is_counted[row] = False
    return right, is_counted
