"""ImageNet files of torchvision's ResNets and ResNeXts for Detectron2's ResNet inside a model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import nn

from segzoo.engine.renaming import DROP_COUNTERS, Rule, rename, resnet_rules
from segzoo.errors import CheckpointError
from segzoo.modeling.backbones.resnet_fpn import PYRAMIDS

logger = logging.getLogger(__name__)

# Names that tell such a file.
MARKS = ("conv1.weight", "bn1.weight", "layer1.0.conv1.weight")
RULES = (*resnet_rules("", ""), Rule(r"fc\.(?:weight|bias)", "", why="ImageNet's classifier"), DROP_COUNTERS)
STEM = "stem.conv1.weight"


def is_torchvision_resnet(weights: Mapping[str, Any]) -> bool:
    """Whether the names are those of torchvision's ResNets (timm's plain ones have the same)."""
    return all(mark in weights for mark in MARKS)


def resnet_prefix(model: nn.Module, path: str) -> str:
    """What stands before the names of the model's ResNet, such as "backbone.bottom_up.".

    Raises:
        CheckpointError: the model has none, or several.
    """
    stems = [name for name in model.state_dict() if name.endswith(STEM)]
    if len(stems) != 1:
        raise CheckpointError(
            f"{path}: an ImageNet ResNet named as torchvision does, but the {type(model).__name__} has {len(stems)} of "
            "Detectron2's ResNets",
            f"give it to a config with MODEL.BACKBONE.NAME {' or '.join(PYRAMIDS)}",
        )
    return stems[0].removesuffix(STEM)


def rename_resnet(weights: Mapping[str, Any], model: nn.Module, prefix: str, path: str) -> dict[str, Any]:
    """The entries under the names of the ResNet at `prefix` of `model`; the classifier and counters are dropped.

    An entry of unknown name keeps it.
    """
    renamed = rename(weights, RULES)
    for why, names in renamed.dropped.items():
        logger.info("%s: %d entries dropped (%s), such as %s", path, len(names), why, names[-1])
    _warn_of_stride(model.get_submodule(prefix.removesuffix(".")), path)
    entries: dict[str, Any] = {prefix + name: value for name, value in renamed.weights.items()}
    return entries | {name: weights[name] for name in renamed.unexpected}


def absent_entries(model: nn.Module, part: tuple[str, ...], weights: Mapping[str, Any]) -> list[str]:
    """Entries of the model below the prefixes `part` that a file for it should have and has not.

    Frozen batch norms would fill in missing statistics without a word. The offsets of deformable convolutions may be
    missing: they start at zero, as the plain convolution that the file was trained with.
    """
    optional = ("num_batches_tracked", "conv2_offset.weight", "conv2_offset.bias")
    return [
        name
        for name in model.state_dict()
        if name.startswith(part) and name not in weights and not name.endswith(optional)
    ]


def _warn_of_stride(resnet: Any, path: str) -> None:
    # Files of either kind have the same names and shapes, so that a warning is all that is possible.
    first = next(iter(getattr(resnet, "res3", [])), None)
    if first is not None and first.conv1.kernel_size == (1, 1) and first.conv1.stride != (1, 1):
        logger.warning(
            "%s: torchvision's networks have their strides in the 3x3 convolutions, this model in the 1x1: set "
            "MODEL.RESNETS.STRIDE_IN_1X1 False unless the file is a Caffe-style one",
            path,
        )
