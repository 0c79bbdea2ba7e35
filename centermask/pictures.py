"""Pictures of what masks are made of: local shapes, saliency and their product, of the same detections.

Shape shorthand: D detections, Cs channels of the saliency, S side of a shape, H, W size of the network's input in
pixels, h, w of the maps.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor
from torch.nn import functional

from centermask.assembly import assemble_masks, product_log_probs, sample_shapes
from centermask.maps import MAP_STRIDE
from segzoo.geometry.box_cells import box_pixels
from segzoo.visualization import draw_boxes, draw_heat, draw_mask, instance_color

YELLOW = (0, 220, 255)


class MaskParts(NamedTuple):
    """What the masks of one image's detections are made of, best first.

    shapes: (D, S, S) logits, or None. saliency: (Cs, h, w) logits, or None. boxes_px: (D, 4) xyxy in pixels of the
    network's input. channels: (D,) of the saliency.
    """

    shapes: Tensor | None
    saliency: Tensor | None
    boxes_px: Tensor
    channels: Tensor


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


def part_pictures(
    image_bgr: np.ndarray, parts: MaskParts, *, threshold: float, budget_mb: float
) -> dict[str, np.ndarray]:
    """The shapes, the saliency, their product and the masks of one image's detections.

    Args:
        image_bgr: (H, W, 3) uint8, the network's input.
        parts: of the detections, one or more.
        threshold, budget_mb: see `assemble_masks`.

    Returns:
        (H, W, 3) uint8 BGR each, by title. Parts that are None are left out.
    """
    size = (image_bgr.shape[0], image_bgr.shape[1])
    saliency = None if parts.saliency is None else enlarge_saliency(parts.saliency, size)
    pictures = {}
    if parts.shapes is not None:
        pictures["local shapes"] = _draw_probabilities(image_bgr, shape_canvas(parts.shapes, parts.boxes_px, size))
    if saliency is not None:
        # Of the classes that are shown.
        pictures["saliency"] = _draw_probabilities(image_bgr, saliency[parts.channels.unique()].amax(dim=0).sigmoid())
    product = product_canvas(parts.shapes, saliency, parts.boxes_px, parts.channels, size)
    pictures["shape x saliency"] = _draw_probabilities(image_bgr, product)
    masks = assemble_masks(
        *(parts.shapes, parts.saliency, parts.boxes_px, parts.channels),
        input_size=size,
        output_size=size,
        threshold=threshold,
        budget_mb=budget_mb,
    )
    pictures["masks made of the maps"] = _draw_masks(image_bgr, np.asarray(masks), parts.boxes_px)
    return pictures


def _draw_probabilities(image: np.ndarray, values: Tensor) -> np.ndarray:
    return draw_heat(image, values.cpu().numpy(), stride=1)


def _draw_masks(image: np.ndarray, masks: np.ndarray, boxes_px: Tensor) -> np.ndarray:
    """Worst first, so that the best one lies on top."""
    for index in reversed(range(len(masks))):
        image = draw_mask(image, masks[index], instance_color(index))
    return draw_boxes(image, boxes_px.cpu().numpy(), YELLOW)
