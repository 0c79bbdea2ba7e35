"""torch.export's programs of a model: images in, raw maps out, with batch and image size left open where that works.

Shape shorthand: N images, H, W size of the (padded) images.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from segzoo.errors import ConfigError
from segzoo.export.plan import ExportPlan, Length, ObjectGraph
from segzoo.modeling.preprocess import ImagePreprocessor

logger = logging.getLogger(__name__)

IMAGES = "images"
# Of the image that a graph of open size is traced with, in multiples of the padding; from two on, as torch.export
# takes a length of 1 for a constant.
TRACED_MULTIPLES = (3, 4)
TRACED_PIXELS = 128
# Longer sides than this are no image; torch.export wants a limit.
MAX_LENGTH = 1 << 16


class DenseGraph(nn.Module):
    """A model's `dense_outputs` as a module, whose outputs are a flat tuple in a fixed order."""

    def __init__(self, model: Any, plan: ExportPlan, takes_raw: bool) -> None:
        """
        Args:
            model: in evaluation mode.
            plan: names its maps.
            takes_raw: images are pixels from 0 to 255, which the graph normalises; else they are normalised already.
        """
        super().__init__()
        self.model, self.takes_raw = model, takes_raw
        self.name_maps = plan.name_maps

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(N, 3, H, W) float32, padded by zeros (the mean colour, where they are raw) -> the maps."""
        return tuple(self.named(images).values())

    def named(self, images: Tensor) -> dict[str, Tensor]:
        """As `forward`, by name."""
        if self.takes_raw:
            preprocessor: ImagePreprocessor = self.model.preprocessor
            images = (images - preprocessor.pixel_mean) / preprocessor.pixel_std
        return self.name_maps(self.model.dense_outputs(images))


@dataclass(frozen=True)
class Graph:
    """A program with the names of what goes in and comes out.

    Attributes:
        program: torch.export's.
        module: what it was made of, to compare with.
        inputs, outputs: names in their order.
        lengths: of each input, {dimension: what may vary there}; a dimension that is not named is fixed.
        notes: what could not be left open, and why.
    """

    program: ExportedProgram
    module: Callable[..., Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    lengths: tuple[dict[int, Length], ...]
    notes: list[str] = field(default_factory=list)

    def is_open(self, dimension: int) -> bool:
        """Whether a dimension of the first input may have any length."""
        return dimension in self.lengths[0]


def dense_graph(
    model: Any,
    plan: ExportPlan,
    *,
    size: tuple[int, int] | None,
    batch: int | None,
    takes_raw: bool,
    divisor: int,
    fallback: tuple[int, int] | None = None,
) -> Graph:
    """The graph from images to maps.

    Args:
        model: in evaluation mode, on the CPU.
        plan: of the model.
        size: the only (H, W) that the graph takes; None = any multiples of `divisor`.
        batch: the only N; None = any.
        takes_raw: see `DenseGraph`.
        divisor: what sides are multiples of.
        fallback: the size to fix where none is given and the exporter cannot leave it open.

    Returns:
        Where the exporter cannot leave something open that shall be, it is fixed (to `fallback`, and to one image),
        and `notes` say so with torch's own reason.

    Raises:
        ConfigError: a size or batch that cannot be, or a model that torch.export does not take at all.
    """
    check_size(size, divisor)
    if batch is not None and batch < 1:
        raise ConfigError(f"a batch of {batch} images", "use at least 1")
    module = DenseGraph(model, plan, takes_raw).eval()
    notes: list[str] = []
    error: Exception | None = None
    for is_any_size, is_any_batch in _attempts(size is None, batch is None):
        traced = traced_size(divisor) if is_any_size else size or fallback or traced_size(divisor)
        images = torch.zeros(2 if is_any_batch else batch or 1, 3, *traced)
        lengths: dict[int, Length] = {0: "batch"} if is_any_batch else {}
        if is_any_size:
            lengths |= {2: ("height", divisor), 3: ("width", divisor)}
        try:
            program = _export(module, (images,), ({**lengths},))
        except Exception as reason:  # torch.export raises a dozen kinds; the last one is shown to the user
            error = reason
            notes.append(_failure(is_any_size, is_any_batch, traced, reason))
            logger.warning("%s", notes[-1])
            continue
        with torch.no_grad():
            names = tuple(module.named(images))
        return Graph(program, module, (IMAGES,), names, (lengths,), notes)
    raise ConfigError(
        f"torch.export does not take {type(model).__name__}: {_first_line(error)}",
        "report it with the config; a graph of fixed size and batch was tried as well",
    ) from error


def object_graph(objects: ObjectGraph) -> Graph:
    """The graph of what depends on detections; all its open lengths stay open."""
    module = objects.module.eval()
    program = _export(module, objects.examples(), objects.lengths)
    return Graph(program, module, objects.inputs, (objects.output,), objects.lengths)


def check_size(size: tuple[int, int] | None, divisor: int) -> None:
    """Raises ConfigError for a fixed (H, W) whose sides are no multiples of the padding's divisor."""
    if size is None:
        return
    if min(size) < 1 or any(side % divisor for side in size):
        nearest = tuple(max(divisor, -(-side // divisor) * divisor) for side in size)
        raise ConfigError(
            f"a fixed size of {size[0]} x {size[1]} (height x width): this model takes multiples of {divisor}",
            f"use --size {nearest[0]} {nearest[1]}",
        )


def traced_size(divisor: int) -> tuple[int, int]:
    """(H, W) of the image that a graph of open size is traced with: small, but larger than one multiple."""
    unit = -(-TRACED_PIXELS // TRACED_MULTIPLES[0] // divisor) * divisor
    return TRACED_MULTIPLES[0] * unit, TRACED_MULTIPLES[1] * unit


def _attempts(any_size: bool, any_batch: bool) -> list[tuple[bool, bool]]:
    """What to leave open (size, batch): all that is asked for, else less."""
    wanted = [(any_size, any_batch), (any_size, False), (False, any_batch), (False, False)]
    return list(dict.fromkeys(wanted))


def _export(module: nn.Module, examples: tuple[Tensor, ...], lengths: Sequence[dict[int, Length]]) -> ExportedProgram:
    names = {length if isinstance(length, str) else length[0] for of_input in lengths for length in of_input.values()}
    dims = {name: Dim(name, min=1, max=MAX_LENGTH) for name in sorted(names)}

    def dim_of(length: Length) -> Any:
        name, factor = (length, 1) if isinstance(length, str) else length
        return dims[name] if factor == 1 else factor * dims[name]

    shapes = tuple({axis: dim_of(length) for axis, length in of_input.items()} for of_input in lengths)
    with torch.no_grad():
        # Keyed by position, as the modules take their inputs by different names.
        return torch.export.export(module, examples, dynamic_shapes=shapes, strict=False)


def _failure(any_size: bool, any_batch: bool, traced: tuple[int, int], reason: Exception) -> str:
    parts = [word for word, is_open in (("image size", any_size), ("batch", any_batch)) if is_open]
    what = f"an open {' and '.join(parts)}" if parts else f"{traced[0]} x {traced[1]}"
    return f"torch.export does not manage {what}: {_first_line(reason)}"


def _first_line(error: Exception | None) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
