"""Turns a file of weights that the authors of a paper or of Darknet released into one that MODEL.WEIGHTS loads.

    python tools/convert_weights.py --input epoch_12.pth --output polarmask_r50.pth [--format polarmask] [--json]
    python tools/convert_weights.py --input darknet53.conv.74 --output darknet53.pth

Prints what became of every entry, and the config that the weights belong to. Reads without running the file's code.
Where something is missing, unknown or of another shape nothing is written and the exit code is 2.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from projects import CONVERTERS, get_cfg
from segzoo.config import merge_config
from segzoo.engine.convert import (
    AUTO,
    Report,
    compare,
    convert,
    model_shapes,
    needed_options,
    open_source,
    provenance,
    write_converted,
)
from segzoo.errors import CheckpointError, ConfigError, SegZooError

REPOSITORY = Path(__file__).resolve().parents[1]


def build_argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [converter.name for converter in CONVERTERS]
    parser.add_argument("--input", required=True, metavar="FILE", help="the authors' file")
    parser.add_argument("--output", required=True, metavar="FILE", help="the .pth to write")
    parser.add_argument(
        "--format", choices=[AUTO, *names], default=AUTO, help="what the input is (default: %(default)s)"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line, on an error its text"
    )
    return parser


def examine(path: str, format_name: str) -> Report:
    """Converts `path` in memory and holds it against the model that it belongs to.

    Raises:
        CheckpointError: unreadable, unsafe, of no known format, or not to be understood.
    """
    converter, source = open_source(path, CONVERTERS, format_name)
    renamed = convert(source, converter, path)
    try:
        fit = converter.fit(renamed.weights)
        cfg = merge_config(get_cfg(), str(REPOSITORY / fit.config_file))
        options = needed_options(cfg, fit.options)
        shapes = model_shapes(merge_config(cfg, opts=options))
    except (CheckpointError, ConfigError) as error:
        raise CheckpointError(f"{path}: {error.message}", error.remedy) from error
    return compare(renamed, shapes, provenance(path, converter, source, fit, options), fit.part)


def check_output(source: str, output: str) -> None:
    """Raises CheckpointError for an output that could not be read back or would overwrite its source."""
    if not output.endswith(".pth"):
        raise CheckpointError(f"--output {output!r} does not end in .pth", "MODEL.WEIGHTS reads files by their ending")
    if os.path.exists(output) and os.path.exists(source) and os.path.samefile(source, output):
        raise CheckpointError("--output is the input itself", "give another name")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    args = build_argument_parser().parse_args(arguments)
    result = {}
    try:
        check_output(args.input, args.output)
        report = examine(args.input, args.format)
        result = report.as_dict()
        print(report.text())
        if report.problem:
            raise CheckpointError(
                f"{args.input}: does not fit {report.record['config_file']}{report.problem}",
                "nothing is written: the file is damaged, or of a changed program; docs/weights.md shows the names",
            )
        write_converted(args.output, report)
    except SegZooError as error:
        print(f"error: {error}", file=sys.stderr)
        if args.json:
            print(json.dumps({"error": error.message, **result}))
        return error.exit_code
    print(f"written: {args.output}")
    if args.json:
        print(json.dumps({"output": args.output, **result}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
