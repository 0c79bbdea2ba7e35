"""Times of two ways to compute the same, measured in turns in one process, so that only their ratio is claimed."""

from __future__ import annotations

import statistics
import time
import tracemalloc
from collections.abc import Callable
from typing import Any, NamedTuple

import torch


class Comparison(NamedTuple):
    """Median times of the fast way and of its oracle, in ms, and perhaps the memory that each adds, in MiB."""

    name: str
    ours_ms: float
    oracle_ms: float
    ours_mb: float | None = None
    oracle_mb: float | None = None

    @property
    def ratio(self) -> float:
        """How many times faster ours is."""
        return self.oracle_ms / self.ours_ms

    def as_dict(self) -> dict[str, Any]:
        """Plain values for json."""
        columns = ("ours_ms", "oracle_ms", "ours_mb", "oracle_mb")
        rounded = {key: round(value, 3) for key in columns if (value := getattr(self, key)) is not None}
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


def compare_memory(row: Comparison, ours: Callable[[], Any], oracle: Callable[[], Any]) -> Comparison:
    """`row` with the memory that one call of each adds at its peak on the CPU."""
    return row._replace(ours_mb=peak_memory_mb(ours), oracle_mb=peak_memory_mb(oracle))


def peak_memory_mb(call: Callable[[], Any]) -> float:
    """MiB that a call holds at most on the CPU beside what was there before: torch's and numpy's arrays.

    The two peaks are added up, even if they do not meet in time.
    """
    tracemalloc.start()
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
            call()
        numpy_peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    held, peak = 0, 0
    # What an operator allocates counts for itself, frees and the rest stand between them as events of their own.
    for event in sorted(profiler.events(), key=lambda event: event.time_range.start):
        held += event.self_cpu_memory_usage
        peak = max(peak, held)
    return (peak + numpy_peak) / 2**20
