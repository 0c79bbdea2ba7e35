"""Parameters and GMAC of a config's model on one image; runs on the CPU, loads and downloads no weights.

python tools/complexity.py --config-file configs/polarmask_R50.yaml --size 800 1280 [--json] [KEY VALUE ...]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from projects import get_cfg
from segzoo.config import merge_config
from segzoo.errors import SegZooError
from segzoo.evaluation.complexity import build_for_counting, measure_complexity


def build_argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="a file of configs/")
    parser.add_argument(
        "--size", type=int, nargs=2, default=(800, 1280), metavar=("H", "W"), help="image size in pixels"
    )
    parser.add_argument(
        "--objects",
        type=int,
        nargs="+",
        default=(),
        metavar="N",
        help="totals for so many objects, of a method that costs more with more of them (FCOSIS: colour groups)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line, on an error its text"
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys to change")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table (and the JSON); returns the exit code."""
    args = build_argument_parser().parse_args(arguments)
    try:
        cfg = merge_config(get_cfg(), args.config_file, args.opts)
        complexity = measure_complexity(build_for_counting(cfg), tuple(args.size), args.objects)
    except SegZooError as error:
        print(f"error: {error}", file=sys.stderr)
        if args.json:
            print(json.dumps({"error": error.message}))
        return error.exit_code
    print(complexity.table())
    if args.json:
        print(json.dumps({"config_file": args.config_file, **complexity.as_dict()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
