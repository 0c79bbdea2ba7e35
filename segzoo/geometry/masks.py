"""Boxes of full-size masks.

Shape shorthand:
    M: masks, H, W: size of the image in pixels.
"""

from __future__ import annotations

import torch


def mask_boxes(masks: torch.Tensor) -> torch.Tensor:
    """Tight box of each mask.

    Args:
        masks: (M, H, W) bool; M, H or W may be 0.

    Returns:
        (M, 4) float32 xyxy px on the masks' device: (x_min, y_min, x_max + 1, y_max + 1); zeros for an empty mask.
    """
    if 0 in masks.shape:
        return torch.zeros(len(masks), 4, device=masks.device)
    x_min, x_end = _extent(masks.any(dim=1))
    y_min, y_end = _extent(masks.any(dim=2))
    return torch.stack([x_min, y_min, x_end, y_end], dim=1).float()


def _extent(is_hit: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """First hit and one past the last of each row of (M, S) bool; (0, 0) where there is none."""
    # argmax of integers gives the first maximum; a bool has no argmax on every device.
    hits = is_hit.to(torch.uint8)
    first = hits.argmax(dim=1)
    end = is_hit.shape[1] - hits.flip(1).argmax(dim=1)
    return first, torch.where(is_hit.any(dim=1), end, 0)
