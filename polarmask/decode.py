"""From rays to contours, their boxes and their masks.

Shape shorthand: D detections, n rays.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from polarmask.rays import ray_directions
from segzoo.geometry.polygons import polygons_to_rles, truncated_rles


class ContourRule(NamedTuple):
    """How contours become boxes and masks.

    uses_predicted_boxes: boxes come from the box branch, not from around the contours. is_official: as the authors'
    program draws: images and boxes end at their last pixel's number, masks see `truncated_rles`.
    """

    uses_predicted_boxes: bool = False
    is_official: bool = False


def rays_to_contours(points_px: Tensor, rays_px: Tensor) -> Tensor:
    """(D, n, 2) x and y of the ends of (D, n) rays around (D, 2) points (section 3.1)."""
    directions = ray_directions(rays_px.shape[1], rays_px.device)
    return points_px[:, None] + rays_px[..., None] * directions


def contour_boxes(contours_px: Tensor) -> Tensor:
    """(D, 4) xyxy boxes around (D, n, 2) contours."""
    return torch.cat((contours_px.amin(dim=1), contours_px.amax(dim=1)), dim=1)


def contour_rles(contours_px: Tensor, image_size: tuple[int, int], rule: ContourRule) -> list[dict]:
    """The masks inside (D, n, 2) contours as compressed RLE of `image_size` (H, W)."""
    points = contours_px.cpu().double().numpy()
    if rule.is_official:
        return truncated_rles(points, image_size)
    return polygons_to_rles(points, *image_size)
