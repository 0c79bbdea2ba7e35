"""Anchors and cells: where a prediction of the box maps lies, and the box that it makes.

Predictions are numbered level by level, finest first, then anchor by anchor, row by row. Anchors count through all
levels as in MODEL.ORIENMASK.ANCHORS, smallest first, so that level l has the anchors l * A to l * A + A - 1.

Shape shorthand: N images, L levels, A anchors a level, R predictions of an image, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from segzoo.modeling.fcos.head import exp_size

# Longer sides count as this long.
MAX_SIDE_PX = 16_384.0


class Predictions(NamedTuple):
    """Where the R predictions of an image stand.

    anchors: (R,) index of the anchor. sizes_px: (R, 2) its width and height. cells: (R, 2) column and row.
    strides: (R,) px.
    """

    anchors: Tensor
    sizes_px: Tensor
    cells: Tensor
    strides: Tensor


def list_predictions(
    map_sizes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    anchors_px: Sequence[Sequence[float]],
    device: torch.device,
) -> Predictions:
    """The predictions of L maps of (height, width) cells with L * A anchors (width, height) px."""
    per_level = len(anchors_px) // len(strides)
    anchors, cells, all_strides = [], [], []
    for level, ((height, width), stride) in enumerate(zip(map_sizes, strides, strict=True)):
        own = torch.arange(level * per_level, (level + 1) * per_level, device=device)
        anchors.append(own.repeat_interleave(height * width))
        row, column = torch.meshgrid(
            torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij"
        )
        cells.append(torch.stack((column, row), dim=2).view(-1, 2).repeat(per_level, 1))
        all_strides.append(torch.full((per_level * height * width,), stride, device=device))
    index = torch.cat(anchors)
    sizes = torch.tensor(anchors_px, dtype=torch.float32, device=device)
    return Predictions(index, sizes[index], torch.cat(cells), torch.cat(all_strides))


def flatten_predictions(box_maps: Sequence[Tensor], num_anchors: int) -> Tensor:
    """(N, A * (5 + K), Hi, Wi) of every level -> (N, R, 5 + K) in fp32; `num_anchors` is A."""
    rows = []
    for level in box_maps:
        number, channels, height, width = level.shape
        split = level.float().view(number, num_anchors, channels // num_anchors, height * width)
        rows.append(split.transpose(2, 3).reshape(number, num_anchors * height * width, -1))
    return torch.cat(rows, dim=1)


def decode_boxes(raw: Tensor, places: Predictions) -> Tensor:
    """Boxes as YOLOv3 decodes them, the exponential clamped.

    Args:
        raw: (..., R, 4 or more), beginning with tx, ty, tw, th.
        places: R predictions.

    Returns:
        (..., R, 4) centre x, centre y, width, height in network input pixels.
    """
    centers = (raw[..., :2].sigmoid() + places.cells) * places.strides[:, None]
    sides = (exp_size(raw[..., 2:4]) * places.sizes_px).clamp(max=MAX_SIDE_PX)
    return torch.cat((centers, sides), dim=-1)


def cells_inside(places: Predictions, image_size: tuple[int, int]) -> Tensor:
    """(R,) bool: the cells that begin inside an image of (height, width) px, not in its padding."""
    limit = places.cells.new_tensor([image_size[1], image_size[0]])
    return (places.cells * places.strides[:, None] < limit).all(dim=1)


def to_corners(boxes: Tensor) -> Tensor:
    """(..., 4) centre x, y, width, height -> xyxy."""
    centers, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat((centers - half, centers + half), dim=-1)


def to_centers(boxes: Tensor) -> Tensor:
    """(..., 4) xyxy -> centre x, y, width, height."""
    return torch.cat(((boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]), dim=-1)
