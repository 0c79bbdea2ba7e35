"""From rays to contours, their boxes and their masks.

Shape shorthand: D detections, n rays.
"""

from __future__ import annotations

import torch
from torch import Tensor

from polarmask.rays import ray_directions


def rays_to_contours(points_px: Tensor, rays_px: Tensor) -> Tensor:
    """(D, n, 2) x and y of the ends of (D, n) rays around (D, 2) points (section 3.1)."""
    directions = ray_directions(rays_px.shape[1], rays_px.device)
    return points_px[:, None] + rays_px[..., None] * directions


def contour_boxes(contours_px: Tensor) -> Tensor:
    """(D, 4) xyxy boxes around (D, n, 2) contours."""
    return torch.cat((contours_px.amin(dim=1), contours_px.amax(dim=1)), dim=1)
