"""What one of two ranks does with the trainer of each method: a loss that is not finite, and an exact resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn

from projects import get_cfg
from segzoo.engine.arguments import build_argument_parser
from segzoo.engine.setup import setup
from segzoo.engine.trainer import Trainer
from segzoo.errors import TrainingError
from tests.acceptance.runs import METHODS, method_words

# The step in which rank 1 goes wrong, and the one in which both are killed, after the checkpoint of two.
BAD_STEP, KILLED_STEP, NUM_STEPS = 1, 3, 4
# Averaged weights, two micro-batches a step, a loader worker.
LONG: dict[str, Any] = {
    "SOLVER__MAX_ITER": NUM_STEPS,
    "SOLVER__CHECKPOINT_PERIOD": 2,
    "SOLVER__ACCUMULATE": 2,
    "SOLVER__EMA__ENABLED": True,
    "DATALOADER__NUM_WORKERS": 1,
}


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours may catch it."""


class KillAt(HookBase):
    """Ends the run before this step, without a word."""

    def __init__(self, step: int) -> None:
        self.step = step

    def before_step(self) -> None:
        if self.trainer.iter == self.step:
            raise Killed


class SpoilFeatures(HookBase):
    """From this step on the backbone gives NaN on rank 1; the weights before that step are kept."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.before: dict[str, torch.Tensor] = {}

    def before_step(self) -> None:
        if self.trainer.iter != self.step:
            return
        self.before = {name: value.detach().clone() for name, value in self.trainer.model.named_parameters()}
        if comm.get_rank() == 1:
            self.trainer.model.backbone.register_forward_hook(_not_a_number)


def _not_a_number(module: nn.Module, inputs: object, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: feature * float("nan") for name, feature in features.items()}


def trainer_of(method: str, data: list[str], output_dir: Path, *flags: str, **changes: object) -> Trainer:
    """The trainer of train_net.py for a method, in this process."""
    words = [*flags, *data, *method_words(method, output_dir, **changes)]
    return Trainer(setup(get_cfg(), build_argument_parser().parse_intermixed_args(words)), resume="--resume" in flags)


def stop_at_nan(method: str, data: list[str], folder: Path) -> dict[str, Any]:
    """How a run ends whose features are NaN on rank 1: the error and its step, and whether the weights have moved."""
    trainer, spoil = (
        trainer_of(method, data, folder / f"{method}_nan", SOLVER__MAX_ITER=NUM_STEPS),
        SpoilFeatures(BAD_STEP),
    )
    trainer.register_hooks([spoil])
    try:
        trainer.train()
    except TrainingError as error:
        weights = dict(trainer.model.named_parameters())
        has_moved = any(not torch.equal(weights[name], value) for name, value in spoil.before.items())
        return {"message": str(error), "step": trainer.iter, "has_moved": has_moved}
    return {"message": "", "step": trainer.iter, "has_moved": True}


def break_and_resume(method: str, data: list[str], folder: Path) -> None:
    """An unbroken run in <method>_whole, and one that is killed and resumed in <method>_broken."""
    trainer_of(method, data, folder / f"{method}_whole", **LONG).train()
    trainer = trainer_of(method, data, folder / f"{method}_broken", **LONG)
    trainer.register_hooks([KillAt(KILLED_STEP)])
    try:
        trainer.train()
    except Killed:
        del trainer
    trainer_of(method, data, folder / f"{method}_broken", "--resume", **LONG).train()


def run_trainers(data: list[str], folder: Path) -> dict[str, dict[str, Any]]:
    """Both for all methods: {method: what `stop_at_nan` gives}."""
    outcomes = {}
    for method in METHODS:
        outcomes[method] = stop_at_nan(method, data, folder)
        break_and_resume(method, data, folder)
    return outcomes
