"""The one way detections leave a model.

Shape shorthand:
    D: detections, H, W: size of the output image in pixels.
"""

from __future__ import annotations

import logging

import torch
from detectron2.structures import Boxes, Instances

from segzoo.geometry.rle import RLEMasks

logger = logging.getLogger(__name__)


def build_instances(
    image_size: tuple[int, int],
    boxes: torch.Tensor,
    scores: torch.Tensor,
    classes: torch.Tensor,
    masks: RLEMasks | None,
    **fields: torch.Tensor,
) -> Instances:
    """Detections of one image with all their fields, also when there is none.

    Args:
        image_size: (H, W) of the output, the size that boxes and masks are given at.
        boxes: (D, 4) xyxy px; clipped to the image here.
        scores: (D,), any range (PolarMask's reach 1.5).
        classes: (D,) class indices.
        masks: D masks, or None for methods of boxes only.
        fields: what else a method says of its detections, (D, ...) each, under the name of the Instances' field.

    Returns:
        Instances with pred_boxes, scores, pred_classes and, when given, pred_masks. Rows whose box or score is not
        finite are dropped, with a warning that counts them.

    Raises:
        ValueError: the fields disagree in length, or the masks' size is not `image_size`.
    """
    lengths = {len(boxes), len(scores), len(classes), *map(len, fields.values())}
    lengths |= set() if masks is None else {len(masks)}
    if len(lengths) != 1:
        raise ValueError(f"boxes, scores, classes and masks disagree in length: {sorted(lengths)}")
    if masks is not None and masks.image_size != tuple(image_size):
        raise ValueError(f"masks of size {masks.image_size} for an output of {tuple(image_size)}")
    is_finite = torch.isfinite(boxes).all(dim=1) & torch.isfinite(scores)
    num_dropped = int((~is_finite).sum())
    if num_dropped:
        logger.warning("dropped %d of %d detections whose box or score is not finite", num_dropped, len(boxes))
        boxes, scores, classes = boxes[is_finite], scores[is_finite], classes[is_finite]
        masks = None if masks is None else masks[is_finite]
        fields = {name: values[is_finite] for name, values in fields.items()}
    instances = Instances((int(image_size[0]), int(image_size[1])))
    instances.pred_boxes = Boxes(boxes)
    instances.pred_boxes.clip(instances.image_size)
    instances.scores = scores
    instances.pred_classes = classes.to(torch.int64)
    if masks is not None:
        instances.pred_masks = masks
    for name, values in fields.items():
        instances.set(name, values)
    return instances
