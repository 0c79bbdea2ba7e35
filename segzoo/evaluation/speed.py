"""How long models take for an image, by stage, measured in turns so that the machine's moods hit all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from detectron2.structures import Instances
from torch import nn

from segzoo.evaluation.stages import STAGES, Function, StageClock, watched
from segzoo.evaluation.tables import markdown_table, text_table
from segzoo.evaluation.timing import peak_memory_mb

# Name -> type that autocast computes in; None: without autocast.
PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}
# Sums of stages that are further from the whole than this are said to be.
TOLERANCE = 0.05


@dataclass
class Subject:
    """A model with its input, in one precision.

    predict: from the images to detections on the host; tells the clock of the stages that it makes itself. modules,
    functions: where the other stages are, see `watched`.
    """

    name: str
    batch: int
    precision: str
    model: nn.Module
    predict: Callable[[StageClock], list[Instances]]
    modules: Mapping[str, Sequence[nn.Module]]
    functions: Mapping[str, Sequence[Function]]


@dataclass
class SpeedRow:
    """Times in ms an image of a batch.

    whole_ms: of each turn, by the host's clock and without any stage being looked at. stages_ms: of each turn.
    detections: mean number an image. peak_mb: MiB of the model and of what a batch adds at its peak, on the device.
    """

    name: str
    batch: int
    precision: str
    detections: float
    peak_mb: float
    whole_ms: list[float] = field(default_factory=list)
    stages_ms: dict[str, list[float]] = field(default_factory=lambda: {stage: [] for stage in STAGES})

    @property
    def stage_share(self) -> float:
        """Median of the stages' sums, as a share of the whole's median."""
        sums = [sum(turn) for turn in zip(*self.stages_ms.values(), strict=True)]
        return statistics.median(sums) / statistics.median(self.whole_ms)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for json."""
        return {
            "config_file": self.name,
            "precision": self.precision,
            "batch": self.batch,
            "detections_per_image": round(self.detections, 2),
            "peak_mib": round(self.peak_mb, 1),
            "images_per_second": round(1000 / statistics.median(self.whole_ms), 2),
            "whole_ms": summarize(self.whole_ms),
            "stages_ms": {stage: summarize(times) for stage, times in self.stages_ms.items()},
            "stages_share_of_whole": round(self.stage_share, 3),
        }


def summarize(times_ms: Sequence[float]) -> dict[str, float]:
    """Median and 95th percentile."""
    return {
        "median": round(statistics.median(times_ms), 3),
        "p95": round(float(np.percentile(times_ms, 95)), 3),
    }


def measure_in_turns(
    subjects: Sequence[Subject], *, device: torch.device, repeats: int, warm_up: int
) -> list[SpeedRow]:
    """Lets all subjects predict in turns, each turn once uncounted, once for the whole time and once for its stages.

    Args:
        subjects: what is measured.
        device: where all of them are.
        repeats: turns that count, at least 1.
        warm_up: turns before, at least 1; the first tells detections and memory.
    """
    rows = []
    for subject in subjects:
        detections, peak_mb = _look(subject, device)
        rows.append(SpeedRow(subject.name, subject.batch, subject.precision, detections, peak_mb))
    for turn in range(1 - warm_up, repeats):
        for subject, row in zip(subjects, rows, strict=True):
            # After another model the caches are cold; of the two that count each is first in every other turn.
            subject.predict(StageClock(device))
            if turn % 2:
                stages_ms = _stages(subject, device)
                whole_ms = _whole(subject, device)
            else:
                whole_ms = _whole(subject, device)
                stages_ms = _stages(subject, device)
            if turn < 0:
                continue
            row.whole_ms.append(whole_ms / subject.batch)
            for stage, times in row.stages_ms.items():
                times.append(stages_ms.get(stage, 0.0) / subject.batch)
    return rows


def _look(subject: Subject, device: torch.device) -> tuple[float, float]:
    """Detections an image, and MiB of the model and of what a batch adds at its peak."""
    own_mb = sum(value.numel() * value.element_size() for value in _values(subject.model)) / 2**20
    found: list[Instances] = []

    def predict() -> None:
        found[:] = subject.predict(StageClock(device))

    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        predict()
        torch.cuda.synchronize()
        added_mb = (torch.cuda.max_memory_allocated(device) - held) / 2**20
    else:
        added_mb = peak_memory_mb(predict)
    return sum(map(len, found)) / len(found), own_mb + added_mb


def _values(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


def _whole(subject: Subject, device: torch.device) -> float:
    # A clock of its own that nobody reads: its few marks are those that a stage's pass has, too.
    clock = StageClock(torch.device("cpu"))
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    subject.predict(clock)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1000


def _stages(subject: Subject, device: torch.device) -> dict[str, float]:
    clock = StageClock(device)
    if device.type == "cuda":
        torch.cuda.synchronize()
    with watched(clock, subject.modules, subject.functions):
        subject.predict(clock)
    return clock.milliseconds()


def can_compute(precision: str, device: torch.device) -> str:
    """Why torch has no such precision on a device, or "" if it has."""
    dtype = PRECISIONS[precision]
    if dtype is None:
        return ""
    try:
        with torch.no_grad(), torch.autocast(device.type, dtype):
            image = torch.ones(1, 8, 4, 4, device=device)
            out = nn.Linear(8, 2).to(device)(nn.Conv2d(8, 8, 3).to(device)(image).mean(dim=(2, 3)))
    except RuntimeError as error:
        return f"torch {torch.__version__} cannot compute {precision} on {device.type}: {str(error).splitlines()[0]}"
    if out.dtype != dtype:
        return f"torch {torch.__version__} has no {precision} on {device.type}: its autocast gives {out.dtype}"
    return ""


def speed_table(rows: Sequence[SpeedRow], *, markdown: bool = False) -> str:
    """Medians an image of whole and stages, its 95th percentile, detections and memory; a line a row."""
    header = ["config", "precision", "batch", "ms", "p95", *STAGES, "sum", "found", "MiB"]
    cells = []
    for row in rows:
        whole = summarize(row.whole_ms)
        stages = [f"{statistics.median(times):.1f}" for times in row.stages_ms.values()]
        numbers = [f"{whole['median']:.1f}", f"{whole['p95']:.1f}", *stages, f"{row.stage_share:.0%}"]
        ends = [f"{row.detections:.0f}", f"{row.peak_mb:.0f}"]
        cells.append([row.name, row.precision, str(row.batch), *numbers, *ends])
    return (markdown_table if markdown else text_table)(header, cells)


def warnings_of(rows: Sequence[SpeedRow]) -> list[str]:
    """What a reader must know of rows whose stages do not add up to the whole."""
    apart = [row.stage_share for row in rows if abs(row.stage_share - 1) > TOLERANCE]
    if not apart:
        return []
    return [
        f"in {len(apart)} of {len(rows)} rows the stages are {min(apart):.0%} to {max(apart):.0%} of the whole, "
        "measured in passes of their own: the machine was not even, or the turns were too few (--repeats)"
    ]
