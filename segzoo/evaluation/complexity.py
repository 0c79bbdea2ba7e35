"""Parameters and multiply-accumulates (MAC) of a model, in total and by part.

One MAC counts 1. Only convolutions, linear layers and matrix products count; norms, activations and resizing do not, as
in the papers' tables. A deformable convolution counts as the plain one that it replaces, and the convolution that
predicts its offsets by itself; bilinear sampling and the products with the masks do not count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.export.flatten import TracingAdapter
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from fvcore.nn import FlopCountAnalysis
from fvcore.nn.jit_handles import (
    addmm_flop_jit,
    bmm_flop_jit,
    conv_flop_jit,
    einsum_flop_jit,
    get_shape,
    linear_flop_jit,
    matmul_flop_jit,
)
from torch import Tensor, nn

from segzoo.errors import ConfigError

# fvcore's own list also holds norms and resizing, which are no products with weights.
COUNTED_OPERATORS = {
    "aten::_convolution": conv_flop_jit,
    "aten::linear": linear_flop_jit,
    "aten::addmm": addmm_flop_jit,
    "aten::mm": matmul_flop_jit,
    "aten::bmm": bmm_flop_jit,
    "aten::matmul": matmul_flop_jit,
    "aten::einsum": einsum_flop_jit,
}
# Operators whose absence from the count would make it wrong.
HEAVY_WORDS = ("conv", "attention", "matmul", "baddbmm")


@dataclass
class PartCost:
    """Cost of one part of a model: numbers of values, and MAC of one image."""

    parameters: int = 0
    trainable_parameters: int = 0
    macs: float = 0.0


@dataclass
class ObjectCost:
    """Cost of what an image's content decides on, not in `Complexity.parts`' MAC.

    unit: what it is done for, such as "colour group". macs: of one. counts: for how many of them totals are asked.
    """

    unit: str
    macs: float
    counts: Sequence[int] = ()


@dataclass
class Complexity:
    """Cost of a model for one image of `image_size` (height, width)."""

    image_size: tuple[int, int]
    parts: dict[str, PartCost]
    notes: list[str] = field(default_factory=list)
    # Bytes of the maps that masks are built from, of models that say which these are.
    mask_map_bytes: int | None = None
    # What the part costs that is done once more for every further object, or group of them; None without such a part.
    object_cost: ObjectCost | None = None

    @property
    def parameters(self) -> int:
        """All learned values, frozen ones and the scales and shifts of frozen batch norms included."""
        return sum(part.parameters for part in self.parts.values())

    @property
    def trainable_parameters(self) -> int:
        """Those that get a gradient; the number that most papers print."""
        return sum(part.trainable_parameters for part in self.parts.values())

    @property
    def gmac(self) -> float:
        """10^9 multiply-accumulates of one image."""
        return sum(part.macs for part in self.parts.values()) / 1e9

    def table(self) -> str:
        """One line a part and a last line with the sums."""
        width = max(len("total"), *(len(name) for name in self.parts))
        height_px, width_px = self.image_size
        lines = [
            f"one image of {height_px} x {width_px} px",
            f"{'part':<{width}} {'parameters':>12} {'trainable':>12} {'GMAC':>9}",
        ]
        total = PartCost(self.parameters, self.trainable_parameters, self.gmac * 1e9)
        for name, part in [*self.parts.items(), ("total", total)]:
            lines.append(
                f"{name:<{width}} {part.parameters:>12,} {part.trainable_parameters:>12,} {part.macs / 1e9:>9.3f}"
            )
        if self.object_cost is not None:
            unit, own = self.object_cost.unit, self.object_cost.macs / 1e9
            lines.append(f"each {unit}: {own:.3f} GMAC more")
            lines += [
                f"with {count} {unit}{'' if count == 1 else 's'}: {self.gmac + count * own:.3f} GMAC"
                for count in self.object_cost.counts
            ]
        if self.mask_map_bytes is not None:
            lines.append(f"feature maps used to build masks: {self.mask_map_bytes / 2**20:.2f} MiB")
        return "\n".join(lines + [f"note: {note}" for note in self.notes])

    def as_dict(self) -> dict[str, Any]:
        """Plain values for json."""
        return {
            "image_size": list(self.image_size),
            "parameters": self.parameters,
            "trainable_parameters": self.trainable_parameters,
            "gmac": round(self.gmac, 3),
            "parts": {
                name: {
                    "parameters": part.parameters,
                    "trainable_parameters": part.trainable_parameters,
                    "gmac": round(part.macs / 1e9, 3),
                }
                for name, part in self.parts.items()
            },
            "notes": self.notes,
            **({} if self.mask_map_bytes is None else {"mask_map_bytes": self.mask_map_bytes}),
            **({} if self.object_cost is None else {"objects": self._objects_as_dict(self.object_cost)}),
        }

    def _objects_as_dict(self, cost: ObjectCost) -> dict[str, Any]:
        totals = {str(count): round(self.gmac + count * cost.macs / 1e9, 3) for count in cost.counts}
        return {"unit": cost.unit, "gmac_each": round(cost.macs / 1e9, 3), "gmac_with": totals}


def build_for_counting(cfg: CfgNode) -> nn.Module:
    """The model of `cfg` on the CPU in eval mode, without its weights; nothing is downloaded, `cfg` is not changed."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    # Nothing is suppressed, so that a second stage sees as many proposals and detections as the config allows.
    cfg.MODEL.RPN.NMS_THRESH = cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST = 1.0
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    if cfg.MODEL.TIMM.WEIGHTS:
        # Named weights keep the norms frozen, as they are in training; build_model does not load them.
        cfg.MODEL.TIMM.WEIGHTS, cfg.MODEL.WEIGHTS = "", cfg.MODEL.WEIGHTS or "not loaded"
    model = build_model(cfg).eval()
    for name, parameter in model.named_parameters():
        # Without box deltas the proposals are anchors inside the image; random deltas would make most of them empty.
        if "anchor_deltas" in name or "bbox_pred" in name:
            nn.init.zeros_(parameter)
    return model


def measure_complexity(model: nn.Module, image_size: tuple[int, int], object_counts: Sequence[int] = ()) -> Complexity:
    """Counts parameters and the MAC of one image.

    A model with `dense_outputs(images)` is counted up to its raw maps (backbone and heads, no decoding); one of
    Detectron2's two-stage models by its whole inference with the most proposals and detections; any other by its
    backbone. A model with `mask_maps(outputs)` also tells how large the maps are that its masks are built from. One
    with `object_stage(outputs, count)` is also counted for `count` more of what its OBJECT_UNIT names.

    Args:
        model: in eval mode, on the CPU.
        image_size: (height, width) in pixels; padded up to the backbone's divisibility.
        object_counts: numbers of objects, or of groups of them, for which totals are wanted.

    Raises:
        ConfigError: a side is smaller than 1 px, or counts are given for a model without such a stage.
    """
    if min(image_size) < 1:
        raise ConfigError(
            f"--size is {image_size[0]} {image_size[1]}", "give height and width in pixels, e.g. 800 1280"
        )
    divisor = max(int(getattr(getattr(model, "backbone", None), "size_divisibility", 1)), 1)
    height, width = (-(-side // divisor) * divisor for side in image_size)
    notes = [] if (height, width) == tuple(image_size) else [f"{tuple(image_size)} is padded to multiples of {divisor}"]
    macs, count_notes = _count_macs(model, (height, width))
    object_cost = _object_cost(model, (height, width), object_counts)
    if object_counts and object_cost is None:
        raise ConfigError(
            f"--objects {' '.join(map(str, object_counts))}: this {type(model).__name__} costs the same for any image",
            "leave the option out",
        )
    return Complexity(
        image_size=(height, width),
        parts=_cost_by_part(model, macs),
        notes=notes + count_notes,
        mask_map_bytes=_mask_map_bytes(model, (height, width)),
        object_cost=object_cost,
    )


def _object_cost(model: Any, image_size: tuple[int, int], counts: Sequence[int]) -> ObjectCost | None:
    if not hasattr(model, "object_stage"):
        return None
    with torch.no_grad():
        outputs = model.dense_outputs(torch.zeros(1, 3, *image_size))
    # The cost is counted for one; it is done for all of them as one batch.
    analysis = _analyze(_ObjectStage(model, outputs), (torch.zeros(()),))
    with torch.no_grad():
        macs = float(analysis.total())
    return ObjectCost(model.OBJECT_UNIT, macs, tuple(counts)) if macs else None


def _mask_map_bytes(model: Any, image_size: tuple[int, int]) -> int | None:
    if not hasattr(model, "mask_maps"):
        return None
    with torch.no_grad():
        maps = model.mask_maps(model.dense_outputs(torch.zeros(1, 3, *image_size)))
    return sum(level.numel() * level.element_size() for level in _tensors_in(maps))


def _count_macs(model: nn.Module, image_size: tuple[int, int]) -> tuple[Mapping[str, float], list[str]]:
    # Returns MAC by module name ("" is the whole model) and notes on what was counted.
    images = torch.zeros(1, 3, *image_size)
    inputs: tuple[Any, ...] = (images,)
    notes = []
    if hasattr(model, "dense_outputs"):
        wrapper: nn.Module = _DenseOutputs(model)
    elif hasattr(model, "proposal_generator"):
        wrapper = TracingAdapter(model, [{"image": images[0]}], allow_non_tensor=True)
        inputs = tuple(wrapper.flattened_inputs)  # type: ignore[arg-type]
        notes.append("whole inference, with as many proposals and detections as the config allows")
    else:
        wrapper = _Backbone(model.get_submodule("backbone"))
        notes.append(f"{type(model).__name__} has no dense_outputs: only its backbone is counted")
    analysis = _analyze(wrapper, inputs)
    with torch.no_grad():
        by_module = analysis.by_module()
    heavy = sorted(name for name in analysis.unsupported_ops() if any(word in name for word in HEAVY_WORDS))
    if heavy:
        notes.append(f"not counted: {', '.join(heavy)}")
    macs = {name.removeprefix("model."): value for name, value in by_module.items() if name.startswith("model.")}
    # Products outside of any child belong to the whole, which the tracer knows as the wrapper.
    macs[""] = by_module[""]
    return macs, notes


def _analyze(module: nn.Module, inputs: tuple[Any, ...]) -> FlopCountAnalysis:
    analysis = FlopCountAnalysis(module, inputs)
    analysis.clear_op_handles()
    analysis.set_op_handle(**COUNTED_OPERATORS, **{"torchvision::deform_conv2d": _deform_conv_macs})
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    return analysis


def _deform_conv_macs(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    # deform_conv2d(input, weight, offset, mask, bias, ...): each output value takes one product a weight of its filter.
    weight, output = get_shape(inputs[1]), get_shape(outputs[0])
    macs = output[0] * output[2] * output[3] * weight[0] * weight[1] * weight[2] * weight[3]
    return Counter({"deform_conv2d": macs})


class _DenseOutputs(nn.Module):
    """Backbone and heads as a plain function from a tensor to tensors, which the tracer needs."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(_tensors_in(self.model.dense_outputs(images)))


class _ObjectStage(nn.Module):
    """What is done for one object, as a function of tensors; the maps of an image are constants."""

    def __init__(self, model: Any, outputs: Any) -> None:
        super().__init__()
        self.model: Any = model
        self.outputs = outputs

    def forward(self, _: Tensor) -> tuple[Tensor, ...]:
        return tuple(_tensors_in(self.model.object_stage(self.outputs, 1)))


class _Backbone(nn.Module):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.model = nn.ModuleDict({"backbone": backbone})

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(_tensors_in(self.model["backbone"](images)))


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors_in(item)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for item in value:
            yield from _tensors_in(item)
    elif is_dataclass(value):
        for entry in fields(value):
            yield from _tensors_in(getattr(value, entry.name))


def _cost_by_part(model: nn.Module, macs: Mapping[str, float]) -> dict[str, PartCost]:
    # The backbone is worth two lines, the network below and the pyramid; of the rest one a child.
    names = [name for name, _ in model.named_children()]
    if hasattr(getattr(model, "backbone", None), "bottom_up"):
        names = ["backbone.bottom_up", "backbone", *(name for name in names if name != "backbone")]
    parts: dict[str, PartCost] = {}
    seen: set[int] = set()
    for name in names:
        part = _count_parameters(model.get_submodule(name), seen)
        inner = sum(parts[other].macs for other in parts if other.startswith(name + "."))
        part.macs = macs.get(name, 0.0) - inner
        parts["backbone (pyramid)" if name == "backbone" and len(parts) else name] = part
    rest = _count_parameters(model, seen)
    rest.macs = macs[""] - sum(part.macs for part in parts.values())
    parts["other"] = rest
    return {name: part for name, part in parts.items() if part.parameters or part.macs > 0.5}


def _count_parameters(module: nn.Module, seen: set[int]) -> PartCost:
    # `seen` holds the values already counted elsewhere, by identity: shared ones count once.
    part = PartCost()
    frozen = [
        value
        for child in module.modules()
        if isinstance(child, FrozenBatchNorm2d)
        for value in (child.weight, child.bias)
    ]
    for value in [*module.parameters(), *frozen]:
        if id(value) in seen:
            continue
        seen.add(id(value))
        part.parameters += value.numel()
        part.trainable_parameters += value.numel() if value.requires_grad else 0
    return part
