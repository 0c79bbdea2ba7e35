"""Numbers and sentences of a report."""

from __future__ import annotations

from segzoo.report.content import Comparison, Model, Speed, TrainedRun
from segzoo.report.wording import number, speed_settings, summary, with_spread


def model(name: str, aps: list[float], ms: float | None = None) -> Model:
    runs = [TrainedRun(seed, 100, 2, results={"segm": {"AP": ap}}) for seed, ap in enumerate(aps)]
    speeds = [] if ms is None else [Speed("fp32", 1, {"median": ms, "p95": ms}, {}, 3.0, 100.0)]
    return Model(name, name, "", runs, speeds=speeds)


def said(*models: Model) -> str:
    return " ".join(summary(Comparison("", [], list(models), {}, ["segm"])))


def test_number_of_nothing_is_a_dash() -> None:
    assert number(None) == number(float("nan")) == number(float("inf")) == "-"
    assert number(-0.04) == "0.0"
    assert number(-1.25, 2) == "-1.25"
    assert number(12345.6, 0) == "12,346"


def test_with_spread_leaves_an_unknown_spread_out() -> None:
    assert with_spread(31.25, 0.449, 2) == "31.25 ± 0.45"
    assert with_spread(31.25, None) == "31.2"
    assert with_spread(None, 0.4) == "-"


def test_summary_says_what_the_best_costs_against_the_fastest() -> None:
    text = said(model("A", [30.0, 30.2], 10.0), model("B", [33.0, 33.4], 25.0))
    assert "B has the best mask AP, 33.2 ± 0.3, 3.1 above A (30.1 ± 0.1)." in text
    assert "That difference is larger than the spread over seeds." in text
    assert "A is the fastest, 10.0 ms an image (fp32, batch 1)." in text
    assert "B takes 25.0 ms, 2.5 times as long, for 3.1 AP more." in text


def test_summary_says_that_a_difference_lies_within_the_spread() -> None:
    text = said(model("A", [30.0, 31.0], 10.0), model("B", [30.2, 31.2], 25.0))
    assert "That difference lies within the spread over seeds." in text
    assert "for 0.2 AP more, which is within the spread over seeds." in text


def test_summary_of_one_seed_says_that_no_spread_is_known() -> None:
    assert "There is one seed a model: the spread is not known" in said(model("A", [30.0]), model("B", [31.0]))
    assert "The spread over seeds of B is not known" in said(model("A", [30.0, 30.1]), model("B", [31.0]))


def test_summary_of_a_best_one_that_is_the_fastest_as_well() -> None:
    assert "It is the fastest as well: 10.0 ms an image (fp32, batch 1)." in said(
        model("A", [30.0], 10.0), model("B", [29.0], 11.0)
    )


def test_summary_of_one_model_and_of_none() -> None:
    assert said(model("A", [30.0], 10.0)) == "A reaches 30.0 mask AP. A takes 10.0 ms an image (fp32, batch 1)."
    assert said() == "No model has results."


def test_summary_of_models_with_equal_ap() -> None:
    assert "A has the best mask AP, 30.0, and B has as much (30.0)." in said(model("A", [30.0]), model("B", [30.0]))


def test_speed_settings_prefers_what_most_models_have() -> None:
    one, two = model("A", [1.0], 10.0), model("B", [1.0], 10.0)
    for of_model in (one, two):
        of_model.speeds.append(Speed("fp16", 1, {"median": 5.0}, {}, 1.0, 1.0))
    two.speeds = two.speeds[1:]
    assert speed_settings(Comparison("", [], [one, two], {}, ["segm"])) == [("fp16", 1), ("fp32", 1)]
