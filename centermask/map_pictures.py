"""Pictures of the maps behind the best detections of one image, for CenterMask on CenterNet and on FCOS.

Beside what masks are made of (see pictures.py) they show where the detections come from: the peaks of CenterNet's
heatmap, and FCOS's locations.

Shape shorthand: D detections, K classes, H, W size of the network's input in pixels, Hi, Wi size of a level.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from centermask.decode import Detections as CenterDetections
from centermask.decode import peak_scores
from centermask.fcos_head import FCOSMaskMaps
from centermask.maps import MAP_STRIDE, saliency_channels_of
from centermask.pictures import YELLOW, MaskParts, part_pictures
from segzoo.modeling.fcos.decode import Detections as FCOSDetections
from segzoo.modeling.fcos.locations import compute_locations, map_sizes
from segzoo.visualization import draw_boxes, draw_heat, draw_points

if TYPE_CHECKING:
    from centermask.centermask import CenterMask
    from centermask.centermask_fcos import CenterMaskFCOS

# Detections that are shown, if they score above MIN_SCORE; the best one whatever it scores.
MAX_SHOWN = 8
MIN_SCORE = 0.3

Found = TypeVar("Found", CenterDetections, FCOSDetections)


@torch.no_grad()
def center_pictures(model: CenterMask, inputs: dict[str, Any]) -> dict[str, np.ndarray]:
    """The best detections of one image in the network's input: their peaks, shapes, saliency, product, and masks.

    Args:
        model: in evaluation mode.
        inputs: "image" (3, H, W) in the model's order of channels, and perhaps "pad_to", as for a forward.

    Returns:
        (H, W, 3) uint8 BGR each, by title; empty when nothing is detected. Parts that the model lacks are left out.
    """
    images = model.preprocessor([inputs], model.device)
    size = images.image_sizes[0]
    maps = model.dense_outputs(images.tensor)[-1]
    shown = _best(model.detect(maps, [size])[0])
    if not len(shown.scores):
        return {}
    image = model.preprocessor.to_bgr(inputs["image"])
    heat = peak_scores(maps.heatmap, [size])[0].amax(dim=0)
    centers = (shown.boxes_px[:, :2] + shown.boxes_px[:, 2:]) / 2
    parts = MaskParts(
        model.shapes_of(maps, shown, 0),
        None if maps.saliency is None else maps.saliency[0],
        shown.boxes_px,
        saliency_channels_of(shown.classes, model.objective.saliency_channels),
    )
    return {
        "heatmap and its peaks": _draw_scores(image, heat, MAP_STRIDE, shown.boxes_px, centers),
        **part_pictures(image, parts, threshold=model.decode_rule.mask_threshold, budget_mb=model.mask_budget_mb),
    }


@torch.no_grad()
def fcos_pictures(model: CenterMaskFCOS, inputs: dict[str, Any]) -> dict[str, np.ndarray]:
    """As `center_pictures`; instead of peaks the scores of all locations, and those that the detections come from."""
    images = model.preprocessor([inputs], model.device)
    size = images.image_sizes[0]
    maps = model.dense_outputs(images.tensor)
    locations = compute_locations(map_sizes(maps.cls_logits), model.strides, model.device)
    shown = _best(model.detect(maps, locations, [size])[0])
    if not len(shown.scores):
        return {}
    image = model.preprocessor.to_bgr(inputs["image"])
    points = locations.points_px[shown.locations]
    parts = MaskParts(
        model.shapes_of(maps, locations, shown, 0),
        None if maps.saliency is None else maps.saliency[0],
        shown.boxes_px,
        saliency_channels_of(shown.classes, model.saliency_channels),
    )
    heat = location_scores(maps, model.strides)
    return {
        "class score x centerness": _draw_scores(image, heat, model.strides[0], shown.boxes_px, points),
        **part_pictures(image, parts, threshold=model.mask_rule.threshold, budget_mb=model.mask_rule.budget_mb),
    }


def location_scores(maps: FCOSMaskMaps, strides: list[int]) -> Tensor:
    """(H1, W1) of the finest level: the largest score that a location of any level has for any class there.

    Args:
        maps: of one image or more, of which the first is looked at.
        strides: of the levels, rising, each a multiple of the first.
    """
    height, width = maps.cls_logits[0].shape[-2:]
    best = maps.cls_logits[0].new_zeros(height, width, dtype=torch.float32)
    for cls_logits, centerness_logits, stride in zip(maps.cls_logits, maps.centerness_logits, strides, strict=True):
        scores = cls_logits[0].float().sigmoid().amax(dim=0) * centerness_logits[0, 0].float().sigmoid()
        factor = stride // strides[0]
        enlarged = scores.repeat_interleave(factor, dim=0).repeat_interleave(factor, dim=1)
        # What is NaN is no score.
        best = best.fmax(enlarged[:height, :width])
    return best


def _best(found: Found) -> Found:
    count = max(1, int((found.scores[:MAX_SHOWN] > MIN_SCORE).sum()))
    return type(found)(*(column[:count] for column in found))


def _draw_scores(image: np.ndarray, heat: Tensor, stride: int, boxes_px: Tensor, points_px: Tensor) -> np.ndarray:
    """A heat map of scores, and the boxes and points of the detections."""
    canvas = draw_boxes(draw_heat(image, heat.cpu().numpy(), stride=stride), boxes_px.cpu().numpy(), YELLOW)
    return draw_points(canvas, points_px.cpu().numpy())
