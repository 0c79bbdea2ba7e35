"""Times of two ways to compute the same, measured in turns in one process, so that only their ratio is claimed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch


class Comparison(NamedTuple):
    """Median times of the fast way and of its oracle, in milliseconds."""

    name: str
    ours_ms: float
    oracle_ms: float

    @property
    def ratio(self) -> float:
        """How many times faster ours is."""
        return self.oracle_ms / self.ours_ms

    def as_dict(self) -> dict[str, Any]:
        """Plain values for json."""
        rounded = {"ours_ms": round(self.ours_ms, 3), "oracle_ms": round(self.oracle_ms, 3)}
        return {"name": self.name, **rounded, "ratio": round(self.ratio, 2)}


def compare_times(
    name: str,
    ours: Callable[[], Any],
    oracle: Callable[[], Any],
    *,
    repeats: int = 15,
    images: int = 1,
    device: torch.device | str = "cpu",
) -> Comparison:
    """Runs both in turns and takes the medians.

    Args:
        name: of what is computed.
        ours, oracle: each computes the same from the same input.
        repeats: turns, after one that is not counted.
        images: that one call computes; the times are divided by it.
        device: that `ours` works on; its queue is emptied before the clock is read.
    """
    is_cuda = torch.device(device).type == "cuda"
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(repeats + 1):
        for call, spent in zip((ours, oracle), times, strict=True):
            start = time.perf_counter()
            call()
            if is_cuda:
                torch.cuda.synchronize()
            if turn > 0:
                spent.append((time.perf_counter() - start) * 1000 / images)
    return Comparison(name, statistics.median(times[0]), statistics.median(times[1]))
