"""Detects the objects of image files with an exported model; needs neither torch nor Detectron2.

    python -m segzoo.export.runtime model.onnx photo.jpg --output photo.json --picture photo.png

Exit codes: 0 done; 2 the model, an image or an option is at fault.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import cv2

from segzoo.errors import ConfigError, SegZooError
from segzoo.export.runtime.images import read_image
from segzoo.export.runtime.model import load_model
from segzoo.export.runtime.picture import draw


def build_argument_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m segzoo.export.runtime",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL.onnx", help="written by tools/export.py")
    parser.add_argument("image", nargs="+", metavar="IMAGE", help="image files")
    parser.add_argument("--output", default="", metavar="FILE", help="detections as COCO results (json)")
    parser.add_argument("--picture", default="", metavar="FILE", help="the detections drawn, of a single image")
    parser.add_argument("--threshold", type=float, default=0.3, help="least score (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="of onnxruntime (default: its own choice)")
    return parser


def run(args: argparse.Namespace) -> None:
    """Detects, prints a line an image, and writes what is asked for.

    Raises:
        SegZooError: see `load_model` and `RuntimeModel`; a file that cannot be written.
    """
    if args.picture and len(args.image) > 1:
        raise ConfigError(f"--picture with {len(args.image)} images", "give one image at a time")
    model = load_model(args.model, num_threads=args.threads)
    results = []
    for number, path in enumerate(args.image):
        image = read_image(path)
        start = time.perf_counter()
        found = model(image)
        milliseconds = (time.perf_counter() - start) * 1000
        shown = found.select(found.scores >= args.threshold)
        print(f"{path}: {len(shown)} of {len(found)} detections reach {args.threshold}, {milliseconds:.0f} ms")
        results += [{**one, "file_name": path} for one in shown.to_results(number, model.class_names)]
        if args.picture:
            _write_picture(args.picture, draw(image, found, model.class_names, args.threshold))
    if args.output:
        try:
            Path(args.output).write_text(json.dumps(results), encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"--output {args.output} cannot be written: {error}") from error


def _write_picture(path: str, picture: object) -> None:
    try:
        is_written = cv2.imwrite(path, picture)  # type: ignore[call-overload]
    except cv2.error:
        is_written = False
    if not is_written:
        raise ConfigError(f"--picture {path} cannot be written", "name a .png or .jpg in a folder that exists")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    args = build_argument_parser().parse_args(arguments)
    try:
        run(args)
    except SegZooError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
