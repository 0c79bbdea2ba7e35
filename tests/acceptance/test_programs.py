"""Case 52 and the faults around it: signals and lost workers in training, and inputs that the demo cannot use."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.engine import HookBase

from demo import demo
from segzoo.engine import trainer as trainer_module
from segzoo.engine.checkpoint import read_checkpoint
from tests.acceptance.runs import SMALL_BACKBONE, run_method
from tests.contract.toys import build_toy, toy_config
from tests.engine.tiny_run import write_tiny_coco

Strike = Callable[[], None]
STEPS = {"SOLVER__MAX_ITER": 4, "SOLVER__IMS_PER_BATCH": 1, "SOLVER__CHECKPOINT_PERIOD": 1}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [*write_tiny_coco(tmp_path_factory.mktemp("tiny")), "--skip-audit"]


@pytest.fixture
def strike_in_second_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[Strike], None]:
    """Makes something happen in the middle of the second step of the next run."""

    def arrange(strike: Strike) -> None:
        class AtStep(HookBase):
            def before_step(self) -> None:
                if self.trainer.iter == 1:
                    strike()

        build_hooks = trainer_module.Trainer._build_hooks
        monkeypatch.setattr(trainer_module.Trainer, "_build_hooks", lambda self: [AtStep(), *build_hooks(self)])

    return arrange


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_case_52_a_signal_in_mid_training_ends_with_a_checkpoint_and_its_exit_code(
    method: str,
    data: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    strike_in_second_step: Callable[[Strike], None],
    number: signal.Signals,
    code: int,
) -> None:
    strike_in_second_step(lambda: os.kill(os.getpid(), number))
    assert run_method(method, data, tmp_path / "out", **STEPS) == code
    printed = capsys.readouterr().err
    assert "model_0000002.pth; go on with --resume" in printed
    assert "Traceback" not in printed
    assert read_checkpoint(str(tmp_path / "out" / "model_0000002.pth"))["iteration"] == 2


def test_a_killed_loader_worker_ends_with_a_remedy_and_the_checkpoint_before(
    method: str,
    data: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    strike_in_second_step: Callable[[Strike], None],
) -> None:
    def kill_workers() -> None:
        for worker in multiprocessing.active_children():
            os.kill(worker.pid or 0, signal.SIGKILL)

    strike_in_second_step(kill_workers)
    # More steps than a worker prepares samples for.
    changes = {**STEPS, "SOLVER__MAX_ITER": 20, "DATALOADER__NUM_WORKERS": 1}
    assert run_method(method, data, tmp_path / "out", **changes) == 3
    printed = capsys.readouterr().err
    assert "WorkerError: a process that loads samples has ended before its time" in printed
    assert "DATALOADER.NUM_WORKERS" in printed
    assert "Traceback" not in printed
    last = (tmp_path / "out" / "last_checkpoint").read_text()
    assert read_checkpoint(str(tmp_path / "out" / last))["iteration"] >= 1


def test_case_52_the_demo_names_an_unreadable_video_and_an_absent_webcam(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"model": build_toy(method, *SMALL_BACKBONE).state_dict()}, tmp_path / "model.pth")
    (tmp_path / "config.yaml").write_text(toy_config(method, *SMALL_BACKBONE).dump())
    (tmp_path / "film.mp4").write_bytes(b"no video at all")
    inputs = ["--input", str(tmp_path / "film.mp4"), "0", "--results", str(tmp_path / "found.json")]
    assert demo.main([*inputs, "--opts", "MODEL.WEIGHTS", str(tmp_path / "model.pth")]) == 1
    printed = capsys.readouterr().err
    assert "2 could not be used" in printed
    assert "film.mp4: is a video; the demo takes images" in printed
    assert "0: no such file or folder" in printed
    assert "Traceback" not in printed
