"""Rows of the papers' tables: which runs they are, and how their figures stand beside the papers'."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from projects.ablation_study import (
    Measured,
    Settings,
    done_rows,
    metric_figures,
    run_rows,
    study_tables,
    training_run,
)
from projects.runs import Record, Run
from segzoo.engine.ablations import Row, read_ablations
from segzoo.engine.stop import TrainingInterrupted


@pytest.fixture
def rows(repository: Path) -> dict[str, Row]:
    return {row.id: row for row in read_ablations(str(repository / "projects" / "PolarMask" / "ablations.yaml"))}


def test_a_training_has_the_words_of_its_row_then_the_budget_then_the_users(rows: dict[str, Row]) -> None:
    settings = Settings(
        output="o",
        data_words=("--train-json", "a.json"),
        max_iter=900,
        process_words=("--num-gpus", "2"),
        options=("SEED", "3"),
    )
    words = list(training_run(rows["1a-18"], settings).words)
    start = ["--config-file", rows["1a-18"].config_file, "--train-json", "a.json", "--num-gpus", "2"]
    assert words[:6] == start
    keys = words[6::2]
    assert keys.index("MODEL.POLARMASK.NUM_RAYS") < keys.index("SOLVER.MAX_ITER") < keys.index("SEED")
    assert words[words.index("SOLVER.STEPS") + 1] == "(600, 800)"
    own = training_run(rows["1a-18"], Settings("o")).words
    assert "SOLVER.MAX_ITER" not in own


class FakeRuns:
    """Does runs by writing what they would leave."""

    def __init__(self, failing: str = "") -> None:
        self.failing = failing
        self.runs: list[Run] = []

    def __call__(self, run: Run, output: str) -> Record:
        self.runs.append(run)
        if run.name == self.failing:
            return Record(list(run.words), "failed", error="exit code 3: diverged")
        folder = Path(output) / run.name / "inference" / "val"
        folder.mkdir(parents=True, exist_ok=True)
        results = {"segm": {"AP": 30.0 + len(self.runs), "AP50": 50.0, "AP75": None}, "bbox": {"AP": 33.0}}
        content = {"dataset": "val", "results": results, "seconds_per_image": {"model": 0.05, "data": 1.0}}
        (folder / "metrics.json").write_text(json.dumps(content))
        (Path(output) / run.name / "config.yaml").write_text(
            "MODEL: {DEVICE: cpu}\nSOLVER: {MAX_ITER: 77, STEPS: [50], IMS_PER_BATCH: 4}\nVERSION: 2\n"
        )
        (Path(output) / run.name / "model_final.pth").write_bytes(b"")
        environment = {"device": "cuda (A100), 8 process(es)", "processor": "a processor"}
        (Path(output) / run.name / "environment.json").write_text(json.dumps(environment))
        return Record(list(run.words), "done", "abc", minutes=2.0)


def test_rows_with_another_ones_model_are_evaluated_only_where_they_differ(
    tmp_path: Path, rows: dict[str, Row]
) -> None:
    runs = FakeRuns()
    chosen = [rows["1c-original"], rows["1a-36"]]
    results = list(run_rows(list(rows.values()), chosen, Settings(str(tmp_path)), do=runs))
    # The model of 1a-36 is trained for both, though it was asked for second.
    assert [run.name for run in runs.runs] == ["1a-36", "1a-36"]
    assert [one.error for one in results] == ["", ""]
    assert results[0].figures["segm/AP50"] == 50.0
    assert "segm/AP75" not in results[0].figures
    assert results[0].conditions.startswith("trained on ")
    # The device is that of the training, not of the process that makes the table.
    ending = "evaluated on val, 77 iterations of 4, cuda (A100), 8 process(es), a processor, 2 minutes, commit abc"
    assert results[0].conditions.endswith(ending)


def test_a_row_that_fails_stops_no_other(tmp_path: Path, rows: dict[str, Row]) -> None:
    runs = FakeRuns(failing="1a-18")
    results = list(run_rows(list(rows.values()), [rows["1a-18"], rows["1a-24"]], Settings(str(tmp_path)), do=runs))
    assert "diverged" in results[0].error
    assert results[0].figures == {}
    assert results[1].error == ""
    assert results[1].figures["segm/AP"] == 32.0


def test_an_interruption_ends_all_rows(tmp_path: Path, rows: dict[str, Row]) -> None:
    def interrupt(run: Run, output: str) -> Record:
        raise TrainingInterrupted("was interrupted")

    with pytest.raises(TrainingInterrupted):
        list(run_rows(list(rows.values()), [rows["1a-18"], rows["1a-24"]], Settings(str(tmp_path)), do=interrupt))


def test_an_error_of_a_library_fails_its_row_alone(tmp_path: Path, rows: dict[str, Row]) -> None:
    runs = FakeRuns()

    def fail_once(run: Run, output: str) -> Record:
        if run.name == "1a-18":
            raise RuntimeError("no driver")
        return runs(run, output)

    chosen = [rows["1a-18"], rows["1a-24"]]
    results = list(run_rows(list(rows.values()), chosen, Settings(str(tmp_path)), do=fail_once))
    assert [one.error for one in results] == ["RuntimeError: no driver", ""]


def test_rows_of_another_data_set_are_evaluated_on_it(tmp_path: Path, repository: Path) -> None:
    study = read_ablations(str(repository / "projects" / "CenterMask" / "ablations.yaml"))
    row = next(row for row in study if row.dataset.startswith("lvis") and not row.cited)
    runs = FakeRuns()
    list(run_rows(study, [row], Settings(str(tmp_path)), do=runs))
    assert len(runs.runs) == 2
    words = list(runs.runs[1].words)
    assert "--eval-only" in words
    assert words[words.index("DATASETS.TEST") + 1] == f"('{row.dataset}',)"
    # On the user's own data there is one set for all.
    own = FakeRuns()
    list(run_rows(study, [row], Settings(str(tmp_path / "own"), data_words=("--val-json", "a.json")), do=own))
    assert len(own.runs) == 1


def test_rows_that_were_measured_before_are_collected(tmp_path: Path, rows: dict[str, Row]) -> None:
    runs, settings = FakeRuns(), Settings(str(tmp_path))

    def do(run: Run, output: str) -> Record:
        record = runs(run, output)
        (Path(output) / f"{run.name}.json").write_text(json.dumps(vars(record)))
        return record

    assert done_rows(list(rows.values()), settings) == []
    list(run_rows(list(rows.values()), [rows["1a-18"]], settings, do=do))
    (done,) = [one for one in done_rows(list(rows.values()), settings) if one.row.id == "1a-18"]
    assert done.figures["segm/AP"] == 31.0
    assert len(runs.runs) == 1


def test_costs_are_counted_without_a_training(tmp_path: Path, rows: dict[str, Row]) -> None:
    costs = next(row for row in rows.values() if row.kinds == ("complexity",) and not row.cited)
    cited = next(row for row in rows.values() if row.cited)
    runs = FakeRuns()
    measured, quoted = run_rows(list(rows.values()), [costs, cited], Settings(str(tmp_path)), do=runs)
    assert runs.runs == []
    assert measured.figures["GMAC"] > 100
    assert "px" in measured.conditions
    assert quoted.figures == {}
    assert cited.cited in quoted.notes[0]


def test_speed_is_that_of_the_model_without_the_loading_of_data(rows: dict[str, Row]) -> None:
    row = next(row for row in rows.values() if "FPS" in row.figures)
    content = {"results": {"segm": {"AP": 1.5}}, "seconds_per_image": {"model": 0.05, "data": 0.5}}
    assert metric_figures(row, content)["FPS"] == 20.0
    assert "FPS" not in metric_figures(row, content | {"seconds_per_image": None})


def test_tables_put_the_difference_beside_both_figures(rows: dict[str, Row]) -> None:
    good = Measured(rows["1a-18"], {"segm/AP": 25.0}, "val, 10 iterations")
    failed = Measured(rows["1a-24"], error="it burnt")
    text = study_tables([good, failed])
    assert "### Table 1a: number of rays" in text
    assert "| 1a-18 | 26.2 | 25.0 | -1.2 | 48.7 | - | - |" in text
    assert "* 1a-18: val, 10 iterations" in text
    assert "* 1a-24: FAILED: it burnt" in text


def test_a_run_without_an_evaluation_is_named(tmp_path: Path, rows: dict[str, Row]) -> None:
    def forget(run: Run, output: str) -> Record:
        return Record(list(run.words), "done")

    (measured,) = run_rows(list(rows.values()), [rows["1a-18"]], Settings(str(tmp_path)), do=forget)
    assert "has 0 evaluations" in measured.error
