"""Failing ranks: whose message is printed and whose exit code counts."""

from __future__ import annotations

import argparse

import pytest
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
