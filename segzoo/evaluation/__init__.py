"""Measuring predictions: COCO box and mask AP."""

from segzoo.evaluation.coco import CocoEvaluator
from segzoo.evaluation.inference import evaluate

__all__ = ["CocoEvaluator", "evaluate"]
