"""Turns, medians, and what is said of them."""

from __future__ import annotations

import pytest
import torch
from detectron2.structures import Instances
from torch import nn

from segzoo.engine.environment import environment_of
from segzoo.evaluation import speed
from segzoo.evaluation.speed import SpeedRow, Subject, can_compute, measure_in_turns, summarize, warnings_of
from segzoo.evaluation.stages import STAGES, StageClock

CPU = torch.device("cpu")


def make_subject(name: str, calls: list[str], batch: int = 1) -> Subject:
    def predict(clock: StageClock) -> list[Instances]:
        calls.append(name)
        with clock.stage("decode"):
            found = [Instances((4, 4), scores=torch.ones(number)) for number in range(batch)]
        return found

    return Subject(name, batch, "fp32", nn.Linear(256, 1024), predict, {}, {})


def test_subjects_take_turns_and_warm_up_does_not_count() -> None:
    calls: list[str] = []
    rows = measure_in_turns(
        [make_subject("a", calls), make_subject("b", calls, batch=3)], device=CPU, repeats=2, warm_up=2
    )
    # Each once for detections and memory; one turn that does not count, two that do: for the caches, whole, stages.
    assert calls == ["a", "b", *[*["a"] * 3, *["b"] * 3] * 3]
    assert [len(row.whole_ms) for row in rows] == [2, 2]
    assert [len(times) for times in rows[1].stages_ms.values()] == [2] * len(STAGES)
    assert [row.detections for row in rows] == [0, 1]
    # The model's own values, 257 KiB and a little.
    assert rows[0].peak_mb == pytest.approx(1.004, abs=0.05)


def test_times_are_those_of_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "_whole", lambda *_: 12.0)
    monkeypatch.setattr(speed, "_stages", lambda *_: {"heads": 6.0, "decode": 3.0})
    (row,) = measure_in_turns([make_subject("a", [], batch=4)], device=CPU, repeats=3, warm_up=1)
    assert row.whole_ms == [3.0] * 3
    assert row.stages_ms["heads"] == [1.5] * 3
    assert row.stages_ms["masks"] == [0.0] * 3
    assert row.stage_share == pytest.approx(9 / 12)
    values = row.as_dict()
    assert values["images_per_second"] == pytest.approx(1000 / 3, abs=0.01)
    assert values["stages_share_of_whole"] == 0.75


def test_whole_and_stages_are_first_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def whole(*_: object) -> float:
        order.append("whole")
        return 1.0

    def stages(*_: object) -> dict[str, float]:
        order.append("stages")
        return {}

    monkeypatch.setattr(speed, "_whole", whole)
    monkeypatch.setattr(speed, "_stages", stages)
    measure_in_turns([make_subject("a", [])], device=CPU, repeats=2, warm_up=1)
    assert order == ["whole", "stages", "stages", "whole"]


def test_summarize_gives_median_and_95th_percentile() -> None:
    assert summarize([float(number) for number in range(101)]) == {"median": 50.0, "p95": 95.0}


def make_row(share: float) -> SpeedRow:
    row = SpeedRow("a.yaml", 1, "fp32", 100.0, 50.0, [10.0, 10.0])
    row.stages_ms = {stage: [0.0, 0.0] for stage in STAGES} | {"heads": [10 * share] * 2}
    return row


def test_warnings_name_rows_whose_stages_do_not_add_up() -> None:
    assert warnings_of([make_row(1.04), make_row(0.96)]) == []
    (warning,) = warnings_of([make_row(1.0), make_row(0.8), make_row(1.2)])
    assert "2 of 3 rows" in warning
    assert "80% to 120%" in warning


def test_table_has_a_line_a_row() -> None:
    lines = speed.speed_table([make_row(0.5)]).splitlines()
    assert len(lines) == 2
    assert lines[1].split()[:5] == ["a.yaml", "fp32", "1", "10.0", "10.0"]
    assert "50%" in lines[1]
    assert speed.speed_table([make_row(0.5)], markdown=True).startswith("| config |")


def test_precision_that_torch_lacks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert can_compute("fp32", CPU) == ""
    assert can_compute("bf16", CPU) == ""

    def refuse(*_: object) -> None:
        raise RuntimeError('"slow_conv2d_cpu" not implemented for Half\nmore')

    monkeypatch.setattr(torch, "autocast", refuse)
    assert can_compute("fp32", CPU) == ""
    reason = can_compute("fp16", CPU)
    assert "cannot compute fp16 on cpu" in reason
    assert "not implemented for Half" in reason
    assert "\n" not in reason


def test_precision_that_autocast_ignores_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(speed.PRECISIONS, "fp64", torch.float64)
    with pytest.warns(UserWarning, match="autocast"):
        assert "its autocast gives torch.float32" in can_compute("fp64", CPU)


def test_environment_names_device_and_versions() -> None:
    found = environment_of(CPU)
    assert torch.__version__.startswith(found["versions"]["torch"].partition("+")[0])
    assert found["threads"] == torch.get_num_threads()
    assert found["processor"]
    assert found["cuda"] is None
