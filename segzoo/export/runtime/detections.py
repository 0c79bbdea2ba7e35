"""What an exported model gives for an image.

Shape shorthand: D detections, H, W size of the image in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from segzoo.geometry.edges import crop_rle


@dataclass
class Detections:
    """Detections of one image at its own size, best first.

    Attributes:
        boxes: (D, 4) float32 xyxy px, within the image.
        scores: (D,) float32; PolarMask's reach 1.5.
        classes: (D,) int64 from 0.
        masks: D compressed RLEs {"size": [H, W], "counts": bytes}, or None for models of boxes only.
        image_size: (H, W).
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    masks: list[dict] | None
    image_size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.scores)

    def select(self, index: np.ndarray) -> Detections:
        """The detections of a bool or integer index."""
        numbers = np.arange(len(self))[index]
        masks = None if self.masks is None else [self.masks[number] for number in numbers]
        return Detections(self.boxes[numbers], self.scores[numbers], self.classes[numbers], masks, self.image_size)

    def bool_masks(self) -> np.ndarray:
        """(D, H, W) bool; empty for models of boxes only."""
        masks = np.zeros((len(self.masks or []), *self.image_size), bool)
        for mask, rle in zip(masks, self.masks or []):
            mask[...] = coco_mask.decode(rle)
        return masks

    def to_results(self, image_id: int = 0, class_names: Sequence[str] = ()) -> list[dict[str, Any]]:
        """COCO results as json has them; the category is the class index + 1, beside its name where there is one."""
        results = []
        for number, (box, score, index) in enumerate(zip(self.boxes.astype(float), self.scores, self.classes.tolist())):
            result: dict[str, Any] = {
                "image_id": image_id,
                "category_id": index + 1,
                "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                "score": float(score),
            }
            if index < len(class_names):
                result["category_name"] = class_names[index]
            if self.masks is not None:
                rle = self.masks[number]
                result["segmentation"] = {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}
            results.append(result)
        return results


def finish(
    boxes: np.ndarray,
    scores: np.ndarray,
    classes: np.ndarray,
    masks: list[dict] | None,
    image_size: tuple[int, int],
) -> Detections:
    """Detections whose boxes are clipped to the image; rows with a box or score that is not finite are left out."""
    is_finite = np.isfinite(boxes).all(axis=1) & np.isfinite(scores)
    found = Detections(boxes.astype(np.float32), scores.astype(np.float32), classes.astype(np.int64), masks, image_size)
    found = found.select(is_finite)
    found.boxes[:, 0::2] = found.boxes[:, 0::2].clip(0, image_size[1])
    found.boxes[:, 1::2] = found.boxes[:, 1::2].clip(0, image_size[0])
    return found


def cut_window(found: Detections, window: tuple[int, int, int, int]) -> Detections:
    """What of detections lies in a window (x0, y0, x1, y1) px, in its own coordinates; those beside it are left out."""
    left, top, right, bottom = window
    size = (bottom - top, right - left)
    boxes = found.boxes - np.array([left, top, left, top], np.float32)
    masks = None if found.masks is None else [crop_rle(rle, window) for rle in found.masks]
    moved = finish(boxes, found.scores, found.classes, masks, size)
    is_seen: np.ndarray = np.all(moved.boxes[:, 2:] > moved.boxes[:, :2], axis=1)
    return moved.select(is_seen)
