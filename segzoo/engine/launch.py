"""Starting the processes of a run: one, several by spawn, or one of torchrun's."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from multiprocessing.connection import wait
from types import FrameType

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.utils import comm

from segzoo.errors import ConfigError, SegZooError, naming_full_disks

Main = Callable[[argparse.Namespace], None]

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
# What torchrun sets in the environment of every process.
TORCHRUN_NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
TORCHRUN_ADDRESS = ("MASTER_ADDR", "MASTER_PORT")
# When one rank has failed, the others get this long to fail by themselves with their own message.
GRACE_SECONDS = 15.0


@dataclass(frozen=True)
class _Layout:
    """Where the processes of a spawned run are."""

    num_local: int
    num_machines: int
    machine_rank: int
    dist_url: str
    uses_cuda: bool
    error_folder: str


@dataclass(frozen=True)
class _RankError:
    """What a failed rank has left for its parent: a SegZooError as printed, or the traceback of anything else."""

    exit_code: int
    message: str
    is_for_users: bool


def launch(main: Main, args: argparse.Namespace, device: str = "cpu") -> int:
    """Runs `main(args)` in every process of the run and returns the exit code for this one.

    Under torchrun (RANK and WORLD_SIZE are set) this process is one rank. Else `--num-gpus` (CUDA) or
    `--num-processes` (CPU) processes are spawned, or none when that is one. NCCL connects GPUs, gloo CPUs. A
    SegZooError in any spawned rank is printed once, gives its exit code and stands alone: the tracebacks of other
    ranks, whose connection it has broken, say nothing about the cause.

    Args:
        main: a function at the top level of a module (spawned processes import it).
        args: the parsed command line; num_gpus, num_processes, num_machines, machine_rank, dist_url are read.
        device: "cuda" or "cpu", or "cuda:1" for a single process on that GPU.
    """
    uses_cuda = device.startswith("cuda")
    try:
        if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
            return _run_torchrun_rank(main, args, device)
        num_local = _num_local_processes(args, uses_cuda)
        if num_local * args.num_machines == 1:
            return _run_guarded(main, args)
        _refuse_index(device, num_local * args.num_machines)
        return _spawn(main, args, num_local, uses_cuda)
    except SegZooError as error:
        print_error(error)
        return error.exit_code


def print_error(error: SegZooError, prefix: str = "") -> None:
    """An error for a user: no traceback, its remedy on a line of its own."""
    print(f"{prefix}{type(error).__name__}: {error}", file=sys.stderr, flush=True)


def _num_local_processes(args: argparse.Namespace, uses_cuda: bool) -> int:
    if args.num_gpus < 0 or args.num_processes < 1 or args.num_machines < 1:
        raise ConfigError("--num-gpus must be at least 0, --num-processes and --num-machines at least 1")
    if not 0 <= args.machine_rank < args.num_machines:
        raise ConfigError(f"--machine-rank {args.machine_rank} is not in 0..{args.num_machines - 1}")
    if not uses_cuda:
        if args.num_gpus > 1:
            raise ConfigError(
                f"--num-gpus {args.num_gpus}, but the run is on a CPU", "use --num-processes N for N CPU processes"
            )
        return int(args.num_processes)
    num_present = torch.cuda.device_count()
    if args.num_gpus > num_present:
        raise ConfigError(f"--num-gpus {args.num_gpus}, but this machine has {num_present}", "ask for fewer")
    return max(int(args.num_gpus), 1)


def _run_guarded(main: Main, args: argparse.Namespace, prefix: str = "") -> int:
    try:
        with naming_full_disks():
            main(args)
    except SegZooError as error:
        print_error(error, prefix)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{prefix}interrupted", file=sys.stderr, flush=True)
        return 128 + signal.SIGINT
    return 0


def _refuse_index(device: str, world_size: int) -> None:
    if ":" in device and world_size > 1:
        raise ConfigError(
            f"MODEL.DEVICE {device!r} names one GPU, but the run has {world_size} processes",
            "give MODEL.DEVICE cuda; choose the GPUs by the environment variable CUDA_VISIBLE_DEVICES",
        )


def _torchrun_numbers() -> dict[str, int]:
    """RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE of the environment."""
    missing = [name for name in (*TORCHRUN_NUMBERS, *TORCHRUN_ADDRESS) if not os.environ.get(name)]
    remedy = "start by torchrun, or unset RANK and WORLD_SIZE to start without it"
    if missing:
        raise ConfigError(f"RANK and WORLD_SIZE are set, but not {', '.join(missing)}", remedy)
    for name in TORCHRUN_NUMBERS:
        if not os.environ[name].isdecimal():
            raise ConfigError(f"environment variable {name} is {os.environ[name]!r}, not a number", remedy)
    numbers = {name: int(os.environ[name]) for name in TORCHRUN_NUMBERS}
    for rank, size in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE")):
        if numbers[rank] >= numbers[size]:
            raise ConfigError(f"environment variable {rank} is {numbers[rank]}, but {size} {numbers[size]}", remedy)
    return numbers


def _run_torchrun_rank(main: Main, args: argparse.Namespace, device: str) -> int:
    numbers, uses_cuda = _torchrun_numbers(), device.startswith("cuda")
    local_rank, num_local = numbers["LOCAL_RANK"], numbers["LOCAL_WORLD_SIZE"]
    _refuse_index(device, numbers["WORLD_SIZE"])
    if uses_cuda and num_local > torch.cuda.device_count():
        raise ConfigError(
            f"torchrun started {num_local} processes, but this machine has {torch.cuda.device_count()} GPUs",
            "lower --nproc_per_node, or give MODEL.DEVICE cpu",
        )
    _init_process_group(uses_cuda, local_rank, num_local, "env://", numbers["RANK"], numbers["WORLD_SIZE"])
    code = _run_guarded(main, args, prefix=f"[rank {comm.get_rank()}] ")
    if code == 0:
        dist.destroy_process_group()
    return code


def _init_process_group(uses_cuda: bool, local_rank: int, num_local: int, url: str, rank: int, world_size: int) -> None:
    if uses_cuda:
        torch.cuda.set_device(local_rank)
    dist.init_process_group(
        "nccl" if uses_cuda else "gloo", init_method=url, rank=rank, world_size=world_size, timeout=COLLECTIVE_TIMEOUT
    )
    comm.create_local_process_group(num_local)
    comm.synchronize()


def _spawn(main: Main, args: argparse.Namespace, num_local: int, uses_cuda: bool) -> int:
    url = args.dist_url
    if url == "auto":
        if args.num_machines > 1:
            raise ConfigError("--dist-url auto works on one machine only", "give --dist-url tcp://<machine 0>:<port>")
        url = f"tcp://127.0.0.1:{_free_port()}"
    with tempfile.TemporaryDirectory(prefix="segzoo_ranks_") as error_folder:
        layout = _Layout(num_local, args.num_machines, args.machine_rank, url, uses_cuda, error_folder)
        context = mp.start_processes(_run_spawned_rank, (main, args, layout), num_local, join=False)
        code = _wait_for_ranks(context.processes)
        return _report_rank_errors(error_folder, code)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _run_spawned_rank(local_rank: int, main: Main, args: argparse.Namespace, layout: _Layout) -> None:
    rank = layout.machine_rank * layout.num_local + local_rank
    if not layout.uses_cuda:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // layout.num_local))
    if sys.platform == "linux":
        # A spawned process would spawn its loader workers too: slow, and deaf to what the parent has registered.
        multiprocessing.set_start_method("fork", force=True)
    try:
        world_size = layout.num_local * layout.num_machines
        _init_process_group(layout.uses_cuda, local_rank, layout.num_local, layout.dist_url, rank, world_size)
        with naming_full_disks():
            main(args)
    except SegZooError as error:
        message = f"{type(error).__name__}: {error}"
        _leave(_RankError(error.exit_code, message, is_for_users=True), layout.error_folder, rank)
    except KeyboardInterrupt:
        _exit(128 + signal.SIGINT)
    except BaseException:
        message = f"[rank {rank}] {traceback.format_exc().rstrip()}"
        _leave(_RankError(1, message, is_for_users=False), layout.error_folder, rank)
    dist.destroy_process_group()


def _leave(error: _RankError, error_folder: str, rank: int) -> None:
    """Ends a failed rank; the parent, who knows what all of them have to say, prints its error."""
    path = os.path.join(error_folder, f"{rank:06d}")
    try:
        with open(f"{path}.part", "w", encoding="utf-8") as stream:
            json.dump(asdict(error), stream)
        # A rank that is killed while it writes leaves nothing to read.
        os.replace(f"{path}.part", path)
    except OSError:
        print(error.message, file=sys.stderr)
    _exit(error.exit_code)


def _exit(code: int) -> None:
    """Ends the process without waiting for collectives that will never finish."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _wait_for_ranks(processes: Sequence[mp.Process]) -> int:
    """Waits for all; when one fails, the others are ended after a grace. Returns the first failure's exit code."""
    asked: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        for process in processes:
            if process.is_alive() and process.pid is not None:
                os.kill(process.pid, signal.SIGTERM)

    previous = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    code, deadline = 0, None
    try:
        alive = list(processes)
        while alive:
            wait([process.sentinel for process in alive], timeout=1.0)
            codes = [process.exitcode for process in alive if process.exitcode]
            alive = [process for process in alive if process.exitcode is None]
            if codes and code == 0:
                code = codes[0] if codes[0] > 0 else 128 - codes[0]
                deadline = time.monotonic() + GRACE_SECONDS
            if deadline is not None and time.monotonic() > deadline:
                for process in alive:
                    process.kill()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return 128 + signal.SIGINT if code and signal.SIGINT in asked else code


def _report_rank_errors(error_folder: str, code: int) -> int:
    """Prints each distinct message once, the lowest rank's first, and returns the exit code of the run.

    Args:
        error_folder: where the ranks have left their errors.
        code: exit code of the first failure; stays when no rank has left a SegZooError or Ctrl-C was pressed.
    """
    errors = []
    for name in sorted(name for name in os.listdir(error_folder) if name.isdecimal()):
        with open(os.path.join(error_folder, name), encoding="utf-8") as stream:
            errors.append(_RankError(**json.load(stream)))
    for_users = [error for error in errors if error.is_for_users]
    for message in dict.fromkeys(error.message for error in for_users or errors):
        print(message, file=sys.stderr, flush=True)
    return for_users[0].exit_code if for_users and code != 128 + signal.SIGINT else code
