"""Upper bounds of the methods' mask representations on a data set, without training and without images.

    python tools/upper_bound.py --annotations instances_val.json --output output/upper_bound

Every object is turned into what each method's network would have to predict, and back, by the method's own code.
Printed, and written to the folder, are mean IoU, mask AP and boundary AP of what comes back (docs/upper_bound.md).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from projects.upper_bound.choice import METHODS, RAYS, SHAPE_SIZES, choose_groups
from projects.upper_bound.measure import measure
from projects.upper_bound.objects import read_data_set
from projects.upper_bound.report import advice, as_dict, as_text, describe_data, page, table
from segzoo.engine.checkpoint import write_atomically
from segzoo.errors import ConfigError, SegZooError


def build_argument_parser() -> argparse.ArgumentParser:
    """The options of this tool."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--annotations", nargs="+", required=True, metavar="FILE", help="COCO json; several count as one data set")
    add("--output", default="output/upper_bound", metavar="DIR", help="gets report.json, report.md and report.png")
    add("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="default: all")
    add("--rays", nargs="+", type=int, default=list(RAYS), metavar="N", help=f"default: {' '.join(map(str, RAYS))}")
    add("--shape-sizes", nargs="+", type=int, default=list(SHAPE_SIZES), metavar="S", help="default: 16 to 64")
    add(
        "--input",
        choices=("recipe", "image"),
        default="recipe",
        help="size at which maps of stride 4 and box masks are made: the recipes', or the image's own",
    )
    add("--iou-only", action="store_true", help="no AP, which takes most of the time")
    add("--workers", type=int, default=usable_cores(), metavar="N", help="processes; default: one a core")
    add("--json", action="store_true", help="print one JSON object as the last line")
    return parser


def usable_cores() -> int:
    """The cores that this process may run on, which containers and batch systems make fewer than the machine's."""
    # Linux alone can tell before Python 3.13.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run(args: argparse.Namespace) -> dict:
    """Measures, prints and writes; returns the report."""
    if args.workers < 1:
        raise ConfigError(f"--workers is {args.workers}", "it must be at least 1")
    groups = choose_groups(args.methods, args.rays, args.shape_sizes, is_recipe=args.input == "recipe")
    started = time.perf_counter()
    data = read_data_set(args.annotations)
    print(describe_data(data), flush=True)
    # One process needs no other beside it.
    num_workers = args.workers if args.workers > 1 else 0
    measured = measure(data, groups, num_workers=num_workers, with_ap=not args.iou_only, shows_progress=True)
    seconds = round(time.perf_counter() - started, 1)
    conditions = {"input": args.input, "workers": args.workers, "seconds": seconds}
    report = as_dict(measured, data, conditions)
    print(as_text(table(measured)), f"{seconds} s. {advice(measured)}", sep="\n\n")
    write(args.output, report, page(measured, data, conditions))
    # Here, because it takes a second to import.
    from projects.upper_bound.plot import draw

    draw(measured, os.path.join(args.output, "report.png"))
    print(f"report.json, report.md and report.png are in {args.output}")
    return report


def write(folder: str, report: dict, text: str) -> None:
    """report.json and report.md."""
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output {folder}: {error.strerror}", "name a folder that can be written") from error
    write_atomically(os.path.join(folder, "report.json"), json.dumps(report, indent=1, allow_nan=False) + "\n")
    write_atomically(os.path.join(folder, "report.md"), text)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    args = build_argument_parser().parse_args(arguments)
    try:
        report = run(args)
    except SegZooError as error:
        print(f"error: {error}", file=sys.stderr)
        if args.json:
            print(json.dumps({"error": error.message}))
        return error.exit_code
    if args.json:
        print(json.dumps(report, allow_nan=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
