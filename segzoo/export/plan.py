"""What a meta-architecture says of its export: the names of its maps, and how `segzoo.export.runtime` decodes them.

A model offers it by a method `export_plan() -> ExportPlan`, as it offers `map_pictures`; `segzoo` knows no method.

Shape shorthand: N images, Hi, Wi size of a level.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from segzoo.errors import ConfigError

# What is not a number: the name of a dimension that may have any length, or (name, factor) for its multiples.
Length = str | tuple[str, int]


@dataclass(frozen=True)
class ObjectGraph:
    """A second graph, for what depends on the detections of an image.

    Attributes:
        module: takes tensors in the order of `inputs`, gives one.
        inputs: their names.
        output: name of the result.
        examples: made-up inputs, to export with and to compare on.
        lengths: of each input, {dimension: what may vary there}.
    """

    module: nn.Module
    inputs: tuple[str, ...]
    output: str
    examples: Callable[[], tuple[Tensor, ...]]
    lengths: tuple[dict[int, Length], ...]


@dataclass(frozen=True)
class ExportPlan:
    """How a model is exported.

    Attributes:
        decoder: name of the runtime's decoder, a key of `segzoo.export.runtime.decoders.DECODERS`.
        settings: what that decoder has to know, as json has it.
        name_maps: `dense_outputs`' value -> its tensors (N, ...) by name.
        objects: the second graph, or None.
        notes: what is left out, for the user.
    """

    decoder: str
    settings: Mapping[str, Any]
    name_maps: Callable[[Any], dict[str, Tensor]]
    objects: ObjectGraph | None = None
    notes: tuple[str, ...] = field(default=())


def plan_of(model: nn.Module) -> ExportPlan:
    """The model's own plan.

    Raises:
        ConfigError: the meta-architecture has none.
    """
    if not hasattr(model, "export_plan"):
        raise ConfigError(
            f"{type(model).__name__} cannot be exported: it has no export_plan()",
            "export PolarMask, CenterMask, OrienMask, FCOSIS, MaskFCOS or FCOS; docs/export.md says why not Mask R-CNN",
        )
    of_model: Any = model
    plan: ExportPlan = of_model.export_plan()
    return plan


def name_levels(name: str, maps: Sequence[Tensor], levels: Sequence[str]) -> dict[str, Tensor]:
    """(N, C, Hi, Wi) of every level by "<name>_<level>"."""
    return {f"{name}_{level}": values for level, values in zip(levels, maps, strict=True)}


def detector_settings(model: Any) -> dict[str, Any]:
    """What the runtime's FCOS decoding needs, of a model with `in_features`, `strides` and a `decode_rule`."""
    return {
        "levels": list(model.in_features),
        "strides": [int(stride) for stride in model.strides],
        **{name: float(value) if isinstance(value, float) else value for name, value in rule_dict(model).items()},
    }


def rule_dict(model: Any) -> dict[str, Any]:
    """The fields of a model's `decode_rule` by name."""
    return dict(model.decode_rule._asdict())
