"""The tables of a comparison, once for the page and for Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from segzoo.evaluation.metrics import MAX_DETECTIONS
from segzoo.evaluation.stages import STAGES
from segzoo.report.content import Comparison, Model, Speed, main_task

TASK_TITLES = {"segm": "mask", "boundary": "boundary", "bbox": "box"}
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
RECALLS = tuple(f"AR{limit}" for limit in MAX_DETECTIONS) + ("ARs", "ARm", "ARl")
ABSENT = "-"


@dataclass(frozen=True)
class Cell:
    """text: as shown. value: to sort by, None sorts last. is_best: of its column."""

    text: str
    value: float | None = None
    is_best: bool = False


@dataclass
class Table:
    """caption: what the figures are and belong to. The first column names the row."""

    caption: str
    header: list[str]
    rows: list[list[Cell]] = field(default_factory=list)


def all_tables(comparison: Comparison) -> dict[str, list[Table]]:
    """Section -> its tables, in their order; sections without figures are left out."""
    sections = {
        "Overview": [overview(comparison), single_objects(comparison)],
        "Size and speed": [costs(comparison)],
        "Trainings": [trainings(comparison)],
        "All metrics": [task_table(comparison, task) for task in comparison.tasks],
        "By class": [class_table(comparison)] if len(comparison.class_counts) > 1 else [],
        "Time by stage": [stage_table(comparison)],
    }
    return {title: kept for title, tables in sections.items() if (kept := [table for table in tables if table.rows])}


def conditions_text(comparison: Comparison) -> str:
    """Data, budget and device in one line, for captions."""
    conditions = dict(comparison.conditions)
    parts = [conditions.get(name, "") for name in ("evaluated on", "budget", "device")]
    return "; ".join(part for part in parts if part)


def overview(comparison: Comparison) -> Table:
    """What models are chosen by: AP, its sizes, boundaries, boxes, recall."""
    task = main_task(comparison.tasks)
    columns: list[tuple[str, Callable[[Model], Cell]]] = [
        (f"{TASK_TITLES[task]} {name}", _metric_cell(task, name)) for name in METRICS
    ]
    columns += [(f"{TASK_TITLES[other]} AP", _metric_cell(other, "AP")) for other in comparison.tasks if other != task]
    columns.append(("AR100", _metric_cell(task, "AR100")))
    caption = f"AP and AR in percent, mean and standard deviation over seeds. {conditions_text(comparison)}."
    return _table(comparison, caption, columns)


def single_objects(comparison: Comparison) -> Table:
    """How well objects are found one by one, and the score above which detections are worth showing."""
    columns: list[tuple[str, Callable[[Model], Cell]]] = [
        ("mean IoU", lambda model: _number(model.mean_iou, "{:.3f}")),
        ("best F1", lambda model: _number(model.best_f1, "{:.3f}")),
        ("at score", lambda model: _number(model.score_threshold if model.best_f1 else None, "{:.2f}")),
    ]
    caption = (
        "Of the first seed's training. Best F1: of precision and recall at IoU 0.5, and the score above which "
        "detections reach it. Mean IoU: of every object with the best of those detections, 0 where none is of its "
        f"class. {conditions_text(comparison)}."
    )
    return _table(comparison, caption, columns, without_best=("at score",))


def costs(comparison: Comparison) -> Table:
    """Parameters, multiply-accumulates, time and memory."""
    columns: list[tuple[str, Callable[[Model], Cell]]] = [
        ("parameters, M", lambda model: _number(model.cost.parameters / 1e6 if model.cost else None, "{:.2f}")),
        ("GMAC", lambda model: _number(model.cost.gmac if model.cost else None, "{:.2f}")),
        ("GMAC more for", _object_cell),
        ("input, px", _input_cell),
        ("ms an image", lambda model: _number(_ms(model, "median"), "{:.1f}")),
        ("p95", lambda model: _number(_ms(model, "p95"), "{:.1f}")),
        ("images a second", lambda model: _number(_rate(model), "{:.1f}")),
        ("found an image", lambda model: _number(_first(model, lambda speed: speed.detections), "{:.1f}")),
        ("MiB", lambda model: _number(_first(model, lambda speed: speed.peak_mib), "{:.0f}")),
    ]
    caption = (
        "GMAC: of one image of the median size, detection alone; what each further object or group adds beside it. "
    )
    speeds = [speed for model in comparison.models for speed in model.speeds]
    if speeds:
        batch = f"batch {speeds[0].batch}, {speeds[0].precision}"
        caption += f"Time and memory: {batch}, {comparison.speed_conditions}. MiB: the model and what a batch adds. "
    return _table(
        comparison,
        caption + conditions_text(comparison) + ".",
        columns,
        lower=("parameters, M", "GMAC", "ms an image", "p95", "MiB"),
        without_best=("found an image", "input, px", "GMAC more for"),
    )


def trainings(comparison: Comparison) -> Table:
    """A row a training, the failed ones too."""
    header = [
        "model",
        "config",
        "recipe",
        "seed",
        "iterations",
        "images seen",
        "minutes",
        "of iterations",
        "commit",
        "result",
    ]
    table = Table(
        f"Every training. Minutes with start, evaluation and checkpoints. {conditions_text(comparison)}.", header
    )
    task = main_task(comparison.tasks)
    for model in comparison.models:
        for run in model.runs:
            ap = Model("", "", "", runs=[run]).mean(task, "AP")
            result = f"FAILED: {run.error}" if run.error else f"{TASK_TITLES[task]} AP {_text(ap, '{:.1f}')}"
            seen = run.iterations * run.batch
            table.rows.append(
                [
                    Cell(model.title),
                    Cell(model.config),
                    Cell(model.recipe or ABSENT),
                    Cell(str(run.seed), run.seed),
                    Cell(f"{run.iterations} x {run.batch}" if run.batch else ABSENT, run.iterations),
                    Cell(f"{seen:,}" if seen else ABSENT, seen),
                    _number(run.minutes, "{:.1f}"),
                    _number(run.training_minutes, "{:.1f}"),
                    Cell(run.commit or ABSENT),
                    Cell(result, ap),
                ]
            )
    return table


def task_table(comparison: Comparison, task: str) -> Table:
    """All of COCO's metrics of a task."""
    columns = [(name, _metric_cell(task, name)) for name in (*METRICS, *RECALLS)]
    return _table(
        comparison, f"{TASK_TITLES[task].capitalize()} metrics, percent. {conditions_text(comparison)}.", columns
    )


def class_table(comparison: Comparison) -> Table:
    """A row a class: objects, and every model's AP."""
    task = main_task(comparison.tasks)
    caption = f"{TASK_TITLES[task].capitalize()} AP by class, percent. {conditions_text(comparison)}."
    table = Table(caption, ["class", "objects", *(model.title for model in comparison.models)])
    for name, count in comparison.class_counts.items():
        cells = [_metric_cell(task, f"AP-{name}")(model) for model in comparison.models]
        table.rows.append([Cell(name), Cell(str(count), count), *_mark_best(cells, is_lower_better=False)])
    return table


def stage_table(comparison: Comparison) -> Table:
    """A row a model, precision and batch: medians of the stages."""
    caption = f"Median ms an image by stage. {comparison.speed_conditions}. {conditions_text(comparison)}."
    table = Table(caption, ["model", "precision", "batch", "whole", "p95", *STAGES, "found", "MiB"])
    for model in comparison.models:
        for speed in model.speeds:
            stages = [_number(speed.stages_ms.get(stage, {}).get("median"), "{:.1f}") for stage in STAGES]
            table.rows.append(
                [
                    Cell(model.title),
                    Cell(speed.precision),
                    Cell(str(speed.batch), speed.batch),
                    _number(speed.whole_ms["median"], "{:.1f}"),
                    _number(speed.whole_ms["p95"], "{:.1f}"),
                    *stages,
                    _number(speed.detections, "{:.1f}"),
                    _number(speed.peak_mib, "{:.0f}"),
                ]
            )
    return table


def _table(
    comparison: Comparison,
    caption: str,
    columns: Sequence[tuple[str, Callable[[Model], Cell]]],
    *,
    lower: Sequence[str] = (),
    without_best: Sequence[str] = (),
) -> Table:
    """A row a model; columns that no model has a figure in are left out, the best of every other one is marked."""
    kept = []
    for name, cell in columns:
        cells = [cell(model) for model in comparison.models]
        if any(one.text != ABSENT for one in cells):
            marked = cells if name in without_best else _mark_best(cells, is_lower_better=name in lower)
            kept.append((name, marked))
    rows = [[Cell(model.title), *(cells[place] for _, cells in kept)] for place, model in enumerate(comparison.models)]
    return Table(caption, ["model", *(name for name, _ in kept)], rows if kept else [])


def _mark_best(cells: Sequence[Cell], *, is_lower_better: bool) -> list[Cell]:
    """The same with the best marked, where there is something to choose from; equal ones all are."""
    values = [cell.value for cell in cells if cell.value is not None]
    if len(set(values)) < 2:
        return list(cells)
    best = min(values) if is_lower_better else max(values)
    return [Cell(cell.text, cell.value, cell.value == best) for cell in cells]


def _metric_cell(task: str, metric: str) -> Callable[[Model], Cell]:
    def cell(model: Model) -> Cell:
        mean, spread = model.mean(task, metric), model.spread(task, metric)
        if mean is None or spread is None:
            return _number(mean, "{:.1f}")
        return Cell(f"{mean:.1f} ± {spread:.1f}", mean)

    return cell


def _number(value: float | None, form: str) -> Cell:
    return Cell(_text(value, form), value)


def _text(value: float | None, form: str) -> str:
    return ABSENT if value is None else form.format(value)


def _object_cell(model: Model) -> Cell:
    if model.cost is None or not model.cost.object_unit:
        return Cell(ABSENT)
    return Cell(f"{model.cost.object_gmac:.2f} a {model.cost.object_unit}", model.cost.object_gmac)


def _input_cell(model: Model) -> Cell:
    if model.cost is None:
        return Cell(ABSENT)
    height, width = model.cost.image_size
    return Cell(f"{height} x {width}", height * width)


def _first(model: Model, value: Callable[[Speed], float]) -> float | None:
    """Of the first precision and batch."""
    return value(model.speeds[0]) if model.speeds else None


def _ms(model: Model, name: str) -> float | None:
    return _first(model, lambda speed: speed.whole_ms[name])


def _rate(model: Model) -> float | None:
    milliseconds = _ms(model, "median")
    return 1000 / milliseconds if milliseconds else None
