"""CenterNet's losses (section 3.1), in fp32: sums over a batch, and what they are divided by.

Shape shorthand: N images, K classes, P objects, H, W size of the maps.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

# Penalty-reduced focal loss: power of the error, and of the distance to a peak (Eq. 1).
ALPHA, BETA = 2, 4
# Probabilities keep this far from 0 and 1; beyond it, at this logit, there is no gradient, as in CenterNet's program.
MIN_PROBABILITY = 1e-4
MAX_LOGIT = math.log((1 - MIN_PROBABILITY) / MIN_PROBABILITY)
# CenterNet's program divides an L1 loss by both coordinates of all objects, and this.
L1_MARGIN = 1e-4
# Share of a batch's counts in their running mean.
MEAN_MOMENTUM = 0.01


def focal_loss(logits: Tensor, heatmap: Tensor) -> Tensor:
    """Penalty-reduced focal loss of object centres, a sum.

    Args:
        logits: (N, K, H, W).
        heatmap: (N, K, H, W) targets, 1 at the peaks; see `heatmap_targets`.
    """
    is_peak = heatmap == 1
    # What is wrong with a cell: 1 - p is the probability of -logit, so that both halves of Eq. 1 are one expression,
    # and a third less is kept for the backward pass.
    errors = logits.float().clamp(-MAX_LOGIT, MAX_LOGIT)
    errors = torch.where(is_peak, -errors, errors)
    weights = torch.where(is_peak, 1.0, (1 - heatmap).pow(BETA))
    return (functional.softplus(errors) * errors.sigmoid().pow(ALPHA) * weights).sum()


def l1_loss(values: Tensor, targets: Tensor) -> Tensor:
    """Sum of the absolute errors of (P, 2) values at the objects' cells."""
    return (values.float() - targets).abs().sum()


class Counts(NamedTuple):
    """What the losses of a batch are divided by; scalars.

    peaks: cells of the heatmap that are 1, where focal losses come from. foreground: cells of the saliency's targets,
    each by its share. objects: P.
    """

    peaks: Tensor
    foreground: Tensor
    objects: Tensor


def replace_zeros(counts: Tensor, running: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """Divisors of the dense losses, whose sums over a batch without objects would otherwise be divided by nothing.

    Args:
        counts: any shape; of this batch, or means over the ranks.
        running: as counts: their running means over batches with objects, 0 before the first.
        least: the smallest divisor of such a batch.

    Returns:
        The divisors, the counts where there are any and else the running means; and the new running means.
    """
    is_first, has_any = running == 0, counts > 0
    mean = torch.where(is_first, counts, torch.lerp(running, counts, MEAN_MOMENTUM))
    return torch.where(has_any, counts, running.clamp(min=least)), torch.where(has_any, mean, running)
