"""A run that is killed and resumed gives the losses of the unbroken run, bit for bit."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.engine.tiny_run import read_losses, tiny_options, write_tiny_coco

REPOSITORY = Path(__file__).resolve().parents[2]


def run_tiny(arguments: list[str], prefix: tuple[str, ...] = (sys.executable,), **environment: str):
    """tiny_run.py in a process group of its own, which is gone when this returns."""
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [*prefix, str(REPOSITORY / "tests" / "engine" / "tiny_run.py"), *arguments],
        env={**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=240)
    finally:
        # Ranks and loader workers of a killed parent must not outlive the test.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, output


# The hardest mix: averaged weights, two micro-batches a step, two loader workers, clipping, bias groups.
HARD = {
    "SOLVER__EMA__ENABLED": True,
    "SOLVER__EMA__DECAY": 0.9,
    "SOLVER__ACCUMULATE": 2,
    "DATALOADER__NUM_WORKERS": 2,
    "SOLVER__CHECKPOINT_PERIOD": 3,
    "SOLVER__CLIP_GRADIENTS__ENABLED": True,
    "SOLVER__BIAS_LR_FACTOR": 2.0,
    "SOLVER__MAX_ITER": 9,
}


def assert_killed_run_equals_unbroken(tmp_path: Path, flags: list[str], calls_before_kill: int, **changes) -> None:
    data = [*write_tiny_coco(tmp_path), "--skip-audit", *flags]
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    code, output = run_tiny(data + tiny_options(unbroken, **HARD, **changes))
    assert code == 0, output
    arguments = data + tiny_options(broken, **HARD, **changes)
    code, output = run_tiny(arguments, TINY_FAULT="KILL", TINY_FAULT_ITERATION=str(calls_before_kill))
    assert code != 0, output
    assert (broken / "model_0000003.pth").is_file(), output
    assert not (broken / "model_final.pth").exists()
    code, output = run_tiny([*arguments, "--resume"])
    assert code == 0, output
    assert "Resuming from" in output

    expected, resumed = read_losses(unbroken), read_losses(broken)
    assert sorted(resumed) == list(range(9))
    assert resumed == expected
    final = [torch.load(folder / "model_final.pth", weights_only=True) for folder in (unbroken, broken)]
    assert final[0]["ema"]["updates"] == final[1]["ema"]["updates"] == 9
    for name, tensor in final[0]["ema"]["shadow"].items():
        assert torch.equal(tensor, final[1]["ema"]["shadow"][name]), name
    for name, tensor in final[0]["model"].items():
        assert torch.equal(tensor, final[1]["model"][name]), name


def test_resume_after_sigkill_gives_the_unbroken_losses(tmp_path: Path) -> None:
    # Killed in the 10th forward pass: the second micro-batch of iteration 4, after the checkpoint of 3 iterations.
    assert_killed_run_equals_unbroken(tmp_path, [], calls_before_kill=9)


@pytest.mark.slow
def test_resume_of_two_processes_gives_the_unbroken_losses(tmp_path: Path) -> None:
    assert_killed_run_equals_unbroken(tmp_path, ["--num-processes", "2"], calls_before_kill=9)


def test_sigterm_saves_and_exits_75_and_the_resumed_run_equals_the_unbroken(tmp_path: Path) -> None:
    data = [*write_tiny_coco(tmp_path), "--skip-audit"]
    options = {"SOLVER__MAX_ITER": 6, "SOLVER__EMA__ENABLED": True, "DATALOADER__NUM_WORKERS": 1}
    stopped = data + tiny_options(tmp_path / "stopped", **options)
    # As clusters do it: to every process of the group, loader workers too.
    code, output = run_tiny(stopped, TINY_FAULT="GROUP_TERM", TINY_FAULT_ITERATION="2")
    assert code == 75, output
    assert "--resume" in output
    assert "Traceback" not in output
    assert (tmp_path / "stopped" / "model_0000003.pth").is_file()
    code, output = run_tiny([*stopped, "--resume"])
    assert code == 0, output
    code, output = run_tiny(data + tiny_options(tmp_path / "whole", **options))
    assert code == 0, output
    assert read_losses(tmp_path / "stopped") == read_losses(tmp_path / "whole")


def test_ctrl_c_keeps_a_checkpoint_and_exits_130(tmp_path: Path) -> None:
    data = [*write_tiny_coco(tmp_path), "--skip-audit"]
    code, output = run_tiny(data + tiny_options(tmp_path / "out"), TINY_FAULT="INT", TINY_FAULT_ITERATION="1")
    assert code == 130, output
    assert "Traceback" not in output
    assert (tmp_path / "out" / "model_0000002.pth").is_file()
