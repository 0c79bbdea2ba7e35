"""What a comparison has found, in sentences that say no more than its figures do."""

from __future__ import annotations

import math

from segzoo.report.content import Comparison, Model, main_task
from segzoo.report.tables import TASK_TITLES


def summarize(comparison: Comparison) -> list[str]:
    """Who is best, by how much and how sure, who is fastest and at what price, and what failed."""
    task = main_task(comparison.tasks)
    ranked = sorted(
        (model for model in comparison.models if model.mean(task, "AP") is not None),
        key=lambda model: -(model.mean(task, "AP") or 0.0),
    )
    sentences = []
    if ranked:
        sentences.append(_best(ranked, task))
        sentences += _certainty(ranked, task)
        sentences += _fastest(ranked, task)
    else:
        sentences.append("No training came to its end.")
    failed = [f"{model.title} (seed {run.seed})" for model in comparison.models for run in model.runs if run.error]
    if failed:
        sentences.append(f"Failed: {', '.join(failed)}; see the trainings.")
    return sentences


def _ap(model: Model, task: str) -> float:
    value = model.mean(task, "AP")
    assert value is not None
    return value


def _best(ranked: list[Model], task: str) -> str:
    best = f"{ranked[0].title} has the highest {TASK_TITLES[task]} AP, {_ap(ranked[0], task):.1f}"
    if len(ranked) == 1:
        return f"{ranked[0].title} has a {TASK_TITLES[task]} AP of {_ap(ranked[0], task):.1f}."
    lead = _ap(ranked[0], task) - _ap(ranked[1], task)
    return f"{best}, {lead:.1f} points above {ranked[1].title}."


def _certainty(ranked: list[Model], task: str) -> list[str]:
    if len(ranked) < 2:
        return []
    spreads = [model.spread(task, "AP") for model in ranked[:2]]
    if None in spreads:
        return ["With one seed a model it is not known how much of the differences is chance."]
    # Of the difference of two trainings, one of each.
    spread = math.hypot(*(value for value in spreads if value is not None))
    lead = _ap(ranked[0], task) - _ap(ranked[1], task)
    if lead <= spread:
        return [f"That is within the spread over seeds ({spread:.1f} points for the difference of two trainings)."]
    return [f"The spread over seeds is {spread:.1f} points for the difference of two trainings."]


def _fastest(ranked: list[Model], task: str) -> list[str]:
    timed = [model for model in ranked if model.speeds]
    if len(timed) < 2:
        return []
    fastest = min(timed, key=lambda model: model.speeds[0].whole_ms["median"])
    milliseconds = fastest.speeds[0].whole_ms["median"]
    if fastest is ranked[0]:
        return [f"It is the fastest as well, {milliseconds:.0f} ms an image."]
    if not ranked[0].speeds:
        return [f"{fastest.title} is the fastest of those timed, {milliseconds:.0f} ms an image."]
    ratio = ranked[0].speeds[0].whole_ms["median"] / milliseconds
    behind = _ap(ranked[0], task) - _ap(fastest, task)
    return [
        f"{fastest.title} is the fastest, {milliseconds:.0f} ms an image: {ratio:.1f} times as fast as "
        f"{ranked[0].title}, with {behind:.1f} points less."
    ]
