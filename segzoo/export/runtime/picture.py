"""Detections drawn on their image, with OpenCV alone.

Shape shorthand: H, W size of the image in pixels.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from segzoo.export.runtime.detections import Detections

# Share of a mask's colour, and the turn of the colour circle from one object to the next (the golden ratio's).
OPACITY = 0.5
HUE_STEP = 0.618034
FONT, FONT_SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.5


def draw(image: np.ndarray, found: Detections, class_names: Sequence[str] = (), threshold: float = 0.3) -> np.ndarray:
    """(H, W, 3) uint8 BGR: masks, boxes, and class and score of the detections that reach the threshold.

    Args:
        image: (H, W, 3) uint8 BGR.
        found: of this image.
        class_names: by class index; "class k" beyond.
        threshold: of the score.
    """
    picture = np.ascontiguousarray(image).copy()
    shown = found.select(found.scores >= threshold)
    colors = [_color(number) for number in range(len(shown))]
    for rle, color in zip(shown.masks or [], colors):
        is_mask = coco_mask.decode(rle).astype(bool)
        picture[is_mask] = (picture[is_mask] * (1 - OPACITY) + np.array(color) * OPACITY).astype(np.uint8)
    for box, score, index, color in zip(shown.boxes, shown.scores, shown.classes.tolist(), colors):
        left, top, right, bottom = (round(float(side)) for side in box)
        cv2.rectangle(picture, (left, top), (right - 1, bottom - 1), color, 1)
        name = class_names[index] if index < len(class_names) else f"class {index}"
        cv2.putText(
            picture, f"{name} {score:.2f}", (left + 2, max(top - 3, 12)), FONT, FONT_SCALE, color, 1, cv2.LINE_AA
        )
    return picture


def _color(number: int) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(number * HUE_STEP % 1.0, 0.8, 1.0)
    return int(255 * blue), int(255 * green), int(255 * red)
