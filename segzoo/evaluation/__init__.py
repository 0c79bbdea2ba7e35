"""Measuring predictions: box and mask AP by COCO's rule, or by LVIS's."""

from segzoo.evaluation.coco import CocoEvaluator
from segzoo.evaluation.inference import evaluate

__all__ = ["CocoEvaluator", "evaluate"]
