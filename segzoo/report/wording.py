"""Numbers as a report writes them, what its figures belong to, and what they say in words."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from segzoo.report.content import Comparison, Model, Speed, TrainedRun, main_task

MISSING = "-"
TASK_TITLES = {"segm": "Masks", "boundary": "Boundary", "bbox": "Boxes"}
TASK_WORDS = {"segm": "mask AP", "boundary": "boundary AP", "bbox": "box AP"}
# Words of the conditions that a caption repeats; versions and dates stand in the table alone.
_CAPTION_WORDS = ("data", "image", "budget", "schedule", "iteration", "batch", "seed")
_DEVICE_WORDS = ("device", "gpu", "processor", "cpu")


def number(value: float | None, digits: int = 1) -> str:
    """A value, or "-" without one."""
    if value is None or not math.isfinite(value):
        return MISSING
    text = f"{value:,.{digits}f}"
    # Nothing below zero is left of -0.04.
    return text.lstrip("-") if not text.strip("-0.,") else text


def with_spread(value: float | None, spread: float | None, digits: int = 1) -> str:
    """Mean ± standard deviation, as far as they are known."""
    text = number(value, digits)
    return text if text == MISSING or number(spread) == MISSING else f"{text} ± {number(spread, digits)}"


def task_title(task: str) -> str:
    """Of a table."""
    return TASK_TITLES.get(task, task)


def task_word(task: str) -> str:
    """Its AP, within a sentence."""
    return TASK_WORDS.get(task, f"{task} AP")


def listed(names: Iterable[str]) -> str:
    """ "a, b and c"."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def capitalized(text: str) -> str:
    """With a large first letter; the others stay as they are."""
    return text[:1].upper() + text[1:]


def plural(count: int, noun: str) -> str:
    """ "1 run", "2 runs"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def finished_runs(model: Model) -> list[TrainedRun]:
    """Those without an error."""
    return [run for run in model.runs if not run.error]


def failed_runs(comparison: Comparison) -> list[tuple[Model, TrainedRun]]:
    """All that have no results because of an error."""
    return [(model, run) for model in comparison.models for run in model.runs if run.error]


def speed_settings(comparison: Comparison) -> list[tuple[str, int]]:
    """(precision, batch) that times were taken with: what most models have first, then small batches, then fp32."""
    count = Counter((speed.precision, speed.batch) for model in comparison.models for speed in model.speeds)
    return sorted(count, key=lambda setting: (-count[setting], setting[1], setting[0] != "fp32", setting[0]))


def main_speed(comparison: Comparison, model: Model) -> Speed | None:
    """The times that models are compared by."""
    settings = speed_settings(comparison)
    return speed_at(model, settings[0]) if settings else None


def speed_at(model: Model, setting: tuple[str, int]) -> Speed | None:
    """A model's times in one precision and batch."""
    found = [speed for speed in model.speeds if (speed.precision, speed.batch) == setting]
    # Without a time there is nothing to compare, nor to divide by.
    return found[0] if found and number(found[0].whole_ms.get("median")) != MISSING else None


def setting_text(setting: tuple[str, int]) -> str:
    """ "fp32, batch 1"."""
    return f"{setting[0]}, batch {setting[1]}"


def seeds_text(comparison: Comparison) -> str:
    """How often each model was trained; failed runs do not count."""
    counts = sorted({len(finished_runs(model)) for model in comparison.models} - {0})
    if not counts:
        return "no finished run"
    if counts == [1]:
        return "one seed a model"
    span = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"mean ± standard deviation over {span} seeds"


def accuracy_conditions(comparison: Comparison, *, is_mean: bool = True) -> str:
    """What AP belongs to, for a caption; is_mean: over seeds, not of one run."""
    return _conditions(comparison, _CAPTION_WORDS, [seeds_text(comparison)] if is_mean else [])


def speed_conditions(comparison: Comparison) -> str:
    """What times belong to, for a caption."""
    if comparison.speed_conditions:
        return comparison.speed_conditions.rstrip(".") + "."
    return _conditions(comparison, _DEVICE_WORDS, [])


def _conditions(comparison: Comparison, words: Sequence[str], more: list[str]) -> str:
    chosen = [
        f"{what}: {value}" for what, value in comparison.conditions if any(word in what.lower() for word in words)
    ]
    # None is called by one of these words: then all of them may matter.
    chosen = chosen or [f"{what}: {value}" for what, value in comparison.conditions]
    text = "; ".join([*chosen, *more]).rstrip(".")
    return f"{capitalized(text)}." if text else ""


def is_within_spread(first: Model, second: Model, task: str) -> bool | None:
    """Whether two models' AP are no further apart than their standard deviations together; None: nobody knows."""
    values = [model.mean(task, "AP") for model in (first, second)]
    spreads = [model.spread(task, "AP") for model in (first, second)]
    if None in values or None in spreads:
        return None
    one, other = (value or 0.0 for value in values)
    return abs(one - other) <= math.hypot(*(spread or 0.0 for spread in spreads))


def summary(comparison: Comparison) -> list[str]:
    """Sentences: who is best, who is fastest, what the one costs against the other, and what has failed."""
    task = main_task(comparison.tasks)
    measured = [(model, ap) for model in comparison.models if (ap := model.mean(task, "AP")) is not None]
    ranked = sorted(measured, key=lambda pair: -pair[1])
    sentences = _accuracy_sentences(ranked, task) if ranked else ["No model has results."]
    sentences += _speed_sentences(comparison, ranked, task)
    failed = failed_runs(comparison)
    if failed:
        names = listed(dict.fromkeys(model.title for model, _ in failed))
        runs = sum(len(model.runs) for model in comparison.models)
        sentences.append(f"{len(failed)} of {plural(runs, 'run')} failed ({names}), see the errors below the table.")
    return sentences


def _reached(model: Model, task: str) -> str:
    return with_spread(model.mean(task, "AP"), model.spread(task, "AP"))


def _accuracy_sentences(ranked: list[tuple[Model, float]], task: str) -> list[str]:
    best, best_ap = ranked[0]
    if len(ranked) == 1:
        return [f"{best.title} reaches {_reached(best, task)} {task_word(task)}."]
    second, second_ap = ranked[1]
    ahead = number(best_ap - second_ap)
    first = f"{best.title} has the best {task_word(task)}, {_reached(best, task)}"
    if ahead == number(0.0):
        sentence = f"{first}, and {second.title} has as much ({_reached(second, task)})."
    else:
        sentence = f"{first}, {ahead} above {second.title} ({_reached(second, task)})."
    is_within = is_within_spread(best, second, task)
    if is_within is not None:
        verdict = "lies within" if is_within else "is larger than"
        return [sentence, f"That difference {verdict} the spread over seeds."]
    if all(len(model.values(task, "AP")) == 1 for model, _ in ranked):
        return [sentence, "There is one seed a model: the spread is not known, and small differences may be chance."]
    single = listed(model.title for model in (best, second) if model.spread(task, "AP") is None)
    return [sentence, f"The spread over seeds of {single} is not known, so the difference may be chance."]


def _speed_sentences(comparison: Comparison, ranked: list[tuple[Model, float]], task: str) -> list[str]:
    timed = [
        (model, speed.whole_ms["median"]) for model in comparison.models if (speed := main_speed(comparison, model))
    ]
    if not timed:
        return []
    setting = setting_text(speed_settings(comparison)[0])
    fastest, fastest_ms = min(timed, key=lambda pair: pair[1])
    took = f"{number(fastest_ms)} ms an image ({setting})"
    if len(timed) == 1:
        return [f"{fastest.title} takes {took}."]
    best = ranked[0][0] if ranked else None
    if best is fastest:
        return [f"It is the fastest as well: {took}."]
    sentence = f"{fastest.title} is the fastest, {took}"
    times, reached = {model.name: ms for model, ms in timed}, {model.name: ap for model, ap in ranked}
    if best is None or best.name not in times or fastest.name not in reached:
        return [f"{sentence}."]
    ratio = times[best.name] / fastest_ms if fastest_ms > 0 else math.inf
    gained = number(reached[best.name] - reached[fastest.name])
    cost = f"{best.title} takes {number(times[best.name])} ms, {number(ratio)} times as long, for {gained} AP more"
    if is_within_spread(best, fastest, task):
        cost += ", which is within the spread over seeds"
    return [f"{sentence}. {cost}."]


def collect_notes(comparison: Comparison) -> list[tuple[str, str]]:
    """(title of a model or "", what a reader must know)."""
    notes = [("", note) for note in comparison.notes]
    for model in comparison.models:
        of_model = [*model.notes, *(model.cost.notes if model.cost else [])]
        notes += [(model.title, note) for note in dict.fromkeys(of_model)]
    return notes
