"""Runs of many: done ones are left alone, interrupted ones go on, failed ones say why and are tried again."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from projects.runs import Record, Run, commit_of, execute, read_metrics, read_record
from segzoo.errors import ConfigError, TrainingError

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


@pytest.mark.parametrize("code", [130, 75])
def test_an_interrupted_run_goes_on(tmp_path: Path, output: str, code: int) -> None:
    program = Program(tmp_path, [code, 0])
    with pytest.raises(TrainingError, match=f"interrupted .exit code {code}.(?s:.*)goes on"):
        execute(RUN, output, program=program.command)
    before = read_record(f"{output}/row.json")
    assert before is not None
    assert before.state == "running"
    after = execute(RUN, output, program=program.command)
    assert after.state == "done"
    assert after.minutes > before.minutes
    assert program.calls[1] == ["--resume", *RUN.words, "OUTPUT_DIR", f"{output}/row"]


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
