"""Builds the models of the rows of the papers' tables, without training, beside the papers' figures."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from projects import get_cfg
from segzoo.engine.ablations import Row, count_trainable, read_ablations, row_config, select_rows
from segzoo.errors import SegZooError


@dataclass
class Outcome:
    """What became of a row: its number of trainable parameters, or why it cannot be built."""

    file: str
    row: Row
    trainable_parameters: int = 0
    error: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for json."""
        row = self.row
        entry = {
            "row": row.id,
            "table": row.table,
            "title": row.title,
            "kinds": list(row.kinds),
            "file": self.file,
            "config_file": row.config_file,
            "options": dict(row.options),
            "model_of": row.model_of,
            "dataset": row.dataset,
            "device": row.device,
            "image_size": list(row.image_size),
            "note": row.note,
            "cited": row.cited,
            "paper": dict(row.figures),
        }
        return entry | ({"error": self.error} if self.error else {"trainable_parameters": self.trainable_parameters})


def build_rows(files: Sequence[str], ids: Sequence[str]) -> list[Outcome]:
    """Builds the rows of `files` with these ids (all without ids), each on its own.

    Raises:
        ConfigError: a file that is at fault, or an id that no file has.
    """
    rows = [(file, row) for file in files for row in read_ablations(file)]
    chosen = {row.id for row in select_rows([row for _, row in rows], ids)}
    return [build_row(file, row) for file, row in rows if row.id in chosen]


def build_row(file: str, row: Row) -> Outcome:
    """Builds the model of a row; whatever goes wrong is this row's outcome and stops no other."""
    if row.cited:
        return Outcome(file, row)
    try:
        return Outcome(file, row, count_trainable(row_config(row, get_cfg())))
    except SegZooError as error:
        cause = str(error)
    except Exception as error:
        # Not only our own errors: libraries assert what they think of a value.
        cause = f"{type(error).__name__}: {error}"
    return Outcome(file, row, error=f"{file}, row {row.id}: {cause}")


def print_tables(outcomes: Sequence[Outcome]) -> None:
    """One block a table, one line a row: id, trainable parameters, the paper's figures, config and options."""
    width = max((len(outcome.row.id) for outcome in outcomes), default=0)
    heading: tuple[str, str] | None = None
    for outcome in outcomes:
        row = outcome.row
        if heading != (outcome.file, row.table):
            heading = (outcome.file, row.table)
            columns = "  ".join(f"{column:>5}" for column in row.figures)
            print(f"\n{outcome.file}, table {row.table}: {row.title}\n{'':{width}}  trainable  {columns}  model")
        built = "   FAILED" if outcome.error else f"{outcome.trainable_parameters / 1e6:7.2f} M"
        built = "    cited" if row.cited else built
        texts = {column: "-" if figure is None else str(figure) for column, figure in row.figures.items()}
        figures = "  ".join(f"{text:>{max(len(column), 5)}}" for column, text in texts.items())
        print(f"{row.id:{width}}  {built}  {figures}  {describe(row)}")


def describe(row: Row) -> str:
    """The config and options of a row as words of a command line, and what its figures belong to."""
    size = "x".join(map(str, row.image_size))
    model_of = f"model of {row.model_of}" if row.model_of else ""
    conditions = ", ".join(filter(None, [model_of, row.dataset, size, row.device]))
    if row.cited:
        return f"{row.cited}  ({conditions})"
    return f"{shlex.join([row.config_file, *row.words])}  ({conditions})"
