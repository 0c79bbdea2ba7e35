"""Pictures of what CenterMask makes masks of: peaks, local shapes, saliency and their product, of the same objects.

Shape shorthand: D detections, Cs channels of the saliency, S side of a shape, H, W size of the network's input in
pixels, h, w of the maps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from centermask.assembly import assemble_masks, product_log_probs, sample_shapes
from centermask.decode import Detections, peak_scores
from centermask.maps import MAP_STRIDE, CenterMaps, saliency_channels_of
from segzoo.geometry.box_cells import box_pixels
from segzoo.visualization import draw_boxes, draw_heat, draw_mask, draw_points, instance_color

if TYPE_CHECKING:
    from centermask.centermask import CenterMask

# Detections that are shown, if they score above MIN_SCORE; the best one whatever it scores.
MAX_SHOWN = 8
MIN_SCORE = 0.3
YELLOW = (0, 220, 255)


def shape_canvas(shapes: Tensor, boxes_px: Tensor, size: tuple[int, int]) -> Tensor:
    """(H, W) probabilities of all shapes in their boxes, the largest where several meet; 0 outside.

    Args:
        shapes: (D, S, S) logits.
        boxes_px: (D, 4) xyxy.
        size: (H, W).
    """
    # Pixels instead of cells: the same places in a box.
    owner, y, x = box_pixels(boxes_px, size)
    probabilities = sample_shapes(shapes.float(), boxes_px, owner, y, x).sigmoid()
    return _lay_down(probabilities, y, x, size)


def product_canvas(
    shapes: Tensor | None, saliency: Tensor | None, boxes_px: Tensor, channels: Tensor, size: tuple[int, int]
) -> Tensor:
    """(H, W) shape x saliency of all detections, as `shape_canvas`.

    Args:
        shapes: (D, S, S) logits, or None.
        saliency: (Cs, H, W) logits at the input's size, or None.
        boxes_px, channels: (D, 4), and (D,) of the saliency.
        size: (H, W).
    """
    owner, y, x = box_pixels(boxes_px, size)
    shape_logits = None if shapes is None else sample_shapes(shapes.float(), boxes_px, owner, y, x)
    saliency_logits = None if saliency is None else saliency[channels[owner], y, x]
    return _lay_down(product_log_probs(shape_logits, saliency_logits)[0].exp(), y, x, size)


def _lay_down(values: Tensor, y: Tensor, x: Tensor, size: tuple[int, int]) -> Tensor:
    canvas = values.new_zeros(size[0] * size[1])
    return canvas.scatter_reduce_(0, y * size[1] + x, values, "amax").view(size)


def enlarge_saliency(saliency: Tensor, size: tuple[int, int]) -> Tensor:
    """(Cs, H, W) of (Cs, h, w) logits of one image, interpolated as for masks and cut to its size."""
    enlarged = functional.interpolate(
        saliency.float()[None], scale_factor=MAP_STRIDE, mode="bilinear", align_corners=False
    )
    return enlarged[0, :, : size[0], : size[1]]


@torch.no_grad()
def map_pictures(model: CenterMask, inputs: dict[str, Any]) -> dict[str, np.ndarray]:
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
    image = _to_bgr(inputs["image"], model.preprocessor.input_format)
    shapes, channels = (
        model.shapes_of(maps, shown, 0),
        saliency_channels_of(shown.classes, model.objective.saliency_channels),
    )
    saliency = None if maps.saliency is None else enlarge_saliency(maps.saliency[0], size)
    pictures = {"heatmap and its peaks": _draw_peaks(image, maps, shown, size)}
    if shapes is not None:
        pictures["local shapes"] = _draw_probabilities(image, shape_canvas(shapes, shown.boxes_px, size))
    if saliency is not None:
        # Of the classes that are shown.
        pictures["saliency"] = _draw_probabilities(image, saliency[channels.unique()].amax(dim=0).sigmoid())
    product = product_canvas(shapes, saliency, shown.boxes_px, channels, size)
    pictures["shape x saliency"] = _draw_probabilities(image, product)
    masks = assemble_masks(
        shapes,
        None if maps.saliency is None else maps.saliency[0],
        shown.boxes_px,
        channels,
        input_size=size,
        output_size=size,
        threshold=model.decode_rule.mask_threshold,
        budget_mb=model.mask_budget_mb,
    )
    pictures["masks made of the maps"] = _draw_masks(image, np.asarray(masks), shown)
    return pictures


def _best(detections: Detections) -> Detections:
    count = max(1, int((detections.scores[:MAX_SHOWN] > MIN_SCORE).sum()))
    return Detections(*(column[:count] for column in detections))


def _draw_peaks(image: np.ndarray, maps: CenterMaps, shown: Detections, size: tuple[int, int]) -> np.ndarray:
    """The largest score of every cell, and the boxes and centres of the detections."""
    heat = peak_scores(maps.heatmap, [size])[0].amax(dim=0).cpu().numpy()
    boxes = shown.boxes_px.cpu().numpy()
    canvas = draw_boxes(draw_heat(image, heat, stride=MAP_STRIDE), boxes, YELLOW)
    return draw_points(canvas, (boxes[:, :2] + boxes[:, 2:]) / 2)


def _draw_probabilities(image: np.ndarray, values: Tensor) -> np.ndarray:
    return draw_heat(image, values.cpu().numpy(), stride=1)


def _draw_masks(image: np.ndarray, masks: np.ndarray, shown: Detections) -> np.ndarray:
    """Worst first, so that the best one lies on top."""
    for index in reversed(range(len(masks))):
        image = draw_mask(image, masks[index], instance_color(index))
    return draw_boxes(image, shown.boxes_px.cpu().numpy(), YELLOW)


def _to_bgr(image: Tensor, input_format: str) -> np.ndarray:
    """(3, H, W) of the mapper -> (H, W, 3) uint8 BGR."""
    pixels = image.float().round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()
    return np.ascontiguousarray(pixels[:, :, ::-1] if input_format == "RGB" else pixels)
