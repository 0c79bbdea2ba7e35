"""Objects left out of training by their size in the original image (INPUT.DROP_SMALL), as PolarMask's program does."""

from __future__ import annotations

import functools
import math
from typing import Any

from detectron2.config import CfgNode
from detectron2.structures import BoxMode
from pycocotools import mask as coco_mask

from segzoo.data.drawing import original_rle
from segzoo.data.tally import Tally
from segzoo.errors import ConfigError

SMALL_AREA = "instances whose area is at most INPUT.DROP_SMALL.AREA"
SMALL_SIDES = "instances whose width and height are both below INPUT.DROP_SMALL.SIDES"
FEW_PIXELS = "instances of fewer than INPUT.DROP_SMALL.PIXELS pixels"
# Sides come as x2 - x1, which in floating point is not quite the width that the json says.
_DECIMALS = 6


class SmallObjectFilter:
    """Splits the objects of an image into those that are trained on and those that count as background.

    A threshold of 0 drops nothing. Sizes are those of the annotation, in pixels of the original image; an area or a
    box that it lacks is the mask's.

    Args:
        cfg: the config (INPUT.DROP_SMALL).

    Raises:
        ConfigError: a threshold is negative or not finite.
    """

    def __init__(self, cfg: CfgNode) -> None:
        thresholds = cfg.INPUT.DROP_SMALL
        for key, value in thresholds.items():
            if not 0 <= value < math.inf:
                raise ConfigError(f"INPUT.DROP_SMALL.{key} is {value}", "use 0 (drops nothing) or a positive number")
        self.area, self.sides, self.pixels = thresholds.AREA, thresholds.SIDES, thresholds.PIXELS

    def __call__(self, annotations: list[dict], dataset_dict: dict[str, Any]) -> tuple[list[dict], dict[str, int]]:
        """Chooses among `annotations` of an image.

        Args:
            annotations: with "segmentation" and, if known, "area" and "bbox" (with "bbox_mode").
            dataset_dict: for "height" and "width" of the original image, and the names in errors.

        Returns:
            those that are kept, in order; {reason: number} of the others, each under the first that holds.

        Raises:
            DatasetError: a segmentation that had to be drawn is malformed.
        """
        kept, dropped = [], Tally()
        for annotation in annotations:
            reason = self._reason(annotation, dataset_dict)
            if reason:
                dropped.add(reason)
            else:
                kept.append(annotation)
        return kept, {reason: dropped.count(reason) for reason in dropped}

    def _reason(self, annotation: dict[str, Any], dataset_dict: dict[str, Any]) -> str:
        """Why an annotation is dropped, or ""."""
        # Drawn once, and only where something has to be counted or derived.
        mask = functools.cache(lambda: original_rle(annotation, dataset_dict))
        if self.area > 0:
            area = annotation.get("area")
            if (coco_mask.area(mask()) if area is None else area) <= self.area:
                return SMALL_AREA
        if self.sides > 0:
            has_box = annotation.get("bbox") is not None
            width, height = _sides(annotation) if has_box else coco_mask.toBbox(mask())[2:].tolist()
            if width < self.sides and height < self.sides:
                return SMALL_SIDES
        return FEW_PIXELS if self.pixels > 0 and coco_mask.area(mask()) < self.pixels else ""


def _sides(annotation: dict[str, Any]) -> tuple[float, float]:
    """(width, height) of an annotation's box, px."""
    box, mode = [float(value) for value in annotation["bbox"]], annotation.get("bbox_mode", BoxMode.XYXY_ABS)
    if mode == BoxMode.XYWH_ABS:
        return box[2], box[3]
    return round(box[2] - box[0], _DECIMALS), round(box[3] - box[1], _DECIMALS)
