"""Small masks of boxes into the image, with bounded memory.

Shape shorthand:
    D: detections, S: side of a small mask, H, W: size of the image in pixels.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from segzoo.geometry.fallback import survives_out_of_memory
from segzoo.geometry.rle import RLEMasks, encode_in_chunks

# Bytes a pixel takes while it is sampled: two float coordinates, the float value, and the coordinates' first copy.
SAMPLING_BYTES_PER_PIXEL = 20


def paste_masks(
    probabilities: torch.Tensor,
    boxes: torch.Tensor,
    image_size: tuple[int, int],
    threshold: float = 0.5,
    budget_mb: float = 64.0,
) -> torch.Tensor:
    """Stretches each small mask over its box, bilinearly between pixel centres, and thresholds it.

    The values are those of Detectron2's `paste_masks_in_image`; only the box's part of the image is sampled, in bands
    of rows, so that one box over a large image does not take a dozen floats' worth of it.

    Args:
        probabilities: (D, S, S) float, 0..1.
        boxes: (D, 4) xyxy px, with positive width and height; may reach out of the image.
        image_size: (H, W).
        threshold: pixels at or above it belong to the mask.
        budget_mb: MiB of sampled pixels at once; one row is always allowed.

    Returns:
        (D, H, W) bool on the device of `probabilities`.
    """
    height, width = image_size
    masks = torch.zeros(len(boxes), height, width, dtype=torch.bool, device=probabilities.device)
    boxes = boxes.to(probabilities.device, torch.float32)
    corners = torch.cat([boxes[:, :2].floor() - 1, boxes[:, 2:].ceil() + 1], dim=1)
    corners[:, 0::2].clamp_(0, width)
    corners[:, 1::2].clamp_(0, height)
    # One transfer for all boxes.
    for number, (left, top, right, bottom) in enumerate(corners.int().tolist()):
        if right <= left:
            continue
        step = max(1, int(budget_mb * 2**20 / (SAMPLING_BYTES_PER_PIXEL * (right - left))))
        for first in range(top, bottom, step):
            region = (first, min(first + step, bottom), left, right)
            values = _sample(probabilities[number], boxes[number], region)
            masks[number, region[0] : region[1], left:right] = values >= threshold
    return masks


@survives_out_of_memory
def paste_as_rle(
    probabilities: torch.Tensor, boxes: torch.Tensor, image_size: tuple[int, int], *, budget_mb: float
) -> RLEMasks:
    """`paste_masks` at threshold 0.5, of which only the run lengths are kept.

    Args:
        probabilities, boxes, image_size: see `paste_masks`.
        budget_mb: MiB held at once, one half for the stack of masks, the other for the pixels being sampled.
    """
    half = budget_mb / 2
    return encode_in_chunks(
        lambda chosen: paste_masks(probabilities[chosen], boxes[chosen], image_size, budget_mb=half),
        *(len(boxes), image_size, half),
    )


def _sample(probability: torch.Tensor, box: torch.Tensor, region: tuple[int, int, int, int]) -> torch.Tensor:
    """Values of one small mask (S, S) at the pixel centres of region (top, bottom, left, right)."""
    top, bottom, left, right = region
    y = torch.arange(top, bottom, device=box.device, dtype=torch.float32) + 0.5
    x = torch.arange(left, right, device=box.device, dtype=torch.float32) + 0.5
    # -1..1 over the box, as grid_sample wants it.
    y = (y - box[1]) / (box[3] - box[1]) * 2 - 1
    x = (x - box[0]) / (box[2] - box[0]) * 2 - 1
    grid = torch.stack([x[None, :].expand(len(y), -1), y[:, None].expand(-1, len(x))], dim=2)
    return functional.grid_sample(probability[None, None].float(), grid[None], align_corners=False)[0, 0]
