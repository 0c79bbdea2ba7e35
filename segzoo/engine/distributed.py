"""Small helpers over Detectron2's comm module: agreement between ranks, and work that only one of them does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from detectron2.utils import comm

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
