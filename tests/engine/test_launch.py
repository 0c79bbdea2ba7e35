"""Failing ranks: whose message is printed and whose exit code counts."""

from __future__ import annotations

import argparse

import pytest
import torch
import torch.distributed as dist

from segzoo.engine.arguments import build_argument_parser
from segzoo.engine.launch import launch
from segzoo.errors import DatasetError


def fail_on_rank_1(args: argparse.Namespace) -> None:
    """Rank 1 meets bad data (or a bug, with --eval-only) while rank 0 waits for it."""
    if dist.get_rank() == 1:
        raise ZeroDivisionError("a bug") if args.eval_only else DatasetError("image 7 is bad", "repair it")
    dist.barrier()


def launch_two(capfd: pytest.CaptureFixture[str], *flags: str) -> tuple[int, str]:
    code = launch(fail_on_rank_1, build_argument_parser().parse_args(["--num-processes", "2", *flags]))
    return code, capfd.readouterr().err


def test_the_message_of_the_rank_at_fault_is_not_buried(capfd: pytest.CaptureFixture[str]) -> None:
    code, printed = launch_two(capfd)
    assert code == 2, "rank 0's broken connection ends with 1, but it is not the cause"
    assert "DatasetError: image 7 is bad\n  -> repair it\n" in printed
    assert "Traceback" not in printed


def test_tracebacks_of_bugs_are_printed_with_their_rank(capfd: pytest.CaptureFixture[str]) -> None:
    code, printed = launch_two(capfd, "--eval-only")
    assert code == 1
    assert "[rank 1] Traceback" in printed
    assert "ZeroDivisionError: a bug" in printed


def never(args: argparse.Namespace) -> None:
    raise AssertionError("must not start")


TORCHRUN = {
    **{"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"},
    **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29400"},
}


@pytest.mark.parametrize(
    ("changes", "device", "message"),
    [
        ({"LOCAL_RANK": None}, "cpu", "RANK and WORLD_SIZE are set, but not LOCAL_RANK\n"),
        ({"LOCAL_WORLD_SIZE": None, "MASTER_PORT": None}, "cpu", "but not LOCAL_WORLD_SIZE, MASTER_PORT\n"),
        ({"LOCAL_RANK": "one"}, "cpu", "LOCAL_RANK is 'one', not a number"),
        ({"RANK": "2"}, "cpu", "RANK is 2, but WORLD_SIZE 2"),
        ({}, "cuda:1", "MODEL.DEVICE 'cuda:1' names one GPU, but the run has 2 processes"),
    ],
)
def test_environments_of_torchrun_that_cannot_work_are_refused(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, str | None],
    device: str,
    message: str,
) -> None:
    for name, value in (TORCHRUN | changes).items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert launch(never, build_argument_parser().parse_args([]), device) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("ConfigError: ")
    assert message in printed


def test_one_gpu_by_number_is_for_one_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    started: list[argparse.Namespace] = []
    parser = build_argument_parser()
    assert launch(never, parser.parse_args(["--num-gpus", "2"]), "cuda:1") == 2
    assert "MODEL.DEVICE 'cuda:1' names one GPU, but the run has 2 processes" in capsys.readouterr().err
    assert launch(started.append, parser.parse_args(["--num-gpus", "1"]), "cuda:1") == 0
    assert len(started) == 1
