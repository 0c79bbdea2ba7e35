"""Runs the rows of the papers' tables and puts what was measured beside what the papers print.

Rows are read by `segzoo.engine.ablations`; trainings and evaluations are done by `projects.runs`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from projects import get_cfg
from projects.runs import Record, Run, data_texts, execute, read_metrics, recorded
from segzoo.config import merge_config
from segzoo.engine.ablations import Row, kind_of, row_config
from segzoo.engine.environment import environment_text, read_environment
from segzoo.engine.evaluate import trained_weights
from segzoo.engine.schedule import scaled_schedule
from segzoo.engine.setup import CONFIG_NAME
from segzoo.engine.stop import TrainingStopped
from segzoo.errors import ConfigError, SegZooError
from segzoo.evaluation.complexity import build_for_counting, measure_complexity

# Sets whose annotations nobody has: their figures come from a server.
UNSCORED = ("test-dev",)


@dataclass(frozen=True)
class Settings:
    """What all rows share.

    output: folder of the runs. data_words: --train-json and the like; without them rows have their recipe's data.
    max_iter: of every training, 0 = the recipe's own schedule. process_words: --num-gpus and the like. options: KEY
    VALUE words after those of a row.
    """

    output: str
    data_words: tuple[str, ...] = ()
    max_iter: int = 0
    process_words: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


@dataclass
class Measured:
    """A row's figures. figures: column -> ours, absent where nothing was measured. conditions: what they belong to.
    notes: why some are absent. error: why the row failed, or ""."""

    row: Row
    figures: dict[str, float] = field(default_factory=dict)
    conditions: str = ""
    notes: list[str] = field(default_factory=list)
    error: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for json."""
        return {
            "row": self.row.id,
            "paper": dict(self.row.figures),
            "measured": self.figures,
            "conditions": self.conditions,
            "notes": self.notes,
            "error": self.error,
        }


def run_rows(
    rows: Sequence[Row], chosen: Sequence[Row], settings: Settings, *, do: Callable[[Run, str], Record] = execute
) -> Iterator[Measured]:
    """Measures the chosen rows, one after the other; a row that fails stops no other.

    Args:
        rows: of the file, to find the models of rows that have another one's.
        chosen: what is measured; models of other rows that they need are trained too.
        settings: of all rows.
        do: does a run.
    """
    by_id = {row.id: row for row in rows}
    for row in chosen:
        measured = Measured(row)
        try:
            if row.cited:
                measured.notes.append(f"the paper cites {row.cited}")
            else:
                _measure(row, by_id.get(row.model_of, row), settings, measured, do)
        except TrainingStopped:
            # Whoever asked for the end means all rows.
            raise
        except SegZooError as error:
            measured.error = str(error)
        except Exception as error:
            # A library's error in one row, too, fails that row alone.
            measured.error = f"{type(error).__name__}: {error}"
        yield measured


def done_rows(rows: Sequence[Row], settings: Settings) -> list[Measured]:
    """Rows that an earlier call, or another machine with the same folder, has measured; nothing is trained."""
    by_id = {row.id: row for row in rows}
    begun = [
        row
        for row in rows
        if "train" in row.kinds
        and os.path.isfile(os.path.join(settings.output, f"{by_id.get(row.model_of, row).id}.json"))
    ]
    return [measured for measured in run_rows(rows, begun, settings, do=recorded) if not measured.error]


def _measure(row: Row, origin: Row, settings: Settings, measured: Measured, do: Callable[[Run, str], Record]) -> None:
    if "complexity" in row.kinds:
        measured.figures |= _complexity_figures(row)
        measured.conditions = "{} x {} px".format(*row.image_size)
    if not {"train", "speed"} & set(row.kinds):
        return
    if "train" in row.kinds and _is_unscored(row) and not settings.data_words:
        measured.notes.append(f"{row.dataset} is scored by a server alone; measured on the recipe's own test set")
    training = training_run(origin, settings)
    record = do(training, settings.output)
    trained = folder = os.path.join(settings.output, training.name)
    last = record
    if record.state == "done" and _needs_evaluation(row, origin, settings):
        evaluation = evaluation_run(row, trained, settings)
        last, folder = do(evaluation, settings.output), os.path.join(settings.output, evaluation.name)
    if last.state != "done":
        raise ConfigError(last.error, f"see {folder}.log; the same command tries it again")
    content = read_metrics(folder)
    measured.figures |= metric_figures(row, content)
    measured.conditions = ", ".join(filter(None, [measured.conditions, _conditions(trained, content, record)]))
    measured.notes += [f"{column} is not measured by a run" for column in row.figures if column == "network FPS"]
    if {"FPS", "ms"} & set(measured.figures):
        measured.notes.append("speed: from the resized image to run lengths, without reading and resizing")


def training_run(row: Row, settings: Settings) -> Run:
    """The training of a row with a model of its own."""
    cfg = row_config(row, get_cfg())
    schedule = scaled_schedule(cfg, settings.max_iter) if settings.max_iter else {}
    words = [str(word) for pair in schedule.items() for word in pair]
    return Run(
        row.id,
        ("--config-file", row.config_file, *settings.data_words, *settings.process_words)
        + (*row.words, *words, *settings.options),
    )


def evaluation_run(row: Row, folder: str, settings: Settings) -> Run:
    """The evaluation of another row's model with this row's options.

    Args:
        row: this row.
        folder: OUTPUT_DIR of the training of the other one.
    """
    weights = trained_weights("", folder)
    flags = ("--config-file", row.config_file, "--eval-only", *settings.data_words, *settings.process_words)
    keeps_data = settings.data_words or _is_unscored(row) or not row.dataset
    data = () if keeps_data else ("DATASETS.TEST", f"('{row.dataset}',)")
    name = row.id if row.model_of else f"{row.id}_evaluation"
    return Run(name, (*flags, *row.words, *data, *settings.options, "MODEL.WEIGHTS", weights))


def _needs_evaluation(row: Row, origin: Row, settings: Settings) -> bool:
    """Whether the figures of the model's training are not this row's: other options, or another data set."""
    if row is not origin and row.options != origin.options:
        return True
    if settings.data_words or not row.dataset or _is_unscored(row):
        return False
    return tuple(row_config(row, get_cfg()).DATASETS.TEST) != (row.dataset,)


def _is_unscored(row: Row) -> bool:
    return any(part in row.dataset for part in UNSCORED)


def metric_figures(row: Row, content: Mapping[str, Any]) -> dict[str, float]:
    """The row's columns that an evaluation has: metrics in percent, and speed from the seconds an image.

    Args:
        row: its columns.
        content: see `read_metrics`.
    """
    figures = {}
    for column in row.figures:
        task, _, name = column.partition("/")
        value = content["results"].get(task, {}).get(name)
        if value is not None:
            figures[column] = float(value)
    seconds = content.get("seconds_per_image")
    if seconds and "FPS" in row.figures:
        figures["FPS"] = 1.0 / seconds["model"]
    if seconds and "ms" in row.figures:
        figures["ms"] = 1000.0 * seconds["model"]
    return figures


def _complexity_figures(row: Row) -> dict[str, float]:
    height, width = row.image_size
    complexity = measure_complexity(build_for_counting(row_config(row, get_cfg())), (height, width))
    figures = {"GMAC": complexity.gmac, "trainable M": complexity.trainable_parameters / 1e6}
    if complexity.mask_map_bytes is not None:
        figures["maps MiB"] = complexity.mask_map_bytes / 2**20
    return {column: figures[column] for column in row.figures if column in figures}


def _conditions(folder: str, content: Mapping[str, Any], record: Record) -> str:
    """Data, iterations, device, minutes and commit of a training, in words.

    Args:
        folder, record: of the training.
        content: of the evaluation.
    """
    cfg = merge_config(get_cfg(), os.path.join(folder, CONFIG_NAME))
    train, test = data_texts(cfg)
    evaluated = str(content.get("dataset", ""))
    # The user's own file has a name in the catalog that says nothing.
    data = f"trained on {train}, evaluated on {test if evaluated.endswith('_json') else evaluated}"
    schedule = f"{cfg.SOLVER.MAX_ITER} iterations of {cfg.SOLVER.IMS_PER_BATCH}"
    device = environment_text(read_environment(folder))
    commit = f"commit {record.commit}" if record.commit else ""
    parts = [data, schedule, device, f"{record.minutes:.0f} minutes", commit]
    return ", ".join(part for part in parts if part)


def study_tables(results: Sequence[Measured]) -> str:
    """Markdown: of each table the paper's figures, ours and the difference, with the conditions of every row."""
    lines: list[str] = []
    for table, own in _by_table(results):
        columns = list(own[0].row.figures)
        lines += ["", f"### Table {table}: {own[0].row.title}", ""]
        lines += ["| row | " + " | ".join(f"{column}: paper | ours | difference" for column in columns) + " |"]
        lines += ["|---" * (1 + 3 * len(columns)) + "|"]
        lines += [f"| {one.row.id} | {' | '.join(_cells(one, column) for column in columns)} |" for one in own]
        lines += [""]
        for one in own:
            remarks = [one.conditions, *one.notes, f"FAILED: {one.error}" if one.error else ""]
            lines += [f"* {one.row.id}: {'; '.join(part for part in remarks if part)}"]
    return "\n".join(lines).strip() + "\n"


def _by_table(results: Sequence[Measured]) -> Iterator[tuple[str, list[Measured]]]:
    tables: dict[str, list[Measured]] = {}
    for one in results:
        tables.setdefault(one.row.table, []).append(one)
    yield from tables.items()


def _cells(measured: Measured, column: str) -> str:
    paper, ours = measured.row.figures[column], measured.figures.get(column)
    digits = 1 if kind_of(column) == "train" else 2
    texts = ["-" if value is None else f"{value:.{digits}f}" for value in (paper, ours)]
    difference = "-" if paper is None or ours is None else f"{ours - paper:+.{digits}f}"
    return " | ".join([*texts, difference])
