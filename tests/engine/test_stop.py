"""When a signal ends a run: at once where nothing is at stake, else after the step, with a checkpoint."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from segzoo.engine import trainer as trainer_module
from segzoo.engine.checkpoint import read_checkpoint
from segzoo.engine.stop import StopRequest, TrainingInterrupted, TrainingStopped
from segzoo.engine.trainer import Trainer
from tests.engine.tiny_run import tiny_config, tiny_options, write_tiny_coco


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_is_noted_and_the_old_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    stop = StopRequest()
    with stop.watching():
        terminate()
        assert stop.signal == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_within_immediate_a_signal_ends_at_once() -> None:
    stop = StopRequest()
    with stop.watching():
        with pytest.raises(TrainingStopped), stop.immediate():
            terminate()


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, TrainingStopped), (signal.SIGINT, TrainingInterrupted)])
def test_a_signal_that_came_before_ends_immediate_at_its_start(number: int, error: type[TrainingStopped]) -> None:
    stop = StopRequest()
    with stop.watching():
        os.kill(os.getpid(), number)
        with pytest.raises(error) as caught, stop.immediate():
            pytest.fail("entered")
        assert caught.type is error


class Signalled:
    """A run of TinyNet that gets SIGTERM in the checkpoint write, or in the evaluation, of this number (from 0)."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **options: object) -> None:
        self.flags = write_tiny_coco(tmp_path)
        self.flags += ["--val-json", self.flags[1], "--val-images", self.flags[3], "--skip-audit"]
        self.flags += tiny_options(tmp_path / "out", **options)
        self.at = ("", 0)
        self.num = {"save": 0, "evaluation": 0}
        self.save = trainer_module.save_checkpoint
        monkeypatch.setattr(trainer_module, "save_checkpoint", self._save)
        monkeypatch.setattr(trainer_module, "evaluate_datasets", self._evaluate)

    def _strike(self, what: str) -> None:
        number = self.num[what]
        self.num[what] += 1
        if self.at == (what, number):
            terminate()

    def _save(self, *args: object, **kwargs: object) -> None:
        self._strike("save")
        self.save(*args, **kwargs)  # type: ignore[arg-type]

    def _evaluate(self, *_: object) -> dict:
        self._strike("evaluation")
        return {"tiny": {"segm": {"AP": 1.0}}}

    def run(self, *flags: str) -> None:
        cfg = tiny_config([*self.flags, *flags])
        Trainer(cfg, resume="--resume" in flags).train()


def test_a_signal_in_the_last_checkpoint_write_skips_the_evaluation_until_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Signalled(tmp_path, monkeypatch, SOLVER__MAX_ITER=2)
    run.at = ("save", 0)
    with pytest.raises(TrainingStopped, match=r"(?s)SIGTERM.*model_final.pth; go on with --resume"):
        run.run()
    assert run.num == {"save": 1, "evaluation": 0}
    run.run("--resume")
    assert run.num == {"save": 1, "evaluation": 1}


@pytest.mark.parametrize(("checkpoint_period", "saved"), [(2, 2), (100, 3)])
def test_a_signal_in_an_evaluation_loses_no_finished_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint_period: int, saved: int
) -> None:
    # Without a checkpoint of the evaluated step the run goes on for one more step, which is saved.
    options = {"SOLVER__MAX_ITER": 6, "TEST__EVAL_PERIOD": 2, "SOLVER__CHECKPOINT_PERIOD": checkpoint_period}
    run = Signalled(tmp_path, monkeypatch, **options)
    run.at = ("evaluation", 0)
    with pytest.raises(TrainingStopped, match=rf"model_{saved:07d}.pth"):
        run.run()
    assert read_checkpoint(str(tmp_path / "out" / f"model_{saved:07d}.pth"))["iteration"] == saved
    run.at = ("", 0)
    run.run("--resume")
    assert (tmp_path / "out" / "model_final.pth").is_file()


def test_a_signal_in_an_evaluation_made_up_for_on_resume_ends_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Signalled(tmp_path, monkeypatch, SOLVER__MAX_ITER=2)
    for number in (0, 1):
        run.at = ("evaluation", number)
        with pytest.raises(TrainingStopped):
            run.run(*(["--resume"] if number else []))
        assert run.num == {"save": 1, "evaluation": number + 1}
    run.run("--resume")
    assert run.num == {"save": 1, "evaluation": 3}
