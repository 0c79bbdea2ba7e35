"""Masks of detections at output size, cut from stride-4 maps by their boxes.

Shape shorthand: B maps, D detections, H, W size of the stride-4 maps.
"""

from __future__ import annotations

import math

from torch import Tensor

from segzoo.geometry.box_cells import box_ranges
from segzoo.geometry.fallback import survives_out_of_memory
from segzoo.geometry.rle import RLEMasks
from segzoo.geometry.soft_masks import MASK_STRIDE
from segzoo.geometry.tiles import Tiles, masks_from_tiles, resample

# Held for a pixel while masks are made.
BYTES_PER_PIXEL = 24


@survives_out_of_memory
def cut_masks(
    logits: Tensor,
    channels: Tensor,
    boxes_px: Tensor,
    *,
    input_size: tuple[int, int],
    output_size: tuple[int, int],
    threshold: float,
    budget_mb: float,
) -> RLEMasks:
    """The pixels of a box whose probability, interpolated at every pixel of the output, is large enough.

    Made in blocks of columns, so that memory stays within the budget.

    Args:
        logits: (B, H, W) of one or more images.
        channels: (D,) int64 which of the B maps holds a detection's mask.
        boxes_px: (D, 4) xyxy in pixels of the network's input, finite.
        input_size: (height, width) of the image in the network's input, without the padding at its right and bottom.
        output_size: (height, width) of the masks.
        threshold: of the probability; pixels at or above it belong to the mask.
        budget_mb: MiB held at once; one column of the output is always allowed.
    """
    step_px = boxes_px.new_tensor([inner / max(outer, 1) for inner, outer in zip(input_size[::-1], output_size[::-1])])
    boxes = boxes_px / step_px.repeat(2)
    # Transposed, as run lengths go down the columns.
    maps = logits.float().transpose(1, 2)
    least_logit = math.log(threshold / (1 - threshold))

    def is_inside(tiles: Tiles, *pixels: Tensor) -> Tensor:
        places = [x * (step_px[axis] / MASK_STRIDE) for axis, x in enumerate(pixels)]
        return resample(maps[channels[tiles.owner]], *places) >= least_logit

    return masks_from_tiles(
        *box_ranges(boxes, output_size),
        output_size,
        is_inside,
        max_pixels=int(budget_mb * 2**20) // BYTES_PER_PIXEL,
        map_size=(maps.shape[1], maps.shape[2]),
    )
