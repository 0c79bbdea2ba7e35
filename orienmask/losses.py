"""OrienMask's losses (section 3.3), in fp32: sums over the batch, to be divided by the number of images.

Shape shorthand: N images, R predictions of an image, P positives, K classes, A anchors, L levels, G pairs of image and
anchor, H, W size of the network input, h, w of the orientation maps.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from orienmask.orientation import OrientationTargets
from orienmask.targets import BoxTargets


def box_losses(raw: Tensor, targets: BoxTargets, is_negative: Tensor) -> dict[str, Tensor]:
    """YOLOv3's losses: cross entropy of centres, objectness and classes, squared error of the logarithms of sizes.

    Args:
        raw: (N, R, 5 + K) of the network, fp32.
        targets: of P positives.
        is_negative: (N, R) bool, see `objectness_negatives`.

    Returns:
        {"loss_xy", "loss_wh", "loss_obj", "loss_noobj", "loss_cls"}: sums over the batch.
    """
    flat = raw.flatten(0, 1)
    chosen = flat[targets.positives]
    scales = targets.scales[:, None]
    absent = _cross_entropy(flat[:, 4], torch.zeros_like(flat[:, 4]))
    return {
        "loss_xy": (_cross_entropy(chosen[:, :2], targets.offsets) * scales).sum(),
        "loss_wh": ((chosen[:, 2:4] - targets.log_sizes).square() * scales / 2).sum(),
        "loss_obj": _cross_entropy(chosen[:, 4], torch.ones_like(chosen[:, 4])).sum(),
        "loss_noobj": torch.where(is_negative.flatten(), absent, 0.0).sum(),
        "loss_cls": _cross_entropy(chosen[:, 5:], targets.classes).sum(),
    }


def _cross_entropy(logits: Tensor, probabilities: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(logits, probabilities, reduction="none")


class PixelCounts(NamedTuple):
    """What the orientation losses of the L levels are divided and multiplied by; (L,) each.

    positive, negative: pixels with a target. objects: positive cells of the box maps.
    """

    positive: Tensor
    negative: Tensor
    objects: Tensor


def count_pixels(targets: OrientationTargets, object_levels: Tensor, num_anchors: int, num_levels: int) -> PixelCounts:
    """Counts of a batch by level.

    Args:
        targets: of G pairs.
        object_levels: (P,) level of each positive prediction.
        num_anchors, num_levels: A, L.
    """
    level = targets.anchor // num_anchors
    zeros = torch.zeros(num_levels, device=level.device)
    pixels = (mask.count_nonzero(dim=(1, 2)).float() for mask in (targets.is_positive, targets.is_negative))
    positive, negative = (zeros.index_add(0, level, count) for count in pixels)
    return PixelCounts(positive, negative, zeros.index_add(0, object_levels, torch.ones_like(object_levels).float()))


def orientation_losses(
    orientations: Tensor, targets: OrientationTargets, counts: PixelCounts, num_anchors: int
) -> dict[str, Tensor]:
    """Smooth L1 (beta 1) of the vectors, on each level its mean over the pixels times the number of objects.

    Only the maps of pairs with an object are enlarged to the size of the network input.

    Args:
        orientations: (N, 2 A L, h, w) of the network.
        targets: of G pairs.
        counts: see `PixelCounts`; of this batch, or means over the ranks.
        num_anchors: A.

    Returns:
        {"loss_orien_pos", "loss_orien_neg"}: sums over the levels.
    """
    number, channels, height, width = orientations.shape
    maps = orientations.float().view(number, channels // 2, 2, height, width)[targets.image, targets.anchor]
    if not len(maps):
        return dict.fromkeys(("loss_orien_pos", "loss_orien_neg"), maps.sum())
    size = targets.is_positive.shape[1:]
    enlarged = functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)
    vectors = targets.vectors.transpose(0, 1)
    loss = functional.smooth_l1_loss(enlarged, vectors, reduction="none", beta=1.0).sum(dim=1)
    level = targets.anchor // num_anchors
    losses = {}
    for name, mask, count in (
        ("loss_orien_pos", targets.is_positive, counts.positive),
        ("loss_orien_neg", targets.is_negative, counts.negative),
    ):
        # A level without a pixel has a sum of 0: the least divisor is never felt.
        shares = (counts.objects / count.clamp(min=1e-6))[level]
        losses[name] = (torch.where(mask, loss, 0.0).sum(dim=(1, 2)) * shares).sum()
    return losses
