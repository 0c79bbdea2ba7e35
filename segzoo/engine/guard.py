"""The one exchange of a step: mean losses over all ranks, and whether any rank must stop all of them.

Shape shorthand:
    A micro-batches of a step (SOLVER.ACCUMULATE), K names of losses.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from detectron2.utils import comm

from segzoo.errors import TrainingError


@dataclass
class StepRecord:
    """What a rank remembers of a step: the losses as tensors on the device, and which images they came from."""

    losses: list[dict[str, torch.Tensor]] = field(default_factory=list)
    images: list[list[dict[str, Any]]] = field(default_factory=list)

    def add(self, batch: list[dict[str, Any]], losses: dict[str, torch.Tensor]) -> None:
        """Notes one micro-batch; nothing waits for the device."""
        self.losses.append({name: loss.detach() for name, loss in losses.items()})
        self.images.append(
            [{"image_id": image.get("image_id"), "file_name": image.get("file_name")} for image in batch]
        )


@dataclass
class StepSummary:
    """The same on every rank.

    Attributes:
        losses: name -> mean over micro-batches and ranks.
        grad_norm: of the accumulated gradient (after the reduction over ranks) before clipping.
        is_finite: no loss of any rank and, when checked, no gradient was NaN or infinite.
        num_stop_requests: ranks that were asked to stop.
    """

    losses: dict[str, float]
    grad_norm: float
    is_finite: bool
    num_stop_requests: int


def summarize_step(
    record: StepRecord, grad_norm: torch.Tensor, check_gradient: bool, stop_requested: bool
) -> StepSummary:
    """Reduces a step over all ranks; costs one all_reduce and one transfer to the host.

    Args:
        record: this rank's losses; every rank must have the same names.
        grad_norm: scalar on the losses' device.
        check_gradient: whether a non-finite gradient norm stops training (not under a loss scaler, which skips it).
        stop_requested: whether this process got a signal to stop.
    """
    names = sorted(record.losses[0])
    stacked = torch.stack([torch.stack([losses[name].float() for name in names]) for losses in record.losses])  # (A, K)
    is_bad = ~torch.isfinite(stacked).all()
    if check_gradient:
        is_bad = is_bad | ~torch.isfinite(grad_norm)
    flags = torch.stack(
        [grad_norm.float(), is_bad.float(), is_bad.new_tensor(float(stop_requested), dtype=torch.float)]
    )
    packed = torch.cat([stacked.mean(dim=0), flags])
    world_size = comm.get_world_size()
    if world_size > 1:
        dist.all_reduce(packed)
    values = packed.tolist()
    means = [value / world_size for value in values[: len(names)]]
    return StepSummary(
        losses=dict(zip(names, means, strict=True)),
        grad_norm=values[-3] / world_size,
        is_finite=values[-2] == 0,
        num_stop_requests=round(values[-1]),
    )


def raise_non_finite(record: StepRecord, grad_norm: torch.Tensor, iteration: int, output_dir: str) -> None:
    """Raises the same TrainingError on every rank; each rank concerned first writes a json of its batch.

    Raises:
        TrainingError: names iteration, rank, loss, value, image ids and files.
    """
    complaint = _describe(record, grad_norm, iteration, output_dir)
    complaints = [text for text in comm.all_gather(complaint) if text]
    raise TrainingError(
        f"iteration {iteration}: a loss or gradient is not finite, training stopped before the weights were updated\n"
        + "\n".join(complaints),
        "look at these images and their annotations; if they are sound, lower SOLVER.BASE_LR, lengthen "
        "SOLVER.WARMUP_ITERS or enable SOLVER.CLIP_GRADIENTS, and --resume from the last checkpoint",
    )


def _describe(record: StepRecord, grad_norm: torch.Tensor, iteration: int, output_dir: str) -> str:
    """This rank's part of the message, "" if its losses and gradient are finite; writes its dump."""
    losses = [{name: loss.item() for name, loss in step.items()} for step in record.losses]
    bad = [[name for name, value in step.items() if not math.isfinite(value)] for step in losses]
    # A bad loss of one rank spoils the reduced gradient of all: gradients are to blame only if no loss is bad.
    is_gradient = not any(comm.all_gather(any(bad)))
    if not any(bad) and not is_gradient:
        return ""
    rank = comm.get_rank()
    path = os.path.join(output_dir, f"nonfinite_iteration{iteration}_rank{rank}.json")
    dump = {
        "iteration": iteration,
        "rank": rank,
        "grad_norm": grad_norm.item(),
        "micro_batches": [
            {"losses": step, "images": images} for step, images in zip(losses, record.images, strict=True)
        ],
    }
    lines = []
    for names, step, images in zip(bad, losses, record.images, strict=True):
        if names or is_gradient:
            what = ", ".join(f"{name} = {step[name]}" for name in names) or f"gradient norm = {grad_norm.item()}"
            where = "; ".join(f"image id {image['image_id']} ({image['file_name']})" for image in images)
            lines.append(f"  rank {rank}: {what}: {where}")
    return "\n".join([*lines, f"  rank {rank}: {_write_dump(path, dump)}"])


def _write_dump(path: str, dump: dict[str, Any]) -> str:
    """Writes the batch and says so; a full disk must not hide the message, nor keep the other ranks waiting for it."""
    try:
        with open(path, "w", encoding="utf-8") as stream:
            json.dump(dump, stream, indent=1, default=str)
    except OSError as error:
        return f"batch could not be written to {path}: {error.strerror}"
    return f"batch written to {path}"
