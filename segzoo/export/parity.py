"""Whether an exported file computes what the model does, to 1e-4: run after every export.

Shape shorthand: N images, H, W size of the (padded) images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from segzoo.errors import CheckpointError
from segzoo.export.files import Exported
from segzoo.export.graphs import IMAGES, Graph
from segzoo.export.runtime.model import open_session

TOLERANCE = 1e-4
# Sizes, in multiples of the padding, that a graph of open size is compared at, and batches.
MULTIPLES = ((2, 3), (3, 2), (4, 5))
BATCHES = (1, 2)
# Smaller inputs have levels without a cell's neighbour.
LEAST_PX = 64


@dataclass
class Parity:
    """One comparison.

    Attributes:
        graph: name of the file.
        shape: of the first input.
        worst: largest |difference| / max(1, |value|) of all outputs.
        output: that has it.
    """

    graph: str
    shape: tuple[int, ...]
    worst: float
    output: str

    def __str__(self) -> str:
        return f"{self.graph}, input {' x '.join(map(str, self.shape))}: {self.worst:.1e} ({self.output})"


def check_parity(exported: Exported, *, num_threads: int = 0) -> list[Parity]:
    """Compares every file with the model it was made of.

    Raises:
        CheckpointError: one of them differs by more than TOLERANCE; the files stay, to be looked at.
    """
    results = []
    for graph, path in zip(exported.graphs, exported.paths, strict=True):
        run = _runner(path, num_threads)
        for inputs in example_inputs(graph, exported):
            results.append(_compare(graph, path, run, inputs))
    worst = max(results, key=lambda result: result.worst)
    if worst.worst > TOLERANCE:
        raise CheckpointError(f"parity of {worst}, more than {TOLERANCE}", "do not use these files; report the config")
    return results


def example_inputs(graph: Graph, exported: Exported) -> list[tuple[Tensor, ...]]:
    """What a graph is compared on: images of several sizes and batches, or the second graph's own example."""
    examples = graph.program.example_inputs
    if graph.inputs != (IMAGES,):
        return [tuple(examples[0])]
    number, _, *traced = examples[0][0].shape
    divisor = exported.metadata["input"]["divisor"]
    unit = max(divisor, -(-LEAST_PX // 2 // divisor) * divisor)
    sizes = [(unit * high, unit * wide) for high, wide in MULTIPLES] if graph.is_open(2) else [(traced[0], traced[1])]
    batches = BATCHES if graph.is_open(0) else (number,)
    generator = torch.Generator().manual_seed(0)
    inputs: list[tuple[Tensor, ...]] = []
    for size in sizes:
        for batch in batches:
            images = torch.randn(batch, 3, *size, generator=generator)
            inputs.append(((images * 60 + 110).clamp(0, 255).round() if exported.takes_raw else images,))
    return inputs


Runner = Callable[[Graph, tuple[Tensor, ...]], Sequence[np.ndarray]]


def _runner(path: Path, num_threads: int) -> Runner:
    if path.suffix == ".onnx":
        session = open_session(path, num_threads, ())
        return lambda graph, inputs: session.run(
            None, {name: values.numpy() for name, values in zip(graph.inputs, inputs, strict=True)}
        )
    module = torch.export.load(path).module()

    def run(graph: Graph, inputs: tuple[Tensor, ...]) -> Sequence[np.ndarray]:
        outputs = module(*inputs)
        return [values.numpy() for values in ((outputs,) if isinstance(outputs, Tensor) else outputs)]

    return run


@torch.no_grad()
def _compare(graph: Graph, path: Path, run: Runner, inputs: tuple[Tensor, ...]) -> Parity:
    expected = graph.module(*inputs)
    expected = (expected,) if isinstance(expected, Tensor) else expected
    worst, output = 0.0, graph.outputs[0]
    for name, ours, theirs in zip(graph.outputs, expected, run(graph, inputs), strict=True):
        if tuple(ours.shape) != theirs.shape:
            raise CheckpointError(f"{path}: {name} has the shape {theirs.shape}, the model's has {tuple(ours.shape)}")
        difference = np.abs(ours.numpy() - theirs) / np.maximum(1, np.abs(ours.numpy()))
        # NaN compares with nothing; as infinity it stays the worst.
        largest = float(np.nan_to_num(difference, nan=np.inf, posinf=np.inf).max(initial=0.0))
        if largest > worst:
            worst, output = largest, name
    return Parity(path.name, tuple(inputs[0].shape), worst, output)
