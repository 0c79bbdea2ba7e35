"""COCO's average precision and recall from ground truth and detections, by either engine.

Shape shorthand:
    T: IoU thresholds, R: recall thresholds, K: categories, A: area ranges, M: limits on detections an image.
"""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np

from segzoo.errors import ConfigError
from segzoo.evaluation.ground_truth import GroundTruth

MAX_DETECTIONS = (1, 10, 100)
# Width of a mask's boundary as a share of the image's diagonal (Boundary IoU, section 4).
BOUNDARY_SHARE = 0.02
# Positions of the area ranges all, small, medium, large in the engines' results.
_AREAS = {"": 0, "s": 1, "m": 2, "l": 3}


def coco_metrics(truth: GroundTruth, detections: list[dict], iou_type: str, engine: str) -> dict[str, float]:
    """Average precision and recall in percent.

    Args:
        truth: images, categories and annotations.
        detections: dicts of image_id, category_id, score, and bbox (xywh px; for "bbox") or segmentation (compressed
            RLE; for "segm" and "boundary"), with area in px. May be empty: AP is then 0.
        iou_type: "bbox", "segm", or "boundary", of the engine "faster" alone: the smaller one of mask IoU and boundary
            IoU, the IoU of what lies in both masks at most `BOUNDARY_SHARE` of the image's diagonal from their edges
            (Cheng et al., "Boundary IoU", CVPR 2021). Crowds are matched by their masks alone.
        engine: "faster" or "pycocotools".

    Returns:
        AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm, ARl and "AP-<name>" of each category. NaN only
        where there is no ground truth to find (a class or size that does not occur).

    Raises:
        ConfigError: an unknown engine, or one that cannot measure `iou_type`.
    """
    check_engine(engine, measures_boundaries=iou_type == "boundary")
    evaluation = run_engine(truth, detections, iou_type, engine)
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
    thresholds = evaluation.params.iouThrs
    metrics = {"AP": _percent(precision[:, :, :, 0, -1])}
    for name, threshold in (("AP50", 0.5), ("AP75", 0.75)):
        metrics[name] = _percent(precision[np.isclose(thresholds, threshold), :, :, 0, -1])
    for suffix in "sml":
        metrics[f"AP{suffix}"] = _percent(precision[:, :, :, _AREAS[suffix], -1])
    for position, limit in enumerate(MAX_DETECTIONS):
        metrics[f"AR{limit}"] = _percent(recall[:, :, 0, position])
    for suffix in "sml":
        metrics[f"AR{suffix}"] = _percent(recall[:, :, _AREAS[suffix], -1])
    for position, category_id in enumerate(evaluation.params.catIds):
        metrics[f"AP-{truth.categories[category_id]}"] = _percent(precision[:, :, position, 0, -1])
    return metrics


def check_engine(engine: str, *, measures_boundaries: bool) -> None:
    """Refuses an engine that does not exist or cannot do what is asked of it.

    Raises:
        ConfigError: see above.
    """
    if engine not in ("faster", "pycocotools"):
        raise ConfigError(f"TEST.COCO_ENGINE is {engine!r}", "use 'faster' or 'pycocotools'")
    if measures_boundaries and engine != "faster":
        raise ConfigError(
            f"TEST.BOUNDARY_AP is True, but TEST.COCO_ENGINE is {engine!r}, which knows no boundaries",
            "use TEST.COCO_ENGINE faster, or leave boundary AP out",
        )


def _percent(values: np.ndarray) -> float:
    """Mean of what was measured (the engines mark the rest by -1), as a percentage."""
    measured = values[values > -1]
    return float(np.mean(measured)) * 100.0 if measured.size else float("nan")


def run_engine(truth: GroundTruth, detections: list[dict], iou_type: str, engine: str) -> Any:
    """The engine's evaluation with `eval["precision"]` (T, R, K, A, M), `eval["recall"]` (T, K, A, M) and `params`.

    Arguments as for `coco_metrics`; -1 stands where there is nothing to find.
    """
    quiet: dict[str, Any] = {}
    if engine == "faster":
        from faster_coco_eval import COCO
        from faster_coco_eval import COCOeval_faster as COCOeval

        quiet = {"print_function": lambda *_: None, "boundary_dilation_ratio": BOUNDARY_SHARE}
    else:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    numbered = [{**detection, "id": number, "iscrowd": 0} for number, detection in enumerate(detections, start=1)]
    # pycocotools has no way to be silent.
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = _index(COCO(), truth, [dict(annotation) for annotation in truth.annotations])
        evaluation = COCOeval(ground_truth, _index(COCO(), truth, numbered), iou_type, **quiet)
        evaluation.params.maxDets = list(MAX_DETECTIONS)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def _index(coco: Any, truth: GroundTruth, annotations: list[dict]) -> Any:
    """Fills an engine's COCO object without its `loadRes`, which fails on an empty list and copies the masks."""
    coco.dataset = {
        "images": [dict(image) for image in truth.images.values()],
        "categories": [{"id": number, "name": name} for number, name in truth.categories.items()],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco
