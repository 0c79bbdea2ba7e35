"""PolarMask's own losses, in fp32.

Shape shorthand: P positives, n rays.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Smaller overlaps count as this much: keeps the logarithm of the box loss finite.
MIN_BOX_IOU = 1e-6
# Shorter predicted rays count as this long: keeps the logarithm finite.
MIN_RAY_PX = 1e-6


def polar_centerness(rays_px: Tensor) -> Tensor:
    """(P,) sqrt(min d / max d) of (P, n) rays (Eq. 1)."""
    return (rays_px.amin(dim=1) / rays_px.amax(dim=1)).sqrt()


def polar_iou_loss(pred_rays_px: Tensor, gt_rays_px: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of log(sum_k max(d, d*) / sum_k min(d, d*)) (Eq. 5).

    Args:
        pred_rays_px, gt_rays_px: (P, n) > 0.
        weights: (P,).
    """
    pred = pred_rays_px.float().clamp(min=MIN_RAY_PX)
    longer = torch.maximum(pred, gt_rays_px).sum(dim=1)
    shorter = torch.minimum(pred, gt_rays_px).sum(dim=1)
    return ((longer / shorter).log() * weights).sum()


def smooth_l1_ray_loss(pred_rays_px: Tensor, gt_rays_px: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of the rays' mean smooth L1 (beta 1 px), the comparison of table 1b.

    Args:
        pred_rays_px, gt_rays_px: (P, n).
        weights: (P,).
    """
    loss = F.smooth_l1_loss(pred_rays_px.float(), gt_rays_px, beta=1.0, reduction="none")
    return (loss.mean(dim=1) * weights).sum()


# MODEL.POLARMASK.MASK_LOSS -> the loss of the rays.
RAY_LOSSES = {"polar_iou": polar_iou_loss, "smooth_l1": smooth_l1_ray_loss}


def box_iou_loss(pred_distances: Tensor, gt_distances: Tensor, weights: Tensor, margin_px: float = 0.0) -> Tensor:
    """Weighted sum of -log IoU of boxes around the same points (the box branch of table 1d).

    Args:
        pred_distances, gt_distances: (P, 4) l, t, r, b in pixels, >= 0.
        weights: (P,).
        margin_px: added to every side before areas are taken: 1 for boxes that end at their last pixel.
    """
    pred = pred_distances.float()
    pred_area = (pred[:, :2] + pred[:, 2:] + margin_px).prod(dim=1)
    gt_area = (gt_distances[:, :2] + gt_distances[:, 2:] + margin_px).prod(dim=1)
    overlap = torch.minimum(pred, gt_distances)
    intersection = (overlap[:, :2] + overlap[:, 2:] + margin_px).prod(dim=1)
    iou = intersection / (pred_area + gt_area - intersection)
    return -(iou.clamp(min=MIN_BOX_IOU).log() * weights).sum()
