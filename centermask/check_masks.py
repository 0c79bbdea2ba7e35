"""Values of the keys that MODEL.CENTERMASK and MODEL.CENTERMASK_FCOS share: how masks are made."""

from __future__ import annotations

from detectron2.config import CfgNode

from segzoo.errors import ConfigError
from segzoo.modeling.check_values import Range, check_choices, check_ranges

# Key -> allowed values.
MASK_CHOICES = {"SALIENCY": ("class_specific", "class_agnostic", "none")}
# Key -> its range.
MASK_RANGES: dict[str, Range] = {
    "SHAPE_SIZE": (lambda value: value >= 2, "at least 2, such as 32"),
    "SALIENCY_PRIOR": (lambda value: 0 < value < 1, "between 0 and 1, without them"),
    "MASK_LOSS_WEIGHT": (lambda value: value >= 0, "at least 0"),
    "SALIENCY_LOSS_WEIGHT": (lambda value: value >= 0, "at least 0"),
    "MASK_THRESH": (lambda value: 0 < value < 1, "between 0 and 1, without them"),
}


def check_masks(name: str, node: CfgNode) -> None:
    """Checks that masks can be made of shapes, a saliency, or both.

    Args:
        name: of the node, such as "MODEL.CENTERMASK".
        node: with SHAPE_ON and the keys of `MASK_CHOICES` and `MASK_RANGES`.

    Raises:
        ConfigError: names the key, its value and what is allowed.
    """
    check_choices(name, node, MASK_CHOICES)
    check_ranges(name, node, MASK_RANGES)
    if not isinstance(node.SHAPE_ON, bool):
        raise ConfigError(f"{name}.SHAPE_ON is {node.SHAPE_ON!r}", "use True or False")
    if node.SALIENCY != "none":
        return
    if not node.SHAPE_ON:
        raise ConfigError(
            f"{name}.SHAPE_ON is False and SALIENCY is 'none': nothing is left to make masks of",
            "leave at least one of them on",
        )
    if node.SALIENCY_LOSS_WEIGHT > 0:
        raise ConfigError(
            f"{name}.SALIENCY_LOSS_WEIGHT is {node.SALIENCY_LOSS_WEIGHT}, but SALIENCY is 'none'",
            "without a saliency there is none to supervise: set the weight to 0",
        )
