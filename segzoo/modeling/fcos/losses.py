"""Losses of FCOS v1, computed in fp32.

Shape shorthand: N images, R locations, K classes, P positives.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor


def focal_loss(cls_logits: Tensor, classes: Tensor, alpha: float, gamma: float) -> Tensor:
    """Sum of the sigmoid focal loss (Lin et al., Eq. 5).

    Args:
        cls_logits: (N * R, K).
        classes: (N * R,) in 0..K, K = background.
    """
    num_classes = cls_logits.shape[1]
    targets = F.one_hot(classes, num_classes + 1)[:, :num_classes].float()
    return sigmoid_focal_loss(cls_logits.float(), targets, alpha=alpha, gamma=gamma, reduction="sum")


def box_centerness(distances: Tensor) -> Tensor:
    """sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b)) of (P, 4) distances (FCOS, Eq. 3)."""
    low = torch.minimum(distances[:, :2], distances[:, 2:])
    high = torch.maximum(distances[:, :2], distances[:, 2:])
    return (low.clamp(min=0) / high.clamp(min=1e-6)).prod(dim=1).sqrt()


def iou_loss(pred_distances: Tensor, gt_distances: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of -log IoU (UnitBox) of boxes around the same points.

    The +1 on both areas is FCOS's own and keeps the logarithm finite.

    Args:
        pred_distances, gt_distances: (P, 4) l, t, r, b in pixels, >= 0.
        weights: (P,).
    """
    pred_area = (pred_distances[:, :2] + pred_distances[:, 2:]).prod(dim=1)
    gt_area = (gt_distances[:, :2] + gt_distances[:, 2:]).prod(dim=1)
    overlap = torch.minimum(pred_distances, gt_distances)
    intersection = (overlap[:, :2] + overlap[:, 2:]).prod(dim=1)
    union = pred_area + gt_area - intersection
    return -(((intersection + 1) / (union + 1)).log() * weights).sum()


def centerness_loss(centerness_logits: Tensor, targets: Tensor) -> Tensor:
    """Sum of the binary cross entropy of (P,) logits against soft (P,) targets.

    Soft targets have an entropy of their own, so that this loss settles around 0.55 to 0.6 a positive, not at 0.
    """
    return F.binary_cross_entropy_with_logits(centerness_logits.float(), targets, reduction="sum")
