"""Results on a canvas back to the image that is a window of it (see segzoo.data.centering).

Shape shorthand:
    D: detections, H, W: size of the canvas in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.structures import Boxes, Instances

from segzoo.geometry.crop import crop_masks
from segzoo.geometry.rle import RLEMasks

# Fields of points (..., 2) px, which move with the window.
POINT_FIELDS = ("pred_centers", "pred_contours")
Window = tuple[int, int, int, int]


def restore_originals(batched_inputs: Sequence[dict[str, Any]], outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The outputs of a model at the size of the original images.

    Args:
        batched_inputs: as the model got them; those with "window" (x0, y0, x1, y1) px were shown on a canvas.
        outputs: one {"instances": Instances} an input, at the canvas's size.

    Returns:
        The same for inputs without a window; else detections moved and clipped to it. Those that lie in its
        surroundings alone, where there is no image, are left out.
    """
    return [
        {**output, "instances": cut_window(output["instances"], entry["window"])} if "window" in entry else output
        for entry, output in zip(batched_inputs, outputs, strict=True)
    ]


def cut_window(instances: Instances, window: Window) -> Instances:
    """The part of D detections that lies in a window (x0, y0, x1, y1) px, in its own coordinates.

    pred_boxes, pred_masks (RLEMasks, or bool (D, H, W)) and the fields of POINT_FIELDS move; others stay.
    """
    left, top, right, bottom = window
    size = (bottom - top, right - left)
    boxes = Boxes(instances.pred_boxes.tensor - instances.pred_boxes.tensor.new_tensor([left, top, left, top]))
    boxes.clip(size)
    cut = Instances(size)
    for name, value in instances.get_fields().items():
        if name == "pred_boxes":
            value = boxes
        elif name == "pred_masks":
            masks = isinstance(value, RLEMasks)
            value = crop_masks(value, window) if masks else value[:, top:bottom, left:right]
        elif name in POINT_FIELDS:
            value = value - value.new_tensor([left, top])
        cut.set(name, value)
    return cut[boxes.nonempty()]
