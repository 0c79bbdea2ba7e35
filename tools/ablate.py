"""The rows of the papers' tables: builds, or trains and measures them, beside the papers' figures.

    python tools/ablate.py --dry-run                              # builds all rows of projects/*/ablations.yaml
    python tools/ablate.py --dry-run projects/PolarMask/ablations.yaml --row 1a-18 --row 1a-72 [--json]
    python tools/ablate.py projects/PolarMask/ablations.yaml --row 1a-18 --output output/rays --num-gpus 8
    python tools/ablate.py projects/PolarMask/ablations.yaml --row 1a-18 --output output/small --max-iter 2000 \\
        --train-json train.json --train-images images --val-json val.json --val-images images

Each row is trained and evaluated in a folder of its own below --output; done ones are not done again, interrupted ones
go on. After every row <output>/ablations.md and ablations.json have the tables of all rows measured so far, also by
earlier calls and other machines with the same folder. A dry run downloads nothing and
reads no data. Exit code 0: every row was built or measured. 1: some were not; the others are there all the same. 2: an
unknown row, or a file that is at fault.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from projects.ablation_rows import build_rows, print_tables
from projects.ablation_study import Measured, Settings, done_rows, run_rows, study_tables
from projects.runs import DATA_FLAGS, PROCESS_FLAGS, add_run_flags, given_words
from segzoo.engine.ablations import Row, read_ablations, select_rows
from segzoo.engine.checkpoint import write_atomically
from segzoo.engine.setup import prepare_output_dir
from segzoo.errors import ConfigError, SegZooError

ROOT = Path(__file__).resolve().parents[1]


def build_parser() -> argparse.ArgumentParser:
    """The options of this tool."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", metavar="FILE", help="of a dry run default: projects/*/ablations.yaml")
    parser.add_argument("--row", action="append", default=[], metavar="ID", help="only this row; may be given again")
    parser.add_argument("--dry-run", action="store_true", help="build, do not train")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    running = parser.add_argument_group("running")
    running.add_argument("--output", default="output/ablations", metavar="DIR", help="default: %(default)s")
    running.add_argument(
        "--max-iter", type=int, default=0, metavar="N", help="of every training; default: its recipe's"
    )
    running.add_argument("--report-only", action="store_true", help="the tables of what was measured; trains nothing")
    running.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="config keys after those of a row")
    add_run_flags(running)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the tables (and the JSON); returns the exit code."""
    args = build_parser().parse_args(arguments)
    try:
        return _build(args) if args.dry_run else _run(args)
    except SegZooError as error:
        print(f"error: {error}", file=sys.stderr)
        if args.json:
            print(json.dumps({"error": error.message}))
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped by Ctrl-C; the same command goes on", file=sys.stderr)
        return 130


def _build(args: argparse.Namespace) -> int:
    outcomes = build_rows(args.files or shipped_files(), args.row)
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


def _run(args: argparse.Namespace) -> int:
    if len(args.files) != 1:
        raise ConfigError(f"{len(args.files)} files to run", "give one, such as projects/PolarMask/ablations.yaml")
    if args.max_iter < 0:
        raise ConfigError(f"--max-iter {args.max_iter} is below 0", "give iterations, or leave it out for the recipe's")
    rows = read_ablations(args.files[0])
    settings = Settings(
        output=args.output,
        data_words=given_words(args, DATA_FLAGS),
        max_iter=args.max_iter,
        process_words=given_words(args, PROCESS_FLAGS),
        options=tuple(args.opts),
    )
    prepare_output_dir(args.output, must_be_new=False)
    chosen = [] if args.report_only else select_rows(rows, args.row)
    results = []
    for measured in run_rows(rows, chosen, settings):
        results.append(measured)
        print(f"{measured.row.id}: {measured.error or measured.figures}", flush=True)
        _write(args.output, rows, results, done_rows(rows, settings))
    results = _write(args.output, rows, results, done_rows(rows, settings))
    print(study_tables(results))
    if args.json:
        print(json.dumps({"rows": [one.as_dict() for one in results]}))
    return 1 if any(one.error for one in results) else 0


def _write(output: str, rows: Sequence[Row], own: Sequence[Measured], done: Sequence[Measured]) -> list[Measured]:
    """Writes the tables of this call's rows and of those that were measured before, in the file's order."""
    by_id = {one.row.id: one for one in (*done, *own)}
    results = [by_id[row.id] for row in rows if row.id in by_id]
    write_atomically(os.path.join(output, "ablations.md"), study_tables(results))
    content = json.dumps([one.as_dict() for one in results], indent=1)
    write_atomically(os.path.join(output, "ablations.json"), content + "\n")
    return results


if __name__ == "__main__":
    sys.exit(main())
