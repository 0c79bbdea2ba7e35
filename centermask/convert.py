"""CenterNet's released weights in our CenterMask: backbone and the heads of heatmap, offset and size; DLA-34's trunk.

Shapes and saliency are not in them; they begin as in a new model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from segzoo.engine.centernet_weights import DLA_RULES, HOURGLASS_RULES, dla_trunk_rules
from segzoo.engine.convert import Converter, Fit
from segzoo.engine.renaming import DROP_COUNTERS, LEAF, Rule
from segzoo.errors import CheckpointError

DLA_CONFIG, HOURGLASS_CONFIG = "configs/centermask_DLA34.yaml", "configs/centermask_HG104.yaml"
# What stands before our names of DLA-34 without its up-sampling.
TRUNK = "backbone.bottom_up."
# CenterNet's name of a head -> ours.
HEADS = {"hm": "heatmap", "wh": "size", "reg": "offset"}

DLA_HEAD_RULES = tuple(
    Rule(rf"{theirs}\.(?P<layer>[02])\.{LEAF}", f"heads.0.{ours}.{{layer}}.{{leaf}}") for theirs, ours in HEADS.items()
)
# A head of every stack; its first layer is a convolution in a block without norm.
HOURGLASS_HEAD_RULES = tuple(
    rule
    for theirs, ours in HEADS.items()
    for rule in (
        Rule(rf"{theirs}\.(?P<stack>\d)\.0\.conv\.{LEAF}", f"heads.{{stack}}.{ours}.0.{{leaf}}"),
        Rule(rf"{theirs}\.(?P<stack>\d)\.1\.{LEAF}", f"heads.{{stack}}.{ours}.2.{{leaf}}"),
    )
)


def dla_fit(weights: Mapping[str, Tensor]) -> Fit:
    """The DLA-34 config with the file's classes and head width.

    Raises:
        CheckpointError: an entry that tells them is missing.
    """
    options, found = _head_options(weights)
    return Fit(DLA_CONFIG, {**_trunk_options(weights), **options}, found, _parts(1))


def trunk_fit(weights: Mapping[str, Tensor]) -> Fit:
    """The DLA-34 config, for the trunk alone.

    Raises:
        CheckpointError: an entry that tells its width is missing.
    """
    found = {"holds": "the trunk of DLA-34; its up-sampling and all heads begin anew"}
    return Fit(DLA_CONFIG, _trunk_options(weights), found, (TRUNK,))


def _trunk_options(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    names = ("level0.0", "level1.0", *(f"level{level}.{root}" for level, root in _DLA_ROOTS.items()))
    return {"MODEL.DLA.CHANNELS": tuple(_shape(weights, f"{TRUNK}{name}.weight")[0] for name in names)}


# The convolution whose output is that of the level.
_DLA_ROOTS = {2: "root.conv", 3: "tree2.root.conv", 4: "tree2.root.conv", 5: "root.conv"}


def hourglass_fit(weights: Mapping[str, Tensor]) -> Fit:
    """The Hourglass-104 config with the file's stacks, classes and head width.

    Raises:
        CheckpointError: an entry that tells them is missing.
    """
    num_stacks = sum(name.startswith("backbone.cnvs.") and name.endswith("conv.weight") for name in weights)
    options, found = _head_options(weights)
    options["MODEL.HOURGLASS.NUM_STACKS"] = num_stacks
    options["MODEL.CENTERMASK.IN_FEATURES"] = [f"stack{stack}" for stack in range(num_stacks)]
    return Fit(HOURGLASS_CONFIG, options, found | {"stacks": str(num_stacks)}, _parts(num_stacks))


def _parts(num_heads: int) -> tuple[str, ...]:
    """What stands before our names of all that CenterNet's files hold."""
    return ("backbone.", *(f"heads.{head}.{name}." for head in range(num_heads) for name in HEADS.values()))


def _head_options(weights: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, str]]:
    """Options of the heads, and what they are in words."""
    num_classes, channels = _shape(weights, "heads.0.heatmap.2.weight")[:2]
    options = {"MODEL.CENTERMASK.NUM_CLASSES": num_classes, "MODEL.CENTERMASK.HEAD_CHANNELS": channels}
    return options, {
        "holds": "backbone and heads of heatmap, offset and size; shapes and saliency begin anew",
        "heads": f"{num_classes} classes, {channels} hidden channels",
    }


def _shape(weights: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    if name not in weights:
        raise CheckpointError(
            f"missing in the file: {name}, without which the model is not known", "docs/weights.md shows their names"
        )
    shape = tuple(weights[name].shape)
    if len(shape) != 4 or 0 in shape:
        raise CheckpointError(f"{name} is {shape}, which are no filters of a convolution")
    return shape


CONVERTERS = (
    Converter(
        name="centernet-dla34",
        title="CenterNet's DLA-34 (ctdet_coco_dla_*.pth)",
        mark=r"dla_up\.ida_0\..+",
        rules=(*DLA_HEAD_RULES, *DLA_RULES),
        fit=dla_fit,
    ),
    Converter(
        name="dla34",
        title="DLA-34 trained on ImageNet, of its authors or of timm (dla34-*.pth)",
        mark=r"base_layer\.0\.weight",
        rules=(*dla_trunk_rules("", TRUNK), DROP_COUNTERS),
        fit=trunk_fit,
    ),
    Converter(
        name="centernet-hourglass104",
        title="CenterNet's Hourglass-104 (ctdet_coco_hg.pth)",
        mark=r"kps\.0\..+",
        rules=(*HOURGLASS_HEAD_RULES, *HOURGLASS_RULES),
        fit=hourglass_fit,
    ),
)
