"""Padded boxes: where masks are trained, so that about half of the cells are foreground (section 3.2).

All lengths in cells of the stride-4 map. Shape shorthand: M objects.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def mask_padding(boxes_cells: Tensor, areas_cells: Tensor) -> Tensor:
    """The smallest whole padding p with (w + 2 p) (h + 2 p) >= 2 F.

    That is the ceiling of the root, p = ceil((sqrt((w - h)^2 + 8 F) - (w + h)) / 4), and 0 where F <= w h / 2.

    Args:
        boxes_cells: (M, 4) xyxy.
        areas_cells: (M,) F, foreground of each object.

    Returns:
        (M,) float32.
    """
    width, height = (boxes_cells[:, 2:].double() - boxes_cells[:, :2]).unbind(dim=1)
    doubled = 2 * areas_cells.double()
    root = (((width - height).square() + 4 * doubled).sqrt() - (width + height)) / 4
    padding = root.ceil().clamp(min=0)
    # A root just above a whole number may be rounded to it.
    padding = torch.where((width + 2 * padding) * (height + 2 * padding) < doubled, padding + 1, padding)
    return padding.float()


def pad_boxes(boxes_cells: Tensor, padding: Tensor) -> Tensor:
    """(M, 4) xyxy boxes, each wider by (M,) `padding` on all four sides; may reach out of the map."""
    return torch.cat((boxes_cells[:, :2] - padding[:, None], boxes_cells[:, 2:] + padding[:, None]), dim=1)
