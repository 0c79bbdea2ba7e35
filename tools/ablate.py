"""The rows of the papers' tables: builds every row's model, without training, beside the paper's figures.

    python tools/ablate.py --dry-run                              # all of projects/*/ablations.yaml
    python tools/ablate.py --dry-run projects/PolarMask/ablations.yaml --row 1a-18 --row 1a-72 [--json]

Nothing is downloaded and no data is read. Exit code 0: every row can be built. 1: some cannot; the others are listed
all the same. 2: an unknown row, or a file that is at fault.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from projects import get_cfg
from segzoo.engine.ablations import Row, count_trainable, read_ablations, row_config, select_rows
from segzoo.errors import SegZooError

ROOT = Path(__file__).resolve().parents[1]


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


def build_parser() -> argparse.ArgumentParser:
    """The options of this tool."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", metavar="FILE", help="default: projects/*/ablations.yaml")
    parser.add_argument("--row", action="append", default=[], metavar="ID", help="only this row; may be given again")
    parser.add_argument("--dry-run", action="store_true", required=True, help="build, do not train")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the tables (and the JSON); returns the exit code."""
    args = build_parser().parse_args(arguments)
    try:
        outcomes = build_rows(args.files or shipped_files(), args.row)
    except SegZooError as error:
        print(f"error: {error}", file=sys.stderr)
        if args.json:
            print(json.dumps({"error": error.message}))
        return error.exit_code
    print_tables(outcomes)
    failed = [outcome for outcome in outcomes if outcome.error]
    for outcome in failed:
        print(f"error: {outcome.error}", file=sys.stderr)
    if args.json:
        rows = [outcome.as_dict() for outcome in outcomes]
        print(json.dumps({"rows": rows, "failed": [outcome.row.id for outcome in failed]}))
    return 1 if failed else 0


def shipped_files() -> list[str]:
    """The studies of this repository."""
    return sorted(os.path.relpath(path) for path in ROOT.glob("projects/*/ablations.yaml"))


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


if __name__ == "__main__":
    sys.exit(main())
