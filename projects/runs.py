"""Trainings and evaluations one after the other, each a process and a folder of its own, for studies of many.

What is finished is not done again, what was interrupted goes on from its last checkpoint, what fails stops no other.
"""

from __future__ import annotations

import argparse
import datetime
import fcntl
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from detectron2.config import CfgNode

from segzoo.engine.checkpoint import LAST_CHECKPOINT, write_atomically
from segzoo.engine.stop import TrainingInterrupted, TrainingStopped
from segzoo.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
# Endings of train_net.py after which it can go on: Ctrl-C, and a cluster's SIGTERM.
INTERRUPTED = {error.exit_code: error for error in (TrainingInterrupted, TrainingStopped)}
# Lines at the end of a log that say why a run failed, where none begins with the name of an error.
LAST_LINES = 3

# Flags of train_net.py that studies hand on to every run.
DATA_FLAGS = ("train_json", "train_images", "val_json", "val_images")
PROCESS_FLAGS = ("num_gpus", "num_processes")


def add_run_flags(parser: Any) -> None:
    """Gives a parser, or a group of one, the flags of DATA_FLAGS and PROCESS_FLAGS."""
    for flag in (*DATA_FLAGS, *PROCESS_FLAGS):
        parser.add_argument(f"--{flag.replace('_', '-')}", default="", metavar="X", help="see train_net.py")


def given_words(args: argparse.Namespace, flags: Sequence[str]) -> tuple[str, ...]:
    """The words of those flags that were given."""
    pairs = [(f"--{flag.replace('_', '-')}", getattr(args, flag)) for flag in flags]
    return tuple(word for name, value in pairs if value for word in (name, value))


@dataclass(frozen=True)
class Run:
    """name: of its folder. words: the command line of train_net.py without --resume and OUTPUT_DIR."""

    name: str
    words: tuple[str, ...]

    @property
    def is_training(self) -> bool:
        """Whether it trains, and not only evaluates."""
        return "--eval-only" not in self.words


@dataclass
class Record:
    """What became of a run, kept as json beside its folder.

    words: its command line. state: "running", "done" or "failed". commit: of the program, "" outside of a clone; with
    "+" where files differ from it. started: UTC. minutes: spent, of all attempts. error: of a failed run.
    """

    words: list[str] = field(default_factory=list)
    state: str = "running"
    commit: str = ""
    started: str = ""
    minutes: float = 0.0
    error: str = ""


def execute(run: Run, output: str, *, program: Sequence[str] = (sys.executable, str(ROOT / "train_net.py"))) -> Record:
    """Does a run, or what is left of it; its log is `<output>/<name>.log`.

    Args:
        run: what is done.
        output: folder of all runs.
        program: the command that is given the words.

    Returns:
        what became of it, "done" or "failed"; a failed run is tried again by the next call.

    Raises:
        ConfigError: the folder holds a run with another command line, or one that is being done right now.
        TrainingStopped, TrainingInterrupted: SIGTERM or Ctrl-C, which the run was handed; it has ended in its own way,
            with a checkpoint, and the next call goes on with it.
    """
    path, folder = os.path.join(output, f"{run.name}.json"), os.path.join(output, run.name)
    record = check_record(run, output)
    if record.state == "done":
        return record
    with _locked(os.path.join(output, f"{run.name}.lock"), folder) as lock:
        return _execute(run, path, folder, record, program, lock)


def check_record(run: Run, output: str) -> Record:
    """What is known of a run before it is done.

    Raises:
        ConfigError: the folder holds a run with another command line.
    """
    path, folder = os.path.join(output, f"{run.name}.json"), os.path.join(output, run.name)
    record = read_record(path) or Record(state="")
    if record.words and record.words != list(run.words):
        raise ConfigError(
            f"{folder} holds another run: {shlex.join(record.words)}",
            f"give another --output, or remove {folder} and {path}; asked for is {shlex.join(run.words)}",
        )
    return record


def recorded(run: Run, output: str) -> Record:
    """What became of a run, without doing it; stands in for `execute`."""
    record = check_record(run, output)
    if record.state in ("", "running"):
        record.error = "was not trained" if not record.state else "did not come to its end"
        record.state = "failed"
    return record


def _execute(run: Run, path: str, folder: str, record: Record, program: Sequence[str], lock: int) -> Record:
    record = Record(list(run.words), "running", commit_of(ROOT), _now(), record.minutes)
    _write_record(path, record)
    can_resume = run.is_training and os.path.isfile(os.path.join(folder, LAST_CHECKPOINT))
    flags = ["--resume"] if can_resume else []
    if not can_resume:
        # Of an attempt that did not get as far as a checkpoint; train_net.py would not write over it.
        shutil.rmtree(folder, ignore_errors=True)
    log = f"{folder}.log"
    start = time.monotonic()
    try:
        code = _call([*program, *flags, *run.words, "OUTPUT_DIR", folder], log, lock)
    finally:
        record.minutes += (time.monotonic() - start) / 60
        _write_record(path, record)
    if code in INTERRUPTED:
        raise INTERRUPTED[code](f"{folder} was interrupted (exit code {code})", "the same command goes on with it")
    record.state = "failed" if code else "done"
    record.error = f"exit code {code}: {_reason(log)}" if code else ""
    _write_record(path, record)
    return record


def read_record(path: str) -> Record | None:
    """A run's record, None where there is none.

    Raises:
        ConfigError: the file is no record.
    """
    try:
        with open(path, encoding="utf-8") as stream:
            return Record(**json.load(stream))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path}: not the record of a run: {error}", "remove it with its folder") from error


def read_metrics(folder: str) -> dict[str, Any]:
    """The last evaluation of a run: "dataset", "results" and "seconds_per_image", see `segzoo.evaluation.inference`.

    Args:
        folder: OUTPUT_DIR.

    Raises:
        ConfigError: none, or of several data sets.
    """
    files = sorted(Path(folder).glob("inference*/*/metrics.json"))
    if len(files) != 1:
        raise ConfigError(
            f"{folder} has {len(files)} evaluations: {', '.join(map(str, files))}", "give one set in DATASETS.TEST"
        )
    content = json.loads(files[0].read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not isinstance(content.get("results"), dict):
        raise ConfigError(f"{files[0]}: no results of an evaluation", "evaluate the run again")
    return content


def data_texts(cfg: CfgNode) -> tuple[str, str]:
    """What a run was trained and evaluated on, in words: names of sets, and of the user's own files."""
    texts = []
    for names, own_file in (
        (cfg.DATASETS.TRAIN, cfg.DATASETS.TRAIN_JSON),
        (cfg.DATASETS.TEST, cfg.DATASETS.VAL_JSON),
    ):
        own = [os.path.basename(own_file) if name.endswith("_json") and own_file else name for name in names]
        texts.append(", ".join(own))
    return texts[0], texts[1]


def commit_of(folder: Path) -> str:
    """The short commit of a clone, with "+" where tracked files differ from it; "" outside of one."""
    try:
        described = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--dirty=+", "--exclude=*"],
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return ""
    return described.stdout.strip() if described.returncode == 0 else ""


@contextmanager
def _locked(path: str, folder: str) -> Iterator[int]:
    """Keeps others from a run; the run's own process holds the lock, too, should this one be killed.

    Raises:
        ConfigError: another process has it.
    """
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path, "w", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{folder} is being worked on by another process", "wait for it, or stop it") from None
        yield stream.fileno()


def _call(command: Sequence[str], log: str, lock: int) -> int:
    """Runs a command into the end of a log; SIGTERM and Ctrl-C are handed to it, and it ends in its own way."""
    with open(log, "a", encoding="utf-8") as stream:
        with _Relay() as relay:
            # A session of its own: a terminal's Ctrl-C would reach it beside ours, and a second one ends it at once.
            relay.process = subprocess.Popen(
                command,
                stdout=stream,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                pass_fds=(lock,),
            )
            if relay.signal:
                relay.process.send_signal(relay.signal)
            return relay.process.wait()


class _Relay:
    """Hands SIGTERM and SIGINT on to a process, also one that came just before it was started.

    Elsewhere than in the main thread no signal can be caught, and none comes.
    """

    def __init__(self) -> None:
        self.process: subprocess.Popen | None = None
        self.signal = 0
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> _Relay:
        if threading.current_thread() is threading.main_thread():
            self._previous = {
                number: signal.signal(number, self._hand_on) for number in (signal.SIGTERM, signal.SIGINT)
            }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _hand_on(self, number: int, _: FrameType | None) -> None:
        self.signal = number
        if self.process is not None:
            self.process.send_signal(number)


def _reason(log: str) -> str:
    with open(log, encoding="utf-8", errors="replace") as stream:
        lines = [line.strip() for line in stream if line.strip()]
    errors = [number for number, line in enumerate(lines) if re.match(r"\w*[Ee]rror: ", line)]
    # The remedy stands in the line below.
    return " ".join(lines[errors[-1] : errors[-1] + 2] if errors else lines[-LAST_LINES:])


def _write_record(path: str, record: Record) -> None:
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    write_atomically(path, json.dumps(asdict(record), indent=1) + "\n")


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M")
