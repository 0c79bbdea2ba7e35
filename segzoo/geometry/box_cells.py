"""Which cells of a map lie in a box.

One convention everywhere: cell (i, j) has its centre at (j + 0.5, i + 0.5) in map units (pixels / stride).

Shape shorthand: P boxes, H, W size of the map, Q pairs of a box and a cell in it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from segzoo.geometry.runs import expand_ranges


def box_pixels(boxes: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """The cells whose centre lies inside each box; the nearest row or column where there is none.

    Args:
        boxes: (P, 4) xyxy in map units, may reach out of the map.
        size: (H, W).

    Returns:
        owner, y, x: (Q,) int64, ordered by box, row, column.
    """
    first, counts = box_ranges(boxes, size)
    row_owner, y = expand_ranges(first[:, 1], counts[:, 1])
    line, x = expand_ranges(first[row_owner, 0], counts[row_owner, 0])
    return row_owner[line], y[line], x


def box_ranges(boxes: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(P, 2) int64 first column and row of each box, and (P, 2) how many, at least 1 each; see `box_pixels`."""
    limit = torch.tensor((size[1], size[0]), device=boxes.device)
    # A centre on the left or upper side lies inside, one on the right or lower side does not.
    first = (boxes[:, :2] - 0.5).ceil().clamp(min=0).minimum(limit).long()
    end = (boxes[:, 2:] - 0.5).ceil().clamp(min=0).minimum(limit).long()
    nearest = ((boxes[:, :2] + boxes[:, 2:]) / 2).floor().clamp(min=0).minimum(limit - 1).long()
    is_empty = end <= first
    return torch.where(is_empty, nearest, first), torch.where(is_empty, 1, end - first)
