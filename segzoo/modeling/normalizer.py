"""Normalisers of the losses over the ranks of a distributed run."""

from __future__ import annotations

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


def loss_normalizers(num_positives: Tensor, weight_sum: Tensor, mode: str) -> tuple[Tensor, Tensor]:
    """(positives, at least 1; sum of the positives' weights, at least 1e-6), averaged over the ranks by one call."""
    means = mean_over_ranks(torch.stack((num_positives.float(), weight_sum.float())), mode)
    return means[0].clamp(min=1.0), means[1].clamp(min=1e-6)
