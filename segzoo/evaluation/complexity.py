"""Parameters and multiply-accumulates (MAC) of a model, in total and by part.

One MAC counts 1. Only convolutions, linear layers and matrix products count; norms, activations and resizing do not, as
in the papers' tables. A deformable convolution counts as the plain one that it replaces, and the convolution that
predicts its offsets by itself; bilinear sampling and the products with the masks do not count.

Where shapes do not depend on values, nothing is computed: PyTorch's fake tensors go through the model, which takes a
second whatever its size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from segzoo.errors import ConfigError

# Operators whose absence from the count would make it wrong.
HEAVY_WORDS = ("conv", "attention", "matmul", "baddbmm")
# PyTorch counts a multiplication and an addition as two.
FLOPS_PER_MAC = 2


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


def build_for_counting(cfg: CfgNode, device: str = "cpu") -> nn.Module:
    """The model of `cfg` in eval mode, without its weights; nothing is downloaded, `cfg` is not changed.

    Args:
        cfg: the whole config.
        device: "cpu", or "meta", where parameters alone can be counted, in no time.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = device
    # Nothing is suppressed, so that a second stage sees as many proposals and detections as the config allows.
    cfg.MODEL.RPN.NMS_THRESH = cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST = 1.0
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    if cfg.MODEL.TIMM.WEIGHTS:
        # Named weights keep the norms frozen, as they are in training; build_model does not load them.
        cfg.MODEL.TIMM.WEIGHTS, cfg.MODEL.WEIGHTS = "", cfg.MODEL.WEIGHTS or "not loaded"
    with torch.device(device):
        model = build_model(cfg).eval()
    for name, parameter in model.named_parameters():
        # Without box deltas the proposals are anchors inside the image; random deltas would make most of them empty.
        if "anchor_deltas" in name or "bbox_pred" in name:
            nn.init.zeros_(parameter)
    return model


def count_parameters(model: nn.Module) -> int:
    """All learned values, as `Complexity.parameters`."""
    return _count_parameters(model, set()).parameters


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
    # The cost is counted for one; it is done for all of them as one batch.
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode, torch.no_grad():
        outputs = model.dense_outputs(torch.zeros(1, 3, *image_size))
    try:
        with mode:
            macs = _count(lambda: model.object_stage(outputs, 1))[0][""]
    except (DataDependentOutputException, DynamicOutputShapeException):
        # A stage that looks at values, as boxes that choose their level, gets some.
        maps = tree_map(lambda level: torch.zeros(level.shape), outputs)
        macs = _count(lambda: model.object_stage(maps, 1))[0][""]
    return ObjectCost(model.OBJECT_UNIT, macs, tuple(counts)) if macs else None


def _mask_map_bytes(model: Any, image_size: tuple[int, int]) -> int | None:
    if not hasattr(model, "mask_maps"):
        return None
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        maps = model.mask_maps(model.dense_outputs(torch.zeros(1, 3, *image_size)))
    return sum(level.numel() * level.element_size() for level in _tensors_in(maps))


def _count_macs(model: nn.Module, image_size: tuple[int, int]) -> tuple[Mapping[str, float], list[str]]:
    # Returns MAC by module name ("" is the whole model) and notes on what was counted.
    notes, is_fake = [], True
    if hasattr(model, "dense_outputs"):
        wrapper: nn.Module = _DenseOutputs(model)
    elif hasattr(model, "proposal_generator"):
        wrapper, is_fake = _Inference(model), False
        notes.append("whole inference, with as many proposals and detections as the config allows")
    else:
        wrapper = _Backbone(model.get_submodule("backbone"))
        notes.append(f"{type(model).__name__} has no dense_outputs: only its backbone is counted")
    with FakeTensorMode(allow_non_fake_inputs=True) if is_fake else nullcontext():
        images = torch.zeros(1, 3, *image_size)
        macs, uncounted = _count(lambda: wrapper(images))
    if uncounted:
        notes.append(f"not counted: {', '.join(uncounted)}")
    prefix = f"{type(wrapper).__name__}.model."
    return {"": macs[""]} | {name.removeprefix(prefix): mac for name, mac in macs.items() if name != ""}, notes


def _count(call: Callable[[], Any]) -> tuple[dict[str, float], list[str]]:
    """MAC of a call by the names of the modules in it ("" = all), and heavy operators that are not among them."""
    deform = torch.ops.torchvision.deform_conv2d
    counter = FlopCounterMode(display=False, custom_mapping={deform: _deform_conv_flops})
    with torch.no_grad(), _SeenOperators() as seen, counter:
        call()
    macs = {name: sum(flops.values()) / FLOPS_PER_MAC for name, flops in counter.get_flop_counts().items()}
    known = {deform, *flop_registry}
    heavy = {
        str(operator)
        for operator in seen.operators
        if operator not in known and any(word in str(operator) for word in HEAVY_WORDS)
    }
    return {"": macs.pop("Global", 0.0), **macs}, sorted(heavy)


def _deform_conv_flops(_: Any, weight: Any, *args: Any, out_shape: Any, **kwargs: Any) -> int:
    # Shapes in place of tensors: each output value takes one product a weight of its filter.
    num_images, _, height, width = out_shape
    return FLOPS_PER_MAC * num_images * height * width * weight[0] * weight[1] * weight[2] * weight[3]


class _SeenOperators(TorchDispatchMode):
    """Notes which operators run."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: Counter[Any] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operators[getattr(func, "overloadpacket", func)] += 1
        return func(*args, **(kwargs or {}))


class _DenseOutputs(nn.Module):
    """Backbone and heads as a module, under whose name the counter knows all of their parts."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, images: Tensor) -> Any:
        return self.model.dense_outputs(images)


class _Inference(_DenseOutputs):
    def forward(self, images: Tensor) -> Any:
        return self.model([{"image": image} for image in images])


class _Backbone(nn.Module):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.model = nn.ModuleDict({"backbone": backbone})

    def forward(self, images: Tensor) -> Any:
        return self.model["backbone"](images)


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
        part.macs = _macs_of(model.get_submodule(name), name, macs) - inner
        parts["backbone (pyramid)" if name == "backbone" and len(parts) else name] = part
    rest = _count_parameters(model, seen)
    rest.macs = macs[""] - sum(part.macs for part in parts.values())
    parts["other"] = rest
    return {name: part for name, part in parts.items() if part.parameters or part.macs > 0.5}


def _macs_of(module: nn.Module, name: str, macs: Mapping[str, float]) -> float:
    # A list of modules is never called itself.
    children = [(child, f"{name}.{child_name}") for child_name, child in module.named_children()]
    return macs[name] if name in macs else sum(_macs_of(child, path, macs) for child, path in children)


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
