"""Exported files: what is written of a model, with all that a program without Detectron2 has to know.

ONNX: `model.onnx`, and `model.objects.onnx` beside it where something depends on detections; the metadata is in the
model's own properties. torch: `model.pt2` of torch.export, the metadata as the extra file "segzoo.json".

Shape shorthand: N images, H, W size of the (padded) images.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn

from segzoo.errors import ConfigError
from segzoo.export.graphs import Graph, check_size, dense_graph, object_graph
from segzoo.export.plan import ExportPlan, plan_of
from segzoo.export.runtime.model import FORMAT, PREFIX, second_path

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
# The newest that torch's exporter writes without a conversion, and that onnxruntime 1.18 reads.
OPSET = 20
EXTRA_FILE = "segzoo.json"


@dataclass
class Exported:
    """What was written.

    Attributes:
        paths: the file, and perhaps the second one.
        graphs: of these files.
        metadata: see `segzoo.export.runtime.model.KEYS`.
        takes_raw: whether images go in as pixels from 0 to 255.
        notes: what is fixed or left out, and why.
        seconds: that it took.
    """

    paths: list[Path]
    graphs: list[Graph]
    metadata: dict[str, Any]
    takes_raw: bool
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0


def export_model(
    cfg: CfgNode,
    model: nn.Module,
    output: str | os.PathLike,
    *,
    file_format: str = "onnx",
    size: tuple[int, int] | None = None,
    batch: int | None = None,
    takes_raw: bool = False,
    class_names: Sequence[str] = (),
) -> Exported:
    """Writes a model to a file, or two.

    Args:
        cfg: the model's; with a `size`, see `fixed_config`.
        model: with its weights, on the CPU; is set to evaluation mode.
        output: ends in .onnx or, for torch.export's format, .pt2.
        file_format: "onnx" or "torch".
        size: the only (H, W) of the network's input; None = any, where the exporter manages that.
        batch: the only N; None = any.
        takes_raw: see `segzoo.export.graphs.DenseGraph`.
        class_names: by class index.

    Raises:
        ConfigError: a model, size or batch that cannot be exported, a wrong ending, or packages that are missing.
    """
    started = time.perf_counter()
    path = _checked_path(output, file_format)
    plan = plan_of(model.eval())
    preprocessor: Any = model.preprocessor
    divisor = max(1, preprocessor.size_divisibility)
    check_size(size, divisor)
    dense = dense_graph(
        *(model, plan), size=size, batch=batch, takes_raw=takes_raw, divisor=divisor, fallback=usual_size(cfg, divisor)
    )
    number, _, height, width = dense.program.example_inputs[0][0].shape
    is_fixed = not dense.is_open(2)
    if is_fixed and size is None:
        cfg = fixed_config(cfg, (height, width))
    rule = input_rule(cfg, preprocessor, takes_raw)
    rule["size"] = [height, width] if is_fixed else None
    rule["batch"] = None if dense.is_open(0) else number
    metadata = {
        "format": FORMAT,
        "method": type(model).__name__,
        "decoder": plan.decoder,
        "input": rule,
        "classes": list(class_names),
        "settings": dict(plan.settings),
        "identity": identity(model, plan),
        "second": plan.objects is not None,
    }
    graphs, paths = [dense], [path]
    if plan.objects is not None:
        graphs.append(object_graph(plan.objects))
        paths.append(second_path(path))
    for graph, own_path in zip(graphs, paths, strict=True):
        (write_onnx if file_format == "onnx" else write_program)(graph, own_path, metadata)
    notes = [*plan.notes, *dense.notes]
    return Exported(paths, graphs, metadata, takes_raw, notes, time.perf_counter() - started)


def _checked_path(output: str | os.PathLike, file_format: str) -> Path:
    if file_format not in SUFFIXES:
        raise ConfigError(f"--format {file_format!r}", f"use one of {', '.join(SUFFIXES)}")
    path = Path(output)
    if path.suffix != SUFFIXES[file_format]:
        raise ConfigError(f"--output {path} does not end in {SUFFIXES[file_format]}", f"as --format {file_format} has")
    if not path.parent.is_dir():
        raise ConfigError(f"--output {path}: there is no folder {path.parent}", "make it first")
    if file_format == "onnx":
        try:
            import onnxscript  # noqa: F401  torch's exporter needs it
        except ImportError as error:
            raise ConfigError("onnx and onnxscript are not installed", "pip install '.[export]'") from error
    return path


def usual_size(cfg: CfgNode, divisor: int) -> tuple[int, int]:
    """(H, W) of the padded input that most images of the config have, for a network whose size must be fixed."""
    size = cfg.INPUT.FIXED_SIZE
    if cfg.INPUT.RESIZE == "shortest_edge":
        size = (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    height, width = (max(divisor, -(-int(side) // divisor) * divisor) for side in size)
    return height, width


def fixed_config(cfg: CfgNode, size: tuple[int, int]) -> CfgNode:
    """A config whose images all fit into (H, W) px of the network's input.

    "shortest_edge" becomes "letterbox" (the ratio is kept, the rest is padding), since its sizes differ from image to
    image; the others take this size as theirs.

    Raises:
        ConfigError: "keep_res" has no size of its own.
    """
    if cfg.INPUT.RESIZE == "keep_res":
        raise ConfigError("INPUT.RESIZE is 'keep_res', which has no fixed size", "use INPUT.RESIZE fix_res with --size")
    fixed = cfg.clone()
    fixed.defrost()
    fixed.INPUT.FIXED_SIZE = tuple(size)
    if fixed.INPUT.RESIZE == "shortest_edge":
        fixed.INPUT.RESIZE = "letterbox"
    return fixed


def input_rule(cfg: CfgNode, preprocessor: Any, takes_raw: bool) -> dict[str, Any]:
    """How images reach the network, for `segzoo.export.runtime.images.prepare`."""
    mode = cfg.INPUT.RESIZE
    resize: dict[str, Any] = {"mode": mode}
    if mode == "shortest_edge":
        resize |= {"shortest": int(cfg.INPUT.MIN_SIZE_TEST), "longest": int(cfg.INPUT.MAX_SIZE_TEST)}
    elif mode == "keep_res":
        resize["multiple"] = int(cfg.INPUT.KEEP_RES_MULTIPLE)
    else:
        resize["size"] = [int(side) for side in cfg.INPUT.FIXED_SIZE]
    return {
        "format": cfg.INPUT.FORMAT,
        "mean": [float(value) for value in cfg.MODEL.PIXEL_MEAN],
        "std": [float(value) for value in cfg.MODEL.PIXEL_STD],
        "divisor": max(1, int(preprocessor.size_divisibility)),
        "resize": resize,
        "resampling": cfg.INPUT.RESAMPLING,
        "raw": takes_raw,
    }


def identity(model: nn.Module, plan: ExportPlan) -> str:
    """16 hex digits of the weights and settings, by which the two files of a model know each other."""
    digest = hashlib.sha256(json.dumps([plan.decoder, dict(plan.settings)], sort_keys=True).encode())
    for name, values in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def write_onnx(graph: Graph, path: Path, metadata: dict[str, Any]) -> None:
    """One self-contained ONNX file, by torch's dynamo exporter.

    Raises:
        ConfigError: an operator that it does not know.
    """
    with warnings.catch_warnings():
        # About names of dimensions that only the exporter sees.
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                graph.program,
                input_names=list(graph.inputs),
                output_names=list(graph.outputs),
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise ConfigError(
                f"torch's ONNX exporter does not take this network: {str(error).strip().splitlines()[0][:200]}",
                "use --format torch, another backbone, or a newer torch and onnxscript",
            ) from error
    assert program is not None
    program.model.metadata_props.update({PREFIX + key: json.dumps(value) for key, value in metadata.items()})
    program.save(str(path), external_data=False)


def write_program(graph: Graph, path: Path, metadata: dict[str, Any]) -> None:
    """torch.export's own format."""
    torch.export.save(graph.program, path, extra_files={EXTRA_FILE: json.dumps(metadata)})
