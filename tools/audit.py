"""Audits a COCO json with its images: what it holds, what training would leave out, and why.

    python tools/audit.py --json-file instances.json --images folder [--json] [KEY VALUE ...]

Exit code 0: usable. 2: not usable as it is; the table and the last lines say why.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from segzoo.config import get_segzoo_cfg, merge_config
from segzoo.data.audit import inspect_dataset
from segzoo.data.registration import register_builtin, register_coco_json
from segzoo.errors import SegZooError


def build_parser() -> argparse.ArgumentParser:
    """The options of this tool."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--json-file", help="COCO annotation file; needs --images")
    source.add_argument("--dataset", help="or a registered name, such as coco_2017_val or scenes-v1_train")
    parser.add_argument("--images", help="folder of the images")
    parser.add_argument("--evaluation-only", action="store_true", help="hold it to what evaluation needs, not training")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config options, such as INPUT.STRICT False")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the audit and returns the exit code."""
    parser = build_parser()
    args = parser.parse_args(arguments)
    if args.json_file and not args.images:
        parser.error("--json-file needs --images")
    try:
        cfg = merge_config(get_segzoo_cfg(), opts=args.opts)
        register_builtin()
        name = args.dataset or Path(args.json_file).name
        if args.json_file:
            register_coco_json(name, args.json_file, args.images)
        cfg.DATASETS.TRAIN = () if args.evaluation_only else (name,)
        report = inspect_dataset(name, cfg)
    except SegZooError as error:
        print(f"error: {error}", file=sys.stderr)
        if args.json:
            print(json.dumps({"usable": False, "errors": [error.message]}))
        return error.exit_code
    print(report.table())
    for remedy in dict.fromkeys(report.remedies):
        print(f"  -> {remedy}")
    if args.json:
        print(json.dumps({"usable": not report.errors, **report.to_dict()}))
    return 2 if report.errors else 0


if __name__ == "__main__":
    sys.exit(main())
