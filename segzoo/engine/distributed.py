"""Small helpers over Detectron2's comm module: agreement between ranks, and work that only one of them does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch.nn.parallel import DistributedDataParallel

from segzoo.errors import SegZooError

Result = TypeVar("Result")


def on_main_process(action: Callable[[], Result]) -> Result:
    """Runs `action` on rank 0 alone and gives its result, or its SegZooError, to every rank.

    All ranks must call it; the result must be picklable. Any other exception ends rank 0 as usual.
    """
    outcome: tuple[Any, SegZooError | None] = (None, None)
    if comm.is_main_process():
        try:
            outcome = (action(), None)
        except SegZooError as error:
            outcome = (None, error)
    result, failure = comm.all_gather(outcome)[0]
    if failure is not None:
        raise failure
    return result


def wrap_model(model: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """The model whose backward pass averages gradients over the ranks; itself where there is one process."""
    if comm.get_world_size() == 1:
        return model
    # device_ids must stay None on a CPU.
    device_ids = [device.index or torch.cuda.current_device()] if device.type == "cuda" else None
    wrapped = DistributedDataParallel(model, device_ids=device_ids)
    # From here on buffers are each rank's own (saved by rank), not rank 0's. torch 2.13 renamed the argument.
    wrapped.broadcast_buffers = False
    return wrapped


@contextmanager
def main_process_buffers(model: torch.nn.Module) -> Iterator[None]:
    """Within the context every rank's model has rank 0's buffers; its own come back afterwards."""
    if comm.get_world_size() == 1:
        yield
        return
    own = [buffer.detach().clone() for buffer in model.buffers()]
    for buffer in model.buffers():
        dist.broadcast(buffer, src=0)
    try:
        yield
    finally:
        for buffer, values in zip(model.buffers(), own, strict=True):
            buffer.copy_(values)
