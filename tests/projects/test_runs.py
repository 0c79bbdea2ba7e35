"""Runs of many: done ones are left alone, interrupted ones go on, failed ones say why and are tried again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from projects.runs import ROOT, Record, Run, commit_of, execute, read_metrics, read_record, recorded
from segzoo.engine.stop import TrainingInterrupted, TrainingStopped
from segzoo.errors import ConfigError

# Stands for train_net.py: writes down how it was called, makes a checkpoint, and ends as the file `code` says.
PROGRAM = """
import json, pathlib, sys
words = sys.argv[1:]
folder = pathlib.Path(words[words.index("OUTPUT_DIR") + 1])
state = pathlib.Path({state!r})
calls = json.loads((state / "calls").read_text()) if (state / "calls").exists() else []
(state / "calls").write_text(json.dumps([*calls, words]))
folder.mkdir(parents=True, exist_ok=True)
if any(folder.iterdir()) and "--resume" not in words:
    sys.exit("OUTPUT_DIR holds a run already")
code = json.loads((state / "codes").read_text())[len(calls)]
(folder / "log.txt").write_text("begun")
if code != 4:
    (folder / "last_checkpoint").write_text("x")
if code:
    print("ConfigError: MODEL.RAYS is 2\\n  -> give at least 3\\nlast words")
sys.exit(code)
"""
RUN = Run("row", ("--config-file", "a.yaml", "KEY", "1"))


class Program:
    """The command, and what it was called with."""

    def __init__(self, folder: Path, codes: list[int]) -> None:
        self.folder = folder
        (folder / "codes").write_text(json.dumps(codes))
        (folder / "program.py").write_text(PROGRAM.format(state=str(folder)))
        self.command = (sys.executable, str(folder / "program.py"))

    @property
    def calls(self) -> list[list[str]]:
        return json.loads((self.folder / "calls").read_text())


@pytest.fixture
def output(tmp_path: Path) -> str:
    return str(tmp_path / "output")


def test_a_done_run_is_not_done_again(tmp_path: Path, output: str) -> None:
    program = Program(tmp_path, [0])
    first = execute(RUN, output, program=program.command)
    assert first.state == "done"
    assert first.words == list(RUN.words)
    assert first.minutes > 0
    assert execute(RUN, output, program=program.command) == first
    assert program.calls == [[*RUN.words, "OUTPUT_DIR", f"{output}/row"]]
    assert read_record(f"{output}/row.json") == first


@pytest.mark.parametrize(("code", "error"), [(130, TrainingInterrupted), (75, TrainingStopped)])
def test_an_interrupted_run_goes_on(tmp_path: Path, output: str, code: int, error: type[TrainingStopped]) -> None:
    program = Program(tmp_path, [code, 0])
    with pytest.raises(error, match=f"interrupted .exit code {code}.(?s:.*)goes on"):
        execute(RUN, output, program=program.command)
    before = read_record(f"{output}/row.json")
    assert before is not None
    assert before.state == "running"
    after = execute(RUN, output, program=program.command)
    assert after.state == "done"
    assert after.minutes > before.minutes
    assert program.calls[1] == ["--resume", *RUN.words, "OUTPUT_DIR", f"{output}/row"]


# Waits for a signal, writes down which it was, and ends as train_net.py would.
WAITING = """
import pathlib, signal, sys, time
folder = pathlib.Path({state!r})
def end(number, frame):
    with open(folder / "signals", "a") as stream:
        stream.write(str(int(number)) + " ")
    sys.exit(75 if number == signal.SIGTERM else 130)
signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGINT, end)
(folder / "ready").write_text("")
time.sleep(60)
"""
# A study's process: does one run, and ends with the code of what it raises.
STUDY = """
import sys
sys.path.insert(0, {root!r})
from projects.runs import Run, execute
from segzoo.errors import SegZooError
try:
    execute(Run("row", ()), {output!r}, program=(sys.executable, {program!r}))
except SegZooError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def start_study(tmp_path: Path, output: str) -> subprocess.Popen:
    (tmp_path / "waiting.py").write_text(WAITING.format(state=str(tmp_path)))
    program = STUDY.format(root=str(ROOT), output=output, program=str(tmp_path / "waiting.py"))
    study = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    for _ in range(600):
        if (tmp_path / "ready").exists():
            return study
        time.sleep(0.1)
    pytest.fail("the run has not begun within a minute")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_signals_reach_the_run_once_and_wait_for_its_end(
    tmp_path: Path, output: str, number: signal.Signals, code: int
) -> None:
    study = start_study(tmp_path, output)
    study.send_signal(number)
    text, _ = study.communicate(timeout=60)
    assert study.returncode == code
    assert f"was interrupted (exit code {code})" in text
    assert (tmp_path / "signals").read_text() == f"{int(number)} "


def test_a_run_is_not_done_twice_at_a_time_even_when_its_study_was_killed(tmp_path: Path, output: str) -> None:
    study = start_study(tmp_path, output)
    with pytest.raises(ConfigError, match="is being worked on by another process"):
        execute(Run("row", ()), output, program=(sys.executable, "-c", ""))
    study.kill()
    study.communicate()
    with pytest.raises(ConfigError, match="is being worked on by another process"):
        execute(Run("row", ()), output, program=(sys.executable, "-c", ""))
    subprocess.run(["pkill", "-TERM", "-f", str(tmp_path / "waiting.py")], check=True)
    for _ in range(100):
        try:
            assert execute(Run("row", ()), output, program=(sys.executable, "-c", "")).state == "done"
            return
        except ConfigError:
            time.sleep(0.1)
    pytest.fail("the lock has outlived the run")


def test_recorded_does_nothing(tmp_path: Path) -> None:
    run = Run("a_1", ("--config-file", "x"))
    assert recorded(run, str(tmp_path)).error == "was not trained"
    (tmp_path / "a_1.json").write_text(json.dumps({"words": ["other"], "state": "done"}))
    with pytest.raises(ConfigError, match="holds another run"):
        recorded(run, str(tmp_path))
    (tmp_path / "a_1.json").write_text(json.dumps({"words": list(run.words), "state": "running"}))
    unfinished = recorded(run, str(tmp_path))
    assert (unfinished.state, unfinished.error) == ("failed", "did not come to its end")
    (tmp_path / "a_1.json").write_text(json.dumps({"words": list(run.words), "state": "done"}))
    assert recorded(run, str(tmp_path)).state == "done"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a_1.json"]


@pytest.mark.parametrize(("code", "flags"), [(2, ["--resume"]), (4, [])], ids=["with a checkpoint", "without"])
def test_a_failed_run_says_why_and_is_tried_again(tmp_path: Path, output: str, code: int, flags: list[str]) -> None:
    program = Program(tmp_path, [code, 0])
    failed = execute(RUN, output, program=program.command)
    assert failed.state == "failed"
    assert failed.error == f"exit code {code}: ConfigError: MODEL.RAYS is 2 -> give at least 3"
    done = execute(RUN, output, program=program.command)
    assert (done.state, done.error) == ("done", "")
    assert program.calls[1] == [*flags, *RUN.words, "OUTPUT_DIR", f"{output}/row"]
    assert "last words" in (Path(output) / "row.log").read_text()


def test_an_evaluation_is_never_resumed(tmp_path: Path, output: str) -> None:
    program = Program(tmp_path, [2, 0])
    run = Run("row", ("--eval-only", *RUN.words))
    execute(run, output, program=program.command)
    assert execute(run, output, program=program.command).state == "done"
    assert "--resume" not in program.calls[1]


def test_a_folder_of_another_command_line_is_refused(tmp_path: Path, output: str) -> None:
    program = Program(tmp_path, [0])
    execute(RUN, output, program=program.command)
    with pytest.raises(ConfigError, match=r"(?s)output/row holds another run: --config-file a\.yaml KEY 1.*KEY 2"):
        execute(Run("row", ("--config-file", "a.yaml", "KEY", "2")), output, program=program.command)
    assert len(program.calls) == 1


@pytest.mark.parametrize("text", ["[1]", "{", '{"unknown": 1}'])
def test_a_file_that_is_no_record_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "row.json").write_text(text)
    with pytest.raises(ConfigError, match=r"row\.json: not the record of a run"):
        read_record(str(tmp_path / "row.json"))
    assert read_record(str(tmp_path / "other.json")) is None


def test_read_metrics_takes_the_only_evaluation(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has 0 evaluations"):
        read_metrics(str(tmp_path))
    for name in ("val", "other"):
        folder = tmp_path / "inference_model_best" / name
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text(json.dumps({"dataset": name, "results": {"segm": {"AP": 1.0}}}))
        if name == "val":
            assert read_metrics(str(tmp_path))["results"] == {"segm": {"AP": 1.0}}
    with pytest.raises(ConfigError, match=r"(?s)has 2 evaluations.*give one set"):
        read_metrics(str(tmp_path))
    (tmp_path / "inference_model_best" / "other" / "metrics.json").unlink()
    (tmp_path / "inference_model_best" / "val" / "metrics.json").write_text("[]")
    with pytest.raises(ConfigError, match="no results"):
        read_metrics(str(tmp_path))


def test_commit_of_a_folder_that_is_no_clone_is_empty(tmp_path: Path) -> None:
    assert commit_of(tmp_path) == ""


def test_a_record_begins_as_running() -> None:
    assert Record().state == "running"
