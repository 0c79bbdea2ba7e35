"""Masks where the device has no memory left: a smaller budget, then the CPU."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from segzoo.geometry.rle import RLEMasks

logger = logging.getLogger(__name__)

# The budget is divided by these, one after the other.
DIVISORS = (1, 4, 16)
Make = TypeVar("Make", bound=Callable[..., RLEMasks])


def survives_out_of_memory(make: Make) -> Make:
    """The same function of tensors, which has a keyword `budget_mb`, for a device that may be full.

    Out of memory it is called again with a smaller budget, at last with copies of the tensors on the CPU. The masks
    are the same but for the rounding of another device.

    Args:
        make: tensors, tuples of them and plain values -> masks.
    """

    @functools.wraps(make)
    def try_again(*tensors: Any, budget_mb: float, **options: Any) -> RLEMasks:
        for divisor in DIVISORS:
            try:
                return make(*tensors, budget_mb=budget_mb / divisor, **options)
            except torch.OutOfMemoryError as error:
                reason = str(error).split(".", 1)[0]
                logger.warning("no memory to make masks within %g MiB: %s", budget_mb / divisor, reason)
            # Not before the error has let go of what its frames held.
            _empty_cache()
        logger.warning("masks are made on the CPU")
        on_cpu = {name: _on_cpu(value) for name, value in options.items()}
        return make(*map(_on_cpu, tensors), budget_mb=budget_mb, **on_cpu)

    return try_again  # type: ignore[return-value]


def _empty_cache() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _on_cpu(value: Any) -> Any:
    """A tensor, or a named tuple of tensors, on the CPU; anything else as it is."""
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(_on_cpu, value))
    return value
