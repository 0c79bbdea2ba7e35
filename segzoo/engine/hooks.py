"""The trainer's own hooks: evaluation with the best checkpoint, periodic checkpoints, memory."""

from __future__ import annotations

import json
import logging
import math
import os
import resource
from collections.abc import Callable, Mapping
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm

from segzoo.engine.checkpoint import BEST_NAME, FINAL_NAME, periodic_name, write_atomically
from segzoo.engine.distributed import on_main_process

logger = logging.getLogger(__name__)

Results = Mapping[str, Mapping[str, float]]


def is_due(finished: int, period: int, last: int) -> bool:
    """Whether something of this period (0: only at the end) is due after `finished` of `last` iterations."""
    return finished == last or (period > 0 and finished % period == 0)


def find_metric(metrics: Mapping[str, float], wanted: str) -> tuple[str, float] | None:
    """The metric that decides on the best checkpoint: `wanted`, else the same of boxes (a method without masks).

    Args:
        metrics: flat names such as "segm/AP", or "<data set>/segm/AP" with several sets (the first one decides).
        wanted: TEST.BEST_METRIC.
    """
    for name in (wanted, wanted.replace("segm/", "bbox/"), "bbox/AP"):
        for key, value in metrics.items():
            if (key == name or key.endswith(f"/{name}")) and math.isfinite(value):
                return key, value
    return None


def flatten_results(results_per_dataset: Mapping[str, Results]) -> dict[str, float]:
    """{"segm/AP": ...}, with the data set's name in front when there are several."""
    flat: dict[str, float] = {}
    for dataset_name, results in results_per_dataset.items():
        prefix = f"{dataset_name}/" if len(results_per_dataset) > 1 else ""
        for task, metrics in results.items():
            for metric, value in metrics.items():
                flat[f"{prefix}{task}/{metric}"] = float(value)
    return flat


class EvaluationHook(HookBase):
    """Evaluates every TEST.EVAL_PERIOD iterations and at the end; keeps the best weights as model_best.pth.

    It comes after the checkpoint of the same iteration and notes what it has done in evaluation.json, so that a run
    that ends during an evaluation makes up for it when it is resumed.

    Args:
        cfg: the config; TEST.EVAL_PERIOD, TEST.BEST_METRIC and OUTPUT_DIR are used.
        evaluate_all: runs the evaluation on all ranks and returns results by data set ({} on other ranks than 0).
        weights: returns the state dict that was evaluated.
    """

    def __init__(
        self, cfg: CfgNode, evaluate_all: Callable[[], dict[str, Results]], weights: Callable[[], dict[str, Any]]
    ) -> None:
        self._cfg = cfg
        self._evaluate_all = evaluate_all
        self._weights = weights
        self.best_value = -math.inf
        self.best_iteration = 0
        self.last_iteration = 0

    def restore(self) -> None:
        """Reads evaluation.json of the run that is resumed; called on all ranks."""
        state = on_main_process(lambda: _read_json(self._path))
        if state:
            self.best_value = float(state["best_value"])
            self.best_iteration, self.last_iteration = int(state["best_iteration"]), int(state["last_iteration"])

    def before_train(self) -> None:
        if self.trainer.start_iter > self.last_iteration:
            self._evaluate_if_due(self.trainer.start_iter)

    def after_step(self) -> None:
        if not self.trainer.must_stop:
            self._evaluate_if_due(self.trainer.iter + 1)

    @property
    def _path(self) -> str:
        return os.path.join(self._cfg.OUTPUT_DIR, "evaluation.json")

    def _evaluate_if_due(self, finished: int) -> None:
        if not self._cfg.DATASETS.TEST or not is_due(finished, self._cfg.TEST.EVAL_PERIOD, self.trainer.max_iter):
            return
        metrics = flatten_results(self._evaluate_all())
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        self.trainer.storage.put_scalars(**finite, smoothing_hint=False, cur_iter=finished)
        self.last_iteration = finished
        if comm.is_main_process():
            self._keep_best(finite, finished)
            state = {"best_value": self.best_value, "best_iteration": self.best_iteration, "last_iteration": finished}
            write_atomically(self._path, json.dumps(state))
        comm.synchronize()

    def _keep_best(self, metrics: Mapping[str, float], finished: int) -> None:
        found = find_metric(metrics, self._cfg.TEST.BEST_METRIC)
        if found is None:
            logger.warning("No %s among the results: no best checkpoint", self._cfg.TEST.BEST_METRIC)
            return
        name, value = found
        if value <= self.best_value:
            logger.info("%s %.3f; best %.3f at %d", name, value, self.best_value, self.best_iteration)
            return
        self.best_value, self.best_iteration = value, finished
        state = {"model": self._weights(), "iteration": finished, name: value, "config": self._cfg.dump()}
        write_atomically(os.path.join(self._cfg.OUTPUT_DIR, BEST_NAME), state)
        logger.info("%s %.3f: new best, saved as %s", name, value, BEST_NAME)


class CheckpointHook(HookBase):
    """Saves every SOLVER.CHECKPOINT_PERIOD iterations and at the end; comes after the scheduler and the writers.

    Args:
        period: iterations between two checkpoints; 0 or less = only at the end.
        save: writes the checkpoint of the given file name; called on all ranks.
    """

    def __init__(self, period: int, save: Callable[[str], object]) -> None:
        self._period = period
        self._save = save

    def after_step(self) -> None:
        finished = self.trainer.iter + 1
        if finished == self.trainer.max_iter:
            self._save(FINAL_NAME)
        elif is_due(finished, self._period, self.trainer.max_iter):
            self._save(periodic_name(finished))


class LearningRateHook(HookBase):
    """Logs the rate of the step as "lr" and moves the schedule on.

    "lr" is BASE_LR times the schedule's factor: what parameters without a factor of their own learn at.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, scheduler: torch.optim.lr_scheduler.LRScheduler, base_lr: float
    ) -> None:
        self._scheduler = scheduler
        self._base_lr = base_lr
        groups = optimizer.param_groups
        self._group = next((group for group in groups if group["initial_lr"] == base_lr), groups[0])

    def after_step(self) -> None:
        factor = self._base_lr / self._group["initial_lr"] if self._group["initial_lr"] else 1.0
        self.trainer.storage.put_scalar("lr", self._group["lr"] * factor, smoothing_hint=False)
        self._scheduler.step()


class MemoryHook(HookBase):
    """Logs the peak memory so far in MiB: of the GPU where one is used, else of this process."""

    def __init__(self, period: int, device: torch.device) -> None:
        self._period = period
        self._device = device

    def after_step(self) -> None:
        if not is_due(self.trainer.iter + 1, self._period, self.trainer.max_iter):
            return
        if self._device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self._device) / 2**20
        else:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        self.trainer.storage.put_scalar("[metric]max_memory_mb", peak, smoothing_hint=False)


def _read_json(path: str) -> dict[str, Any]:
    """The content, {} where the file is absent or damaged: only the memory of the best evaluation is lost with it."""
    try:
        with open(path, encoding="utf-8") as stream:
            content = json.load(stream)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
