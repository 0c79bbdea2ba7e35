"""The tables of a report, as values: the page and the Markdown document show the same ones."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from segzoo.evaluation.stages import STAGES
from segzoo.report.content import Comparison, Model, Speed, main_task
from segzoo.report.wording import (
    MISSING,
    accuracy_conditions,
    capitalized,
    failed_runs,
    finished_runs,
    main_speed,
    number,
    plural,
    setting_text,
    speed_conditions,
    speed_settings,
    task_title,
    task_word,
    with_spread,
)

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
MAIN_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")
CLASS_PREFIX = "AP-"


@dataclass(frozen=True)
class Cell:
    """text: as written, "±" where a spread is known. value: to sort by. note: small print. is_best: of a column.
    model: name of the one that a row is of.
    """

    text: str
    value: float | None = None
    note: str = ""
    is_best: bool = False
    model: str = ""


@dataclass(frozen=True)
class Column:
    """group: a title over neighbouring columns. better: "higher", "lower", or "" where no value is the best."""

    title: str
    group: str = ""
    better: str = ""
    is_text: bool = False


@dataclass
class Table:
    """name: to point at it. The first cell of a row says what the row is of."""

    name: str
    title: str
    caption: str
    columns: list[Column]
    rows: list[list[Cell]]

    @property
    def groups(self) -> list[tuple[str, int]]:
        """(title, columns) of neighbours in one group; empty without groups."""
        found: list[tuple[str, int]] = []
        for column in self.columns:
            if found and found[-1][0] == column.group:
                found[-1] = (column.group, found[-1][1] + 1)
            else:
                found.append((column.group, 1))
        return found if any(title for title, _ in found) else []


def text_cell(text: str) -> Cell:
    """Words; "-" without any."""
    return Cell(text or MISSING)


def value_cell(value: float | None, digits: int = 1, note: str = "") -> Cell:
    """A number; "-" without one."""
    text = number(value, digits)
    return Cell(text, None if text == MISSING else value, note)


def metric_cell(model: Model, task: str, metric: str, digits: int = 1) -> Cell:
    """Mean ± standard deviation over seeds, percent."""
    mean = model.mean(task, metric)
    text = with_spread(mean, model.spread(task, metric), digits)
    return Cell(text, None if text == MISSING else mean)


def mark_best(table: Table) -> Table:
    """Marks the best of every column that has a best, all that are written alike; none in a table of one row."""
    for place, column in enumerate(table.columns):
        cells = [row[place] for row in table.rows if row[place].value is not None]
        if not column.better or len(cells) < 2:
            continue
        choose = max if column.better == "higher" else min
        best = choose(cells, key=lambda cell: cell.value or 0.0)
        written = best.text.split(" ")[0]
        for row in table.rows:
            if row[place].value is not None and row[place].text.split(" ")[0] == written:
                row[place] = replace(row[place], is_best=True)
    return table


def model_cell(model: Model, note: str = "") -> Cell:
    """A model's title."""
    return Cell(model.title or MISSING, note=note, model=model.name)


def name_cell(model: Model) -> Cell:
    """A model, and how many of its runs have failed."""
    failed = len(model.runs) - len(finished_runs(model))
    return model_cell(model, f"{failed} of {plural(len(model.runs), 'run')} failed" if failed else "")


def conditions_table(comparison: Comparison) -> Table:
    """What all figures belong to."""
    rows = [[text_cell(what), text_cell(value)] for what, value in comparison.conditions]
    return Table("conditions", "Conditions", "All figures belong to these.", [Column("what"), Column("value")], rows)


def models_table(comparison: Comparison) -> Table:
    """Config, size and operations of every model."""
    columns = [
        Column("model", is_text=True),
        Column("config", is_text=True),
        Column("recipe", is_text=True),
        Column("parameters, M", better="lower"),
        Column("trained, M"),
        Column("GMAC", better="lower"),
        Column("for image, px", is_text=True),
        Column("GMAC more"),
        Column("for every further", is_text=True),
    ]
    rows = []
    for model in comparison.models:
        row = [model_cell(model), text_cell(model.config), text_cell(model.recipe)]
        cost = model.cost
        if cost is None:
            row += [text_cell("")] * 6
        else:
            row += [value_cell(cost.parameters / 1e6, 2), value_cell(cost.trainable_parameters / 1e6, 2)]
            row += [value_cell(cost.gmac, 2), text_cell(f"{cost.image_size[0]} × {cost.image_size[1]}")]
            row += [value_cell(cost.object_gmac if cost.object_unit else None, 3), text_cell(cost.object_unit)]
        rows.append(row)
    caption = (
        "Size and operations. GMAC: billions of multiply-accumulates for one image of height × width; some methods do "
        "more for every further object or group of objects."
    )
    return mark_best(Table("models", "Models", caption, columns, rows))


def _training_cells(model: Model) -> list[Cell]:
    """Iterations x batch, images seen, minutes."""
    runs = finished_runs(model) or model.runs
    schedules = dict.fromkeys(f"{run.iterations:,} × {run.batch}" for run in runs)
    images = sorted({run.iterations * run.batch for run in runs})
    minutes = [run.minutes for run in runs if number(run.minutes) != MISSING and run.minutes is not None]
    mean = statistics.fmean(minutes) if minutes else None
    spread = statistics.stdev(minutes) if len(minutes) > 1 else None
    return [
        Cell(", ".join(schedules) or MISSING, max((run.iterations for run in runs), default=None)),
        Cell(", ".join(f"{count:,}" for count in images) or MISSING, images[-1] if images else None),
        Cell(with_spread(mean, spread), mean),
    ]


def _cost_cells(comparison: Comparison, model: Model) -> list[Cell]:
    """Parameters, GMAC, ms an image, images a second, peak MiB."""
    cost, speed = model.cost, main_speed(comparison, model)
    more = f"+ {number(cost.object_gmac, 3)} per {cost.object_unit}" if cost and cost.object_unit else ""
    median = speed.whole_ms["median"] if speed else None
    return [
        value_cell(cost.parameters / 1e6 if cost else None),
        value_cell(cost.gmac if cost else None, note=more),
        value_cell(median),
        value_cell(1000 / median if median else None),
        value_cell(speed.peak_mib if speed else None, 0),
    ]


def main_table(comparison: Comparison) -> Table:
    """A row a model: accuracy, size, speed and training."""
    task = main_task(comparison.tasks)
    others = [other for other in comparison.tasks if other != task]
    columns = [Column("model", is_text=True)]
    columns += [Column(metric, task_title(task), "higher") for metric in MAIN_METRICS]
    columns += [Column("AP", task_title(other), "higher") for other in others]
    columns += [Column("params, M", "Size", "lower"), Column("GMAC", "Size", "lower")]
    columns += [Column("ms", "Speed", "lower"), Column("img/s", "Speed", "higher"), Column("MiB", "Speed", "lower")]
    columns += [Column(title, "Training") for title in ("iter. × batch", "images", "min")]
    rows = []
    for model in comparison.models:
        accuracy = [metric_cell(model, task, metric) for metric in MAIN_METRICS]
        accuracy += [metric_cell(model, other, "AP") for other in others]
        rows.append([name_cell(model), *accuracy, *_cost_cells(comparison, model), *_training_cells(model)])
    caption = f"AP and AR in percent. {accuracy_conditions(comparison)} The best of a column is bold."
    settings = speed_settings(comparison)
    if settings:
        caption += f" Speed: median ms an image in {setting_text(settings[0])}. {speed_conditions(comparison)}"
    return mark_best(Table("main", "Results", caption, columns, rows))


def failed_table(comparison: Comparison) -> Table:
    """Why runs have no results."""
    rows = [
        [model_cell(model), Cell(str(run.seed), run.seed), text_cell(run.error)]
        for model, run in failed_runs(comparison)
    ]
    columns = [Column("model", is_text=True), Column("seed"), Column("error", is_text=True)]
    return Table("failed", "Failed runs", "Runs without results; no mean counts them.", columns, rows)


def task_table(comparison: Comparison, task: str) -> Table:
    """All metrics of a task but those of single classes."""
    found = {metric for model in comparison.models for run in model.runs for metric in run.results.get(task, {})}
    more = sorted(metric for metric in found - set(METRICS) if not metric.startswith(CLASS_PREFIX))
    metrics = [*METRICS, *more]
    columns = [Column("model", is_text=True), *(Column(metric, better="higher") for metric in metrics)]
    rows = [
        [name_cell(model), *(metric_cell(model, task, metric, 2) for metric in metrics)] for model in comparison.models
    ]
    caption = (
        "Average precision and recall in percent; s, m, l: objects with an area below 32², up to 96² and "
        f"above 96² px. {accuracy_conditions(comparison)}"
    )
    return mark_best(Table(f"task-{task}", task_title(task), caption, columns, rows))


def class_names(comparison: Comparison, task: str) -> list[str]:
    """Classes that are counted or have an AP, in the order of the data set."""
    names = dict.fromkeys(comparison.class_counts)
    for model in comparison.models:
        for run in model.runs:
            metrics = run.results.get(task, {})
            names.update(dict.fromkeys(key[len(CLASS_PREFIX) :] for key in metrics if key.startswith(CLASS_PREFIX)))
    return list(names)


def class_table(comparison: Comparison, task: str) -> Table:
    """A row a class, a column a model; the best of a row is marked."""
    rows = []
    for name in class_names(comparison, task):
        cells = [metric_cell(model, task, CLASS_PREFIX + name) for model in comparison.models]
        # Marked along the row: as a table of one column.
        upright = Table("", "", "", [Column("", better="higher")], [[cell] for cell in cells])
        marked = [row[0] for row in mark_best(upright).rows]
        rows.append([text_cell(name), value_cell(comparison.class_counts.get(name), 0), *marked])
    columns = [Column("class", is_text=True), Column("objects"), *(Column(model.title) for model in comparison.models)]
    caption = (
        f"{capitalized(task_word(task))} of every class in percent, and how many objects of it were annotated. "
        f"The best of a class is bold. {accuracy_conditions(comparison)}"
    )
    return Table(f"classes-{task}", f"{task_title(task)} by class", caption, columns, rows)


def stage_names(comparison: Comparison) -> list[str]:
    """Stages that were timed, in the order in which an image goes through them."""
    found = dict.fromkeys(stage for model in comparison.models for speed in model.speeds for stage in speed.stages_ms)
    return [stage for stage in STAGES if stage in found] + [stage for stage in found if stage not in STAGES]


def speed_table(comparison: Comparison) -> Table:
    """A row for every model, precision and batch."""
    stages = stage_names(comparison)
    columns = [Column("model", is_text=True), Column("precision", is_text=True), Column("batch")]
    columns += [Column(title, "Whole", better) for title, better in (("ms", ""), ("p95", ""), ("img/s", ""))]
    columns += [Column(stage, "Stages, median ms") for stage in stages]
    columns += [Column("found"), Column("MiB")]
    rows = [
        [model_cell(model), text_cell(speed.precision), value_cell(speed.batch, 0), *_speed_cells(speed, stages)]
        for model in comparison.models
        for speed in model.speeds
    ]
    caption = (
        "Times in ms an image: median and 95th percentile of the whole, medians of the stages. found: detections an "
        f"image. MiB: the model's values and what a batch adds at its peak. {speed_conditions(comparison)}"
    )
    return Table("speed", "Speed by stage", caption, columns, rows)


def _speed_cells(speed: Speed, stages: Sequence[str]) -> list[Cell]:
    median = speed.whole_ms.get("median")
    whole = [value_cell(median, 2), value_cell(speed.whole_ms.get("p95"), 2)]
    whole.append(value_cell(1000 / median if median else None))
    parts = [value_cell(speed.stages_ms.get(stage, {}).get("median"), 2) for stage in stages]
    return [*whole, *parts, value_cell(speed.detections), value_cell(speed.peak_mib, 0)]


def runs_table(comparison: Comparison) -> Table:
    """Every training by itself."""
    task = main_task(comparison.tasks)
    columns = [Column("model", is_text=True), Column("seed"), Column("iterations"), Column("batch")]
    columns += [Column(task_word(task)), Column("minutes"), Column("of training"), Column("commit", is_text=True)]
    rows = []
    for model in comparison.models:
        for run in model.runs:
            row = [model_cell(model, "failed" if run.error else ""), Cell(str(run.seed), run.seed)]
            row += [value_cell(run.iterations, 0), value_cell(run.batch, 0)]
            row += [value_cell(run.results.get(task, {}).get("AP"), 2)]
            row += [value_cell(run.minutes), value_cell(run.training_minutes), text_cell(run.commit[:10])]
            rows.append(row)
    conditions = accuracy_conditions(comparison, is_mean=False)
    caption = f"Every run: minutes of everything and of the iterations alone. {conditions}"
    return Table("runs", "All runs", caption, columns, rows)


def failures_table(comparison: Comparison) -> Table:
    """How well each model finds the objects at the score that suits it, and how many failures are shown."""
    columns = [Column("model", is_text=True), Column("best F1", better="higher"), Column("at score")]
    columns += [Column("mean IoU", better="higher"), Column("failures shown")]
    rows = [
        [
            model_cell(model),
            value_cell(model.best_f1, 3),
            value_cell(None if model.best_f1 is None else model.score_threshold, 2),
            value_cell(model.mean_iou, 3),
            value_cell(len(model.failures), 0),
        ]
        for model in comparison.models
    ]
    caption = (
        "Of the first finished run. Best F1: of precision and recall at IoU 0.5, and the score above which detections "
        "reach it. Mean IoU: of all annotated objects with the best of those detections of their class, 0 without any. "
        f"{accuracy_conditions(comparison, is_mean=False)}"
    )
    return mark_best(Table("mean-iou", "How well objects are found", caption, columns, rows))


def all_tables(comparison: Comparison) -> list[Table]:
    """Every table that has rows, in the order of the page."""
    makers: list[Callable[[Comparison], Table]] = [conditions_table, models_table, main_table, failed_table]
    tables = [make(comparison) for make in makers]
    tables += [task_table(comparison, task) for task in comparison.tasks]
    tables += [class_table(comparison, task) for task in comparison.tasks]
    tables += [speed_table(comparison), runs_table(comparison), failures_table(comparison)]
    return [table for table in tables if table.rows]
