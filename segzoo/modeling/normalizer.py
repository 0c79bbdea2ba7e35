"""Normalisers of the losses over the ranks of a distributed run."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import Tensor


def mean_over_ranks(counts: Tensor, mode: str) -> Tensor:
    """The ranks' mean of detached counts or weights, without a host synchronisation.

    DDP averages the gradients of the ranks. A sum of losses divided by this mean has therefore the gradient of the
    sum over all ranks divided by the count over all ranks, however the positives are spread.

    Args:
        counts: any shape; not changed.
        mode: "reduce", or "local" for the rank's own counts (as the authors' programs do).
    """
    counts = counts.detach().float()
    if mode == "local" or comm.get_world_size() == 1:
        return counts
    total = counts.clone()
    dist.all_reduce(total)
    return total / comm.get_world_size()


def count_normalizers(counts: Tensor, mode: str) -> Tensor:
    """The ranks' means of counts, of at least one over all ranks: what sums of losses are divided by.

    Args:
        counts, mode: see `mean_over_ranks`.
    """
    least = 1.0 if mode == "local" else 1.0 / comm.get_world_size()
    return mean_over_ranks(counts, mode).clamp(min=least)


class LossNormalizers(NamedTuple):
    """What an FCOS-like detector divides its losses by, as means over the ranks.

    num_positives: may be 0. positives: the same, of at least one positive (over all ranks). weight_sum: of the
    positives, at least 1e-6.
    """

    num_positives: Tensor
    positives: Tensor
    weight_sum: Tensor


def loss_normalizers(num_positives: Tensor, weight_sum: Tensor, mode: str) -> LossNormalizers:
    """The means of a rank's positives and of their weights, by one call.

    Args:
        num_positives, weight_sum: scalars of this rank.
        mode: see `mean_over_ranks`.
    """
    means = mean_over_ranks(torch.stack((num_positives.float(), weight_sum.float())), mode)
    least = 1.0 if mode == "local" else 1.0 / comm.get_world_size()
    return LossNormalizers(means[0], means[0].clamp(min=least), means[1].clamp(min=1e-6))
