"""Detections or ground truth drawn on their image.

Shape shorthand: D instances of an image of (H, W) pixels; boxes xyxy px.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from detectron2.structures import Instances

from segzoo.visualization.canvas import (
    MAX_COORDINATE_PX,
    Color,
    check_image,
    draw_text_inplace,
    instance_color,
    line_thickness,
    to_ascii,
)

MASK_OPACITY = 0.45


def draw_instances(
    image_bgr: np.ndarray, instances: Instances, class_names: Sequence[str] = (), threshold: float = 0.0
) -> np.ndarray:
    """Draws masks with their contours, boxes and labels.

    Args:
        image_bgr: (H, W, 3) uint8.
        instances: with pred_boxes, pred_classes, scores and, if the method has them, pred_masks (RLEMasks, BitMasks
            or (D, H, W) bool); or a training sample with gt_boxes, gt_classes, gt_masks. Any device.
        class_names: by class index; a class without a name is written "class 7".
        threshold: instances with a lower score are left out (scores may exceed 1: PolarMask's reach 1.5).

    Returns:
        (H, W, 3) uint8, a new image; a copy of the input when there is nothing to draw.

    Raises:
        ValueError: the image is not (H, W, 3) uint8, or the instances are of another image size.
    """
    canvas = check_image(image_bgr)
    if tuple(instances.image_size) != canvas.shape[:2]:
        raise ValueError(f"instances of an image of {tuple(instances.image_size)} drawn on one of {canvas.shape[:2]}")
    fields = instances.get_fields()
    prefix = "gt" if "gt_classes" in fields else "pred"
    boxes = _to_numpy(fields[f"{prefix}_boxes"]).reshape(-1, 4)
    classes = _to_numpy(fields[f"{prefix}_classes"])
    scores = _to_numpy(fields["scores"]) if "scores" in fields else None
    masks = fields.get(f"{prefix}_masks")
    is_kept = np.isfinite(boxes).all(axis=1) & (True if scores is None else scores >= threshold)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    # Large ones first, so that small ones stay visible; labels last, so that no mask covers one.
    order = [int(index) for index in np.argsort(-areas, kind="stable") if is_kept[index]]
    for index in order:
        if masks is not None:
            _draw_mask_inplace(canvas, _to_numpy(masks[index : index + 1])[0].astype(bool), instance_color(index))
    for index in order:
        _draw_box_inplace(canvas, boxes[index], instance_color(index))
    for index in order:
        label = _label(int(classes[index]), class_names, None if scores is None else float(scores[index]))
        draw_text_inplace(canvas, label, boxes[index, 0], boxes[index, 1], instance_color(index))
    return canvas


def draw_mask(image: np.ndarray, mask: np.ndarray, color: Color = (0, 0, 255)) -> np.ndarray:
    """Draws one (H, W) bool mask, tinted and outlined; returns a new image."""
    canvas = check_image(image)
    _draw_mask_inplace(canvas, mask, color)
    return canvas


def draw_boxes(image: np.ndarray, boxes: np.ndarray, color: Color | None = None) -> np.ndarray:
    """Draws (D, 4) boxes xyxy px; without a colour each has its own. Returns a new image."""
    canvas = check_image(image)
    for index, box in enumerate(np.asarray(boxes, dtype=np.float64).reshape(-1, 4)):
        _draw_box_inplace(canvas, box, instance_color(index) if color is None else color)
    return canvas


def _to_numpy(values: Any) -> np.ndarray:
    """An array from a tensor of any device, Boxes, BitMasks, RLEMasks or an array."""
    values = getattr(values, "tensor", values)
    if hasattr(values, "detach"):
        values = values.detach().cpu()
    return np.asarray(values)


def _label(class_index: int, class_names: Sequence[str], score: float | None) -> str:
    fallback = f"class {class_index}"
    name = to_ascii(class_names[class_index], fallback) if 0 <= class_index < len(class_names) else fallback
    return name if score is None else f"{name} {score:.2f}"


def _draw_mask_inplace(canvas: np.ndarray, mask: np.ndarray, color: Color) -> None:
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0:
        return
    window = (slice(rows[0], rows[-1] + 1), slice(cols[0], cols[-1] + 1))
    inside = np.ascontiguousarray(mask[window])
    region = canvas[window]
    tinted = region[inside] * (1.0 - MASK_OPACITY) + np.array(color) * MASK_OPACITY
    region[inside] = np.round(tinted).astype(np.uint8)
    contours, _ = cv2.findContours(inside.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    # Drawn on a copy: OpenCV refuses a view of the canvas that is not contiguous.
    outlined = np.ascontiguousarray(region)
    cv2.drawContours(outlined, contours, -1, color, line_thickness(canvas))
    canvas[window] = outlined


def _draw_box_inplace(canvas: np.ndarray, box: np.ndarray, color: Color) -> None:
    # The outermost pixels inside the box: its right and bottom sides are the borders after them.
    low = np.clip(np.floor(box[:2]), -MAX_COORDINATE_PX, MAX_COORDINATE_PX).astype(int)
    high = np.clip(np.ceil(box[2:]) - 1, low, MAX_COORDINATE_PX).astype(int)
    cv2.rectangle(canvas, low.tolist(), high.tolist(), color, line_thickness(canvas))
