"""Precision over recall, the mean over classes."""

from __future__ import annotations

import numpy as np

from segzoo.evaluation.ground_truth import GroundTruth
from segzoo.evaluation.metrics import run_engine

# IoU thresholds that have a curve of their own; 0 is the mean of all ten.
CURVE_IOUS = (0.5, 0.75, 0.0)


def precision_curves(
    truth: GroundTruth, detections: list[dict], iou_type: str, engine: str
) -> dict[float, tuple[np.ndarray, np.ndarray]]:
    """COCO's interpolated precision at 101 recalls, objects of all sizes, 100 detections an image.

    Args:
        truth, detections, iou_type, engine: as for `segzoo.evaluation.metrics.coco_metrics`.

    Returns:
        IoU threshold of CURVE_IOUS -> (recall, precision), (101,) in 0..1 each; the mean of the precision is AP at that
        threshold. Empty where the ground truth has no object.
    """
    evaluation = run_engine(truth, detections, iou_type, engine)
    # (T, R, K): IoU thresholds, recalls, classes; -1 in classes without objects.
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    has_objects = (precision > -1).all(axis=(0, 1))
    if not has_objects.any():
        return {}
    mean = precision[:, :, has_objects].mean(axis=2)
    recall, thresholds = np.asarray(evaluation.params.recThrs), np.asarray(evaluation.params.iouThrs)
    return {iou: (recall, mean[np.isclose(thresholds, iou)][0] if iou else mean.mean(axis=0)) for iou in CURVE_IOUS}
