"""Parameters and GMAC of a config's model on one image; runs on the CPU, loads and downloads no weights.

    python tools/complexity.py --config-file configs/polarmask_R50.yaml --size 800 1280 [--json] [KEY VALUE ...]
    python tools/complexity.py --table [--markdown] [--json]

The second form prints the papers' own figures (the complexity columns of projects/*/ablations.yaml) beside ours, and
the cost of every method at its recipe's size.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from projects import get_cfg
from projects.costs import paper_rows, recipe_rows, tables
from segzoo.config import merge_config
from segzoo.errors import ConfigError, SegZooError
from segzoo.evaluation.complexity import build_for_counting, measure_complexity

DEFAULT_SIZE = (800, 1280)


def build_argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default="", help="a file of configs/")
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("H", "W"), help=f"image size in pixels (default: {DEFAULT_SIZE})"
    )
    parser.add_argument(
        "--objects",
        type=int,
        nargs="+",
        default=(),
        metavar="N",
        help="totals for so many objects, of a method that costs more with more of them (FCOSIS: colour groups)",
    )
    parser.add_argument("--table", action="store_true", help="all methods, beside the papers' figures")
    parser.add_argument("--markdown", action="store_true", help="the tables in Markdown")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line, on an error its text"
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys to change")
    return parser


def run(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """What is printed, and the JSON.

    Raises:
        ConfigError: neither or both of the two forms, or a config that cannot be counted.
    """
    if args.table:
        given = [args.config_file, args.size, args.objects, args.opts]
        if any(given):
            raise ConfigError(
                "--table takes no --config-file, --size, --objects or KEY VALUE",
                "its rows come from projects/*/ablations.yaml, its sizes from the configs",
            )
        paper, recipes = paper_rows(), recipe_rows()
        rows = {"paper": [row.as_dict() for row in paper], "recipes": [row.as_dict() for row in recipes]}
        return tables(paper, recipes, markdown=args.markdown), rows
    if not args.config_file or args.markdown:
        raise ConfigError(
            "--markdown belongs to --table" if args.config_file else "neither --config-file nor --table",
            "say --config-file configs/polarmask_R50.yaml, or --table for all methods",
        )
    cfg = merge_config(get_cfg(), args.config_file, args.opts)
    complexity = measure_complexity(build_for_counting(cfg), tuple(args.size or DEFAULT_SIZE), args.objects)
    return complexity.table(), {"config_file": args.config_file, **complexity.as_dict()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table (and the JSON); returns the exit code."""
    args = build_argument_parser().parse_args(arguments)
    try:
        text, values = run(args)
    except SegZooError as error:
        print(f"error: {error}", file=sys.stderr)
        if args.json:
            print(json.dumps({"error": error.message}))
        return error.exit_code
    print(text)
    if args.json:
        print(json.dumps(values))
    return 0


if __name__ == "__main__":
    sys.exit(main())
