"""The trainer: one class on Detectron2's TrainerBase for every method, on one or many processes, CPU or CUDA."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import TrainerBase, hooks
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, EventStorage, TensorboardXWriter
from torch.nn.parallel import DistributedDataParallel

from segzoo.data.loader import naming_lost_workers
from segzoo.engine.checkpoint import (
    periodic_name,
    persistent_buffers,
    random_state,
    refuse_other_config,
    save_checkpoint,
    set_random_state,
)
from segzoo.engine.device import autocast_dtype, device_text
from segzoo.engine.distributed import main_process_buffers, wrap_model
from segzoo.engine.ema import ModelEma
from segzoo.engine.evaluate import evaluate_datasets
from segzoo.engine.guard import StepRecord, raise_non_finite, summarize_step
from segzoo.engine.hooks import CheckpointHook, EvaluationHook, LearningRateHook, MemoryHook, Results
from segzoo.engine.optimizer import build_optimizer, clip_gradients
from segzoo.engine.resume import read_last_checkpoint, restore_optimizer
from segzoo.engine.stop import StopRequest
from segzoo.engine.weights import load_weights
from segzoo.engine.writers import MetricsJsonWriter
from segzoo.errors import CheckpointError

logger = logging.getLogger(__name__)

Batch = list[dict[str, Any]]
LoaderFactory = Callable[[int], Iterable[Batch]]


class Trainer(TrainerBase):
    """Trains the model of a config; see docs/training.md for what a resume and an exit code promise.

    Args:
        cfg: a full config after `segzoo.engine.setup.setup`; OUTPUT_DIR exists.
        resume: go on from OUTPUT_DIR's last checkpoint; without one, start from MODEL.WEIGHTS.
        train_loader: start position (micro-batches this rank has consumed) -> endless micro-batches; by default
            `segzoo.data.loader.build_train_loader`.
        force: resume even with another config.
        allow_head_mismatch: load what fits of MODEL.WEIGHTS.

    Attributes:
        model: the bare model, never wrapped.
        must_stop: a rank was asked to stop; this step is the last one.
        num_micro_batches: consumed by this rank since the start of the run; the position of an exact resume.
    """

    def __init__(
        self,
        cfg: CfgNode,
        *,
        resume: bool,
        train_loader: LoaderFactory | None = None,
        force: bool = False,
        allow_head_mismatch: bool = False,
    ) -> None:
        super().__init__()
        self.cfg = cfg
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.device = torch.device(cfg.MODEL.DEVICE)
        self.num_micro_batches = 0
        self._accumulate = cfg.SOLVER.ACCUMULATE
        self._build_train_loader = train_loader or _default_loader(cfg)
        self._stop = StopRequest()
        self.must_stop = False
        self._saved_iteration = 0
        # Of all steps since this process began, waiting for data included.
        self._seconds = 0.0
        self._loader: Iterable[Batch] = ()
        self._batches: Iterator[Batch] = iter(())
        checkpoint = self._read_last_checkpoint(force) if resume else None
        self.model = build_model(cfg)
        if cfg.SOLVER.CHANNELS_LAST:
            self.model.to(memory_format=torch.channels_last)
        if checkpoint is None:
            load_weights(self.model, cfg.MODEL.WEIGHTS, allow_head_mismatch)
        self.model.train()
        self._parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = build_optimizer(cfg, self.model)
        self.scheduler = build_lr_scheduler(cfg, self.optimizer)
        self._amp_dtype = autocast_dtype(cfg, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self._amp_dtype == torch.float16)
        self._random_state: dict[str, Any] | None = None
        # Averaging starts from the weights that wrapping has made equal on all ranks.
        self._wrapped = wrap_model(self.model, self.device)
        ema = cfg.SOLVER.EMA
        self.ema = ModelEma(self.model, ema.DECAY, ema.RAMP) if ema.ENABLED else None
        self._evaluation = EvaluationHook(cfg, self.evaluate, self._evaluated_weights)
        if checkpoint is not None:
            self._restore(checkpoint)
        self.register_hooks(self._build_hooks())

    def train(self) -> None:
        """Runs to SOLVER.MAX_ITER.

        Raises:
            TrainingError: a loss that is not finite on any rank, or a checkpoint that cannot be written.
            TrainingStopped: after SIGTERM or Ctrl-C, with a checkpoint of the last finished step.
        """
        start = self.iter = self.start_iter
        logger.info("Training iterations %d to %d on %s", start, self.max_iter, device_text(self.device))
        with self._stop.watching(), naming_lost_workers(), EventStorage(start) as self.storage:
            try:
                if start < self.max_iter:
                    self._start_loader()
                self.before_train()
                for iteration in range(start, self.max_iter):
                    self.iter = iteration
                    self.before_step()
                    start_of_step = time.perf_counter()
                    self.run_step()
                    self._seconds += time.perf_counter() - start_of_step
                    self.storage.put_scalar("train_time", self._seconds, smoothing_hint=False)
                    self.after_step()
                    self._end_if_asked()
                self.iter = max(start, self.max_iter)
            finally:
                self.after_train()
                self._log_what_was_left_out()
                self._batches = iter(())

    def run_step(self) -> None:
        """One optimiser step over SOLVER.ACCUMULATE micro-batches; all ranks stop together if a loss is not finite."""
        record = StepRecord()
        self.optimizer.zero_grad(set_to_none=True)
        data_seconds = 0.0
        for index in range(self._accumulate):
            start = time.perf_counter()
            batch = next(self._batches)
            data_seconds += time.perf_counter() - start
            self._accumulate_gradient(batch, record, is_last=index == self._accumulate - 1)
        self.scaler.unscale_(self.optimizer)
        grad_norm = clip_gradients(self.cfg, self._parameters)
        summary = summarize_step(
            record, grad_norm, check_gradient=not self.scaler.is_enabled(), stop_requested=self._stop.signal != 0
        )
        if not summary.is_finite:
            raise_non_finite(record, grad_norm, self.iter, self.cfg.OUTPUT_DIR)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update()
        self.num_micro_batches += self._accumulate
        self.must_stop = summary.num_stop_requests > 0
        self.storage.put_scalars(total_loss=sum(summary.losses.values()), **summary.losses, grad_norm=summary.grad_norm)
        self.storage.put_scalar("data_time", data_seconds)

    def evaluate(self) -> dict[str, Results]:
        """Results of every set of DATASETS.TEST with the averaged weights if there are any; {} on other ranks.

        All ranks use rank 0's buffers (batch norm's statistics are each rank's own), those that are saved.

        The random state is kept, so that a run's losses do not depend on when it is evaluated.
        """
        state = random_state()
        averaged = self.ema.averaged_weights() if self.ema is not None else contextlib.nullcontext()
        # Steps that are not saved would be lost; a signal then waits for the end of the next step, which saves them.
        is_saved = self._saved_iteration * self._accumulate == self.num_micro_batches
        leaving = self._stop.immediate() if is_saved else contextlib.nullcontext()
        with averaged, main_process_buffers(self.model), leaving:
            results = evaluate_datasets(self.cfg, self.model)
        set_random_state(state)
        return results

    def save(self, name: str) -> None:
        """Writes the whole state as OUTPUT_DIR/name from rank 0; called on all ranks."""
        ranks = comm.gather({"random": random_state(), "buffers": _buffers_on_cpu(self.model)})
        path = os.path.join(self.cfg.OUTPUT_DIR, name)
        if comm.is_main_process():
            state = {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
                "scaler": self.scaler.state_dict(),
                "ema": self.ema.state_dict() if self.ema is not None else None,
                "ranks": ranks,
                "iteration": self.iter + 1,
                "num_micro_batches": self.num_micro_batches,
                "config": self.cfg.dump(),
            }
            save_checkpoint(self.cfg.OUTPUT_DIR, name, state, keep=self.cfg.SOLVER.CHECKPOINT_KEEP)
        comm.synchronize()
        self._stop.checkpoint, self._saved_iteration = path, self.iter + 1

    def _start_loader(self) -> None:
        self._loader = self._build_train_loader(self.num_micro_batches)
        batches = iter(self._loader)
        # Whatever starting the loader draws from the global generators, the restored state comes after it.
        self._batches = itertools.chain([next(batches)], batches)
        if self._random_state is not None:
            set_random_state(self._random_state)

    def _log_what_was_left_out(self) -> None:
        if left_out := getattr(self._loader, "summary", str)():
            logger.warning("Left out of the samples since the start of this run:\n%s", left_out)

    def _accumulate_gradient(self, batch: Batch, record: StepRecord, is_last: bool) -> None:
        # Gradients need one reduction over ranks a step, with the last micro-batch.
        is_silent = isinstance(self._wrapped, DistributedDataParallel) and not is_last
        with self._wrapped.no_sync() if is_silent else contextlib.nullcontext():  # type: ignore[operator]
            with torch.autocast(self.device.type, dtype=self._amp_dtype, enabled=self._amp_dtype is not None):
                losses = self._wrapped(batch)
            total = torch.stack([loss.float() for loss in losses.values()]).sum() / self._accumulate
            self.scaler.scale(total).backward()
        record.add(batch, losses)

    def _end_if_asked(self) -> None:
        if self.must_stop:
            if self._saved_iteration != self.iter + 1:
                self.save(periodic_name(self.iter + 1))
            raise self._stop.error()

    def _read_last_checkpoint(self, force: bool) -> dict[str, Any] | None:
        checkpoint = read_last_checkpoint(self.cfg.OUTPUT_DIR)
        if checkpoint is None:
            logger.info("No checkpoint in %s to resume from: starting anew", self.cfg.OUTPUT_DIR)
            return None
        refuse_other_config(checkpoint["config"], self.cfg, force)
        logger.info("Resuming from iteration %d in %s", checkpoint["iteration"], self.cfg.OUTPUT_DIR)
        return checkpoint

    def _restore(self, checkpoint: dict[str, Any]) -> None:
        try:
            self.model.load_state_dict(checkpoint["model"])
            restore_optimizer(self.cfg, checkpoint, self.model, self.optimizer, self.scheduler)
            if self.scaler.is_enabled() and checkpoint["scaler"]:
                self.scaler.load_state_dict(checkpoint["scaler"])
            if self.ema is not None and checkpoint["ema"] is not None:
                self.ema.load_state_dict(checkpoint["ema"])
            elif self.ema is not None:  # newly asked for: it starts from the weights just restored
                self.ema = ModelEma(self.model, self.ema.decay, self.ema.ramp)
            self._restore_rank(checkpoint["ranks"])
        except (RuntimeError, KeyError, ValueError) as error:
            raise CheckpointError(f"the last checkpoint does not fit: {error}", "resume with its own config") from error
        self._evaluation.restore()
        self.iter = self.start_iter = checkpoint["iteration"]
        self._saved_iteration = self.start_iter
        # Equal to the saved count unless --force changed the accumulation.
        self.num_micro_batches = self.start_iter * self._accumulate

    def _restore_rank(self, ranks: list[dict[str, Any]]) -> None:
        if len(ranks) != comm.get_world_size():
            logger.warning("Saved by %d processes, resumed by %d: not exact", len(ranks), comm.get_world_size())
            return
        own = ranks[comm.get_rank()]
        self._random_state = own["random"]
        for name, buffer in persistent_buffers(self.model).items():
            if name in own["buffers"]:
                buffer.copy_(own["buffers"][name])

    def _build_hooks(self) -> list[hooks.HookBase]:
        solver = self.cfg.SOLVER
        chain = [
            hooks.IterationTimer(warmup_iter=1),
            LearningRateHook(self.optimizer, self.scheduler, solver.BASE_LR),
            MemoryHook(solver.LOG_PERIOD, self.device),
        ]
        if comm.is_main_process():
            writers = [
                CommonMetricPrinter(self.max_iter),
                MetricsJsonWriter(os.path.join(self.cfg.OUTPUT_DIR, "metrics.json"), self.start_iter),
                TensorboardXWriter(self.cfg.OUTPUT_DIR),
            ]
            chain.append(hooks.PeriodicWriter(writers, period=solver.LOG_PERIOD))
        # An evaluation that fails or is stopped costs nothing: the state is saved, and it is made up for on resume.
        return [*chain, CheckpointHook(solver.CHECKPOINT_PERIOD, self.save), self._evaluation]

    def _evaluated_weights(self) -> dict[str, Any]:
        if self.ema is None:
            return self.model.state_dict()
        return {**self.model.state_dict(), **self.ema.shadow}


def _default_loader(cfg: CfgNode) -> LoaderFactory:
    from segzoo.data.loader import build_train_loader

    return lambda start_position: build_train_loader(cfg, start_position)


def _buffers_on_cpu(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer.detach().cpu() for name, buffer in persistent_buffers(model).items()}
