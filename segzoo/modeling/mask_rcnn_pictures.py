"""Pictures of what Mask R-CNN's masks come from: proposals, and the masks of the best boxes before they are pasted.

Shape shorthand: D detections, H, W size of the network's input in pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch

from segzoo.visualization import draw_boxes, draw_heat

if TYPE_CHECKING:
    from segzoo.modeling.mask_rcnn import MaskRCNN

# Proposals that are shown, best first.
MAX_PROPOSALS = 20
# Detections that are shown, if they score above MIN_SCORE; the best one whatever it scores.
MAX_SHOWN = 8
MIN_SCORE = 0.3


@torch.no_grad()
def map_pictures(model: MaskRCNN, inputs: dict[str, Any]) -> dict[str, np.ndarray]:
    """The best detections of one image in the network's input, and what they come from.

    Args:
        model: in evaluation mode.
        inputs: "image" (3, H, W) in the model's order of channels, as for a forward.

    Returns:
        (H, W, 3) uint8 BGR each, by title: the best proposals; the masks of the best detections as they were predicted,
        each in its box. Empty when nothing is detected; without masks of a model that makes none.
    """
    images = model.preprocess_image([inputs])
    features = model.backbone(images.tensor)
    (proposals,), _ = model.proposal_generator(images, features, None)
    (found,), _ = model.roi_heads(images, features, [proposals], None)
    if not len(found):
        return {}
    image = model.preprocessor.to_bgr(inputs["image"])
    pictures = {"best proposals": draw_boxes(image, proposals.proposal_boxes.tensor[:MAX_PROPOSALS].cpu().numpy())}
    if found.has("pred_masks"):
        order = found.scores.argsort(descending=True)[:MAX_SHOWN]
        shown = found[order[: max(1, int((found.scores[order] > MIN_SCORE).sum()))]]
        masks, boxes = shown.pred_masks[:, 0].float().cpu().numpy(), shown.pred_boxes.tensor.cpu().numpy()
        pictures["masks in their boxes"] = draw_heat(image, _place(masks, boxes, found.image_size))
    return pictures


def _place(masks: np.ndarray, boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W) largest of the masks at each pixel, every cell of a mask a rectangle.

    Args:
        masks: (D, 28, 28) in 0..1.
        boxes: (D, 4) xyxy px.
        size: (H, W).
    """
    largest = np.zeros(size, dtype=np.float32)
    for mask, box in zip(masks, boxes, strict=True):
        left, top = np.floor(box[:2]).clip(min=0).astype(int)
        right, bottom = np.ceil(box[2:]).clip(max=[size[1], size[0]]).astype(int)
        if right > left and bottom > top:
            drawn = cv2.resize(mask, (int(right - left), int(bottom - top)), interpolation=cv2.INTER_NEAREST)
            window = largest[top:bottom, left:right]
            np.maximum(window, drawn, out=window)
    return largest
