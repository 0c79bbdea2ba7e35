"""Exports a trained model for programs without Detectron2, and compares what was written with the model.

    python tools/export.py --config-file output/config.yaml --weights output/model_best.pth --output model.onnx
    python tools/export.py --config-file F --weights W --output model.onnx --size 512 512    (this size alone)
    python tools/export.py --config-file F --weights W --output model.pt2 --format torch     (torch.export)

Then, with onnxruntime, numpy, OpenCV and pycocotools alone:

    python -m segzoo.export.runtime model.onnx photo.jpg --output photo.json --picture photo.png

docs/export.md says what is exported of which method. Exit code 2: the config, the weights or an option is at fault, or
the files differ from the model.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from demo.demo import find_classes, set_num_classes
from projects import get_cfg
from segzoo.config import merge_config
from segzoo.engine.evaluate import trained_weights
from segzoo.engine.validate import validate_config
from segzoo.engine.weights import load_weights
from segzoo.errors import SegZooError
from segzoo.export.files import OPSET, SUFFIXES, Exported, export_model, fixed_config
from segzoo.export.parity import TOLERANCE, Parity, check_parity


def build_argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="F", help="such as a run's config.yaml")
    parser.add_argument("--weights", required=True, metavar="FILE", help="the trained model")
    parser.add_argument("--output", required=True, metavar="FILE", help="ends in .onnx or .pt2")
    parser.add_argument("--format", choices=list(SUFFIXES), default="onnx", help="default: %(default)s")
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("H", "W"), help="the only size of the network's input (default: any)"
    )
    parser.add_argument("--batch", type=int, metavar="N", help="the only number of images (default: any)")
    parser.add_argument("--raw-input", action="store_true", help="the graph normalises pixels from 0 to 255 itself")
    parser.add_argument("--class-names", nargs="+", metavar="NAME", help="else those of the config's data sets")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config keys, last")
    return parser


def build_config(args: argparse.Namespace) -> tuple[CfgNode, list[str]]:
    """The config on the CPU, and the names of its classes as far as they are known.

    Raises:
        ConfigError: unknown keys, no trained weights, or a size that the config's resize cannot have.
    """
    cfg = merge_config(get_cfg(), args.config_file, args.opts)
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", trained_weights(args.weights)
    if args.size:
        cfg = fixed_config(cfg, tuple(args.size))
    classes = find_classes(cfg, args.class_names)
    set_num_classes(cfg, classes)
    validate_config(cfg)
    return cfg, list(classes.names)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Exports, compares, prints, and gives the values for json.

    Raises:
        SegZooError: see `export_model` and `check_parity`.
    """
    cfg, class_names = build_config(args)
    model = build_model(cfg)
    load_weights(model, cfg.MODEL.WEIGHTS)
    exported = export_model(
        cfg,
        model,
        args.output,
        file_format=args.format,
        size=tuple(args.size) if args.size else None,
        batch=args.batch,
        takes_raw=args.raw_input,
        class_names=class_names,
    )
    describe(exported, args.format)
    parity = check_parity(exported, num_threads=torch.get_num_threads())
    for result in parity:
        print(f"parity of {result}")
    worst = max(result.worst for result in parity)
    print(f"parity: {worst:.1e} at most, allowed {TOLERANCE:.0e}")
    return as_dict(exported, parity) | {"worst": worst}


def describe(exported: Exported, file_format: str) -> None:
    """Prints what was written."""
    for path, graph in zip(exported.paths, exported.graphs, strict=True):
        size = path.stat().st_size / 2**20
        opset = f", opset {OPSET}" if file_format == "onnx" else ""
        print(f"written: {path} ({size:.1f} MiB{opset}): {', '.join(graph.inputs)} -> {', '.join(graph.outputs)}")
    rule = exported.metadata["input"]
    shown = "{} x {} only".format(*rule["size"]) if rule["size"] else f"any multiples of {rule['divisor']}"
    print(f"image size: {shown}; batch: {rule['batch'] or 'any'}; resize: {rule['resize']}; {exported.seconds:.0f} s")
    for note in exported.notes:
        print(f"note: {note}")


def as_dict(exported: Exported, parity: Sequence[Parity]) -> dict[str, Any]:
    """For json."""
    return {
        "files": [str(path) for path in exported.paths],
        "metadata": exported.metadata,
        "outputs": {path.name: graph.outputs for path, graph in zip(exported.paths, exported.graphs, strict=True)},
        "notes": exported.notes,
        "parity": [vars(result) for result in parity],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    args = build_argument_parser().parse_args(arguments)
    try:
        values = run(args)
    except SegZooError as error:
        print(f"error: {error}", file=sys.stderr)
        if args.json:
            print(json.dumps({"error": error.message}))
        return error.exit_code
    if args.json:
        print(json.dumps(values))
    return 0


if __name__ == "__main__":
    sys.exit(main())
