"""Writes MODEL_ZOO.md: every config with its recipe, its cost, the paper's AP and what was measured here.

    python tools/model_zoo.py                # counts all models anew, some minutes
    python tools/model_zoo.py --keep-gmac    # takes the GMAC of configs that the file has already
    python tools/model_zoo.py --check        # writes nothing; exit code 1 where the file is out of date

Nothing is downloaded and no data is read. The papers' figures come from projects/*/ablations.yaml, measured ones from
projects/results.yaml.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from projects.zoo import COMMAND, ZOO_FILE, build_zoo, counted_gmac, differences, keep_gmac, known_gmac
from segzoo.engine.checkpoint import write_atomically
from segzoo.errors import SegZooError


def build_parser() -> argparse.ArgumentParser:
    """The options of this tool."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, default=ZOO_FILE, help="default: MODEL_ZOO.md")
    parser.add_argument("--keep-gmac", action="store_true", help="do not count again what the file has")
    parser.add_argument("--check", action="store_true", help="say what differs, its GMAC apart, and write nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes or checks the file; returns the exit code."""
    args = build_parser().parse_args(arguments)
    old = args.file.read_text(encoding="utf-8") if args.file.is_file() else ""
    try:
        new = build_zoo(keep_gmac(known_gmac(old)) if args.keep_gmac or args.check else counted_gmac)
    except SegZooError as error:
        print(f"error: {error}", file=sys.stderr)
        if args.json:
            print(json.dumps({"error": error.message}))
        return error.exit_code
    changed = differences(old, new)
    for line in changed:
        print(line)
    if not args.check:
        write_atomically(str(args.file), new)
    elif changed:
        print(f"{args.file} is out of date; run: {COMMAND} --keep-gmac", file=sys.stderr)
    if args.json:
        print(json.dumps({"file": str(args.file), "is_written": not args.check, "changed_lines": changed}))
    return 1 if args.check and changed else 0


if __name__ == "__main__":
    sys.exit(main())
