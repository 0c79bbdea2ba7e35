"""Pictures of what PolarMask's masks come from: where it looks for objects, and the rays of the best of them.

Shape shorthand: D detections, n rays, K classes, H, W size of the network's input in pixels, Hi, Wi size of a level.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from segzoo.modeling.fcos.locations import compute_locations, map_sizes
from segzoo.visualization import draw_heat, draw_rays

if TYPE_CHECKING:
    from polarmask.polarmask import PolarMask

# Detections that are shown, if they score above MIN_SCORE; the best one whatever it scores.
MAX_SHOWN = 8
MIN_SCORE = 0.3


@torch.no_grad()
def map_pictures(model: PolarMask, inputs: dict[str, Any]) -> dict[str, np.ndarray]:
    """The best detections of one image in the network's input, and what they come from.

    Args:
        model: in evaluation mode.
        inputs: "image" (3, H, W) in the model's order of channels, and perhaps "pad_to", as for a forward.

    Returns:
        (H, W, 3) uint8 BGR each, by title: the class probability and its product with the centerness, the largest of
        all classes and levels at every pixel; centres, rays and contours. Empty when nothing is detected.
    """
    images = model.preprocessor([inputs], model.device)
    size = images.image_sizes[0]
    maps = model.dense_outputs(images.tensor)
    locations = compute_locations(map_sizes(maps.cls_logits), model.strides, model.device)
    (output,) = model.inference(maps, locations, [size], [{}])
    found = output["instances"].to("cpu")
    if not len(found):
        return {}
    shown = found[: max(1, int((found.scores[:MAX_SHOWN] > MIN_SCORE).sum()))]
    image = model.preprocessor.to_bgr(inputs["image"])
    probabilities = [logits[0].float().sigmoid().amax(dim=0) for logits in maps.cls_logits]
    products = [
        own * centerness[0, 0].float().sigmoid()
        for own, centerness in zip(probabilities, maps.centerness_logits, strict=True)
    ]
    return {
        "class probability": draw_heat(image, _over_levels(probabilities, model.strides, size)),
        "x centerness": draw_heat(image, _over_levels(products, model.strides, size)),
        "centres and rays": draw_rays(image, shown.pred_centers.numpy(), shown.pred_contours.numpy()),
    }


def _over_levels(maps: list[Tensor], strides: list[int], size: tuple[int, int]) -> np.ndarray:
    """(H, W) largest value of the levels' cells over each pixel.

    Args:
        maps: (Hi, Wi) of every level.
        strides: px of a cell.
        size: (H, W), without padding.
    """
    largest = np.zeros(size, dtype=np.float32)
    for values, stride in zip(maps, strides, strict=True):
        spread = values.cpu().numpy().repeat(stride, axis=0).repeat(stride, axis=1)
        np.maximum(largest, spread[: size[0], : size[1]], out=largest)
    return largest
