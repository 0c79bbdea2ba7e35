"""Tables, advice and curves of figures that are made up, so that what they have to say is known."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from projects.upper_bound.measure import Measured
from projects.upper_bound.objects import CROWDS, DataSet
from projects.upper_bound.plot import draw, ray_curves
from projects.upper_bound.report import advice, as_dict, as_markdown, as_text, best_rows, page, table
from projects.upper_bound.rows import Row
from segzoo.evaluation.ground_truth import GroundTruth

ROWS = [
    *(Row("Polar", f"{n} rays, mass", "own", {"rays": n, "center": "mass"}) for n in (18, 36, 72)),
    Row("Polar", "36 rays, box", "own", {"rays": 36, "center": "box"}),
    Row("Shapes", "S = 16", "512", {"shape_size": 16}),
    Row("Shapes", "S = 32", "512", {"shape_size": 32}),
    Row("Boxes", "28 x 28", "800", {}),
    Row("Boxes", "no method", "800", {}, is_method=False),
]
MEANS = (0.84, 0.915, 0.92, 0.90, 0.93, 0.955, 0.96, 0.99)


@pytest.fixture
def measured() -> Measured:
    # 10 small objects of one class, 30 medium ones of another; the small ones lose twice as much.
    counts = np.array([[10, 0, 0], [0, 30, 0]])
    loss = 1 - np.array(MEANS)
    sums = np.zeros((len(ROWS), 2, 3))
    sums[:, 0, 0], sums[:, 1, 1] = 10 * (1 - 1.6 * loss), 30 * (1 - 0.8 * loss)
    metrics = {row.name: {kind: {"AP": 90.0, **ALL} for kind in ("segm", "boundary")} for row in ROWS}
    return Measured(ROWS, [3, 7], sums, counts, np.zeros(len(ROWS), int), metrics)


ALL = {"AP75": 95.0, "APs": 80.0, "APm": 96.0, "APl": math.nan}


@pytest.fixture
def data() -> DataSet:
    truth = GroundTruth(images={1: {}}, categories={3: "ant", 7: "bee"}, annotations=[{}] * 40)
    found = DataSet(truth, ["a.json"])
    found.left_out.add(CROWDS, count=2)
    return found


def test_best_rows_and_advice_say_what_the_figures_say(measured: Measured) -> None:
    assert [ROWS[row].title for row in best_rows(measured)] == ["72 rays, mass", "S = 32", "28 x 28"]
    text = advice(measured)
    assert "Boxes: 28 x 28 holds most (mean IoU 0.960), Polar: 72 rays, mass least of the methods' best (0.920)" in text
    assert "small objects lose most (0.936)" in text
    # 36 rays are within 0.01 of 72, 18 are not; S = 16 is not within 0.01 of 32.
    assert "36 rays are enough for Polar: 0.915, where the best, 72, have 0.920" in text
    assert "32 cells a side of a shape are enough for Shapes" in text


def test_table_has_a_line_a_row_and_dashes_for_what_is_not_there(measured: Measured) -> None:
    head, *lines = table(measured)
    assert len(lines) == len(ROWS)
    first = dict(zip(head, lines[0], strict=True))
    assert (first["mean IoU"], first["large"], first["AP"], first["APl"]) == ("0.8400", "-", "90.0", "-")
    assert as_markdown([head, *lines]).count("\n") == len(ROWS) + 1
    assert len({line.index("own") for line in as_text([head, *lines]).splitlines()[1:5]}) == 1
    measured.metrics.clear()
    assert "AP" not in table(measured)[0]


def test_report_is_strict_json_and_holds_every_row(measured: Measured, data: DataSet) -> None:
    report = as_dict(measured, data, {"input": "recipe"})
    again = json.loads(json.dumps(report, allow_nan=False))
    assert (again["objects"], again["left_out"], again["input"]) == (40, {CROWDS: 2}, "recipe")
    row = again["rows"][0]
    assert row["mean_iou"] == pytest.approx(0.84)
    assert row["by_class"] == {"ant": pytest.approx(0.744), "bee": pytest.approx(0.872)}
    assert row["by_size"]["large"] is row["segm"]["APl"] is None


def test_page_tells_objects_conditions_and_classes(measured: Measured, data: DataSet) -> None:
    text = page(measured, data, {"input": "recipe"})
    assert "40 objects of 1 images; left out for all representations: 2 crowds. input recipe." in text
    assert "| ant | 10 | 0.8720 |" in text
    assert advice(measured) in text


def test_curves_are_those_of_the_rows_and_the_picture_is_written(measured: Measured, tmp_path: Path) -> None:
    curves = ray_curves(measured)
    assert curves["mass"] == [(18, pytest.approx(0.84)), (36, pytest.approx(0.915)), (72, pytest.approx(0.92))]
    assert curves["box"] == [(36, pytest.approx(0.90))]
    draw(measured, str(tmp_path / "a.png"))
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
