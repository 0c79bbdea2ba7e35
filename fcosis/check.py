"""Values of MODEL.FCOSIS that cannot work, found before a model is built; MODEL.FCOS has a check of its own."""

from __future__ import annotations

import itertools
import math

from detectron2.config import CfgNode
from detectron2.modeling import Backbone

from fcosis.segmentation import SEG_FEATURES
from segzoo.errors import ConfigError
from segzoo.geometry.soft_masks import MASK_STRIDE
from segzoo.modeling.check_values import Range, check_choices, check_ranges, is_number

# Key -> allowed values.
CHOICES = {"ATTENTION": ("grouping", "box", "none")}
# Key -> its range.
RANGES: dict[str, Range] = {
    "SEG_CHANNELS": (lambda value: value >= 1, "at least 1, such as 256"),
    "GROUP_BUDGET_MB": (lambda value: value > 0, "greater than 0, such as 4096"),
}
FIRST_STRIDES = (4, 8, 16)
# Groups of the norms in the pooling pyramid of the baseline. With one channel each they would take away what the whole
# image's mean says.
NORM_GROUPS = 32


def check_regularization(cfg: CfgNode, backbone: Backbone) -> None:
    """Checks MODEL.FCOSIS.REGULARIZATION, that the levels' cells are made of the finer one's, and the sampling.

    Raises:
        ConfigError: names the key, its value and what is allowed.
    """
    rule = list(cfg.MODEL.FCOSIS.REGULARIZATION)
    given = f"MODEL.FCOSIS.REGULARIZATION is {rule}"
    if len(rule) != 3 or not all(is_number(value) and value >= 0 for value in rule):
        raise ConfigError(given, "give alpha, beta and gamma, none below 0, such as [0.3333, 0.3333, 0.3334]")
    if not math.isclose(sum(rule), 1, abs_tol=1e-3):
        raise ConfigError(f"{given}, {sum(rule):g} together", "alpha, beta and gamma must be 1 together")
    names = list(cfg.MODEL.FCOS.IN_FEATURES)
    strides = [backbone.output_shape()[name].stride for name in names]
    if strides[0] not in FIRST_STRIDES or any(coarse != 2 * fine for fine, coarse in itertools.pairwise(strides)):
        raise ConfigError(
            f"MODEL.FCOS.IN_FEATURES is {names}, with strides {strides}",
            f"occupancy is counted in cells of {MASK_STRIDE} px: begin with stride {MASK_STRIDE}, 8 or 16; each has "
            "twice the last",
        )
    if cfg.MODEL.FCOS.CENTER_SAMPLING_RADIUS > 0:
        raise ConfigError(
            f"MODEL.FCOS.CENTER_SAMPLING_RADIUS is {cfg.MODEL.FCOS.CENTER_SAMPLING_RADIUS} with mask regularisation",
            "FCOSIS is on FCOS v1, whose positives fill the boxes: set it to 0",
        )


def check_fcosis(cfg: CfgNode, backbone: Backbone) -> None:
    """Checks MODEL.FCOSIS on its own and against the backbone's levels.

    Raises:
        ConfigError: names the key, its value and what is allowed.
    """
    node = cfg.MODEL.FCOSIS
    check_choices("MODEL.FCOSIS", node, CHOICES)
    check_ranges("MODEL.FCOSIS", node, RANGES)
    if not isinstance(node.LEARN_MU, bool):
        raise ConfigError(f"MODEL.FCOSIS.LEARN_MU is {node.LEARN_MU!r}", "use True or False")
    if not node.LEARN_MU and node.ATTENTION != "grouping":
        raise ConfigError(
            f"MODEL.FCOSIS.LEARN_MU is False with ATTENTION {node.ATTENTION!r}",
            "only attention by grouping has a mu: leave LEARN_MU at True, or set ATTENTION to 'grouping'",
        )
    if node.ATTENTION == "none" and (node.SEG_CHANNELS % NORM_GROUPS or node.SEG_CHANNELS == NORM_GROUPS):
        raise ConfigError(
            f"MODEL.FCOSIS.SEG_CHANNELS is {node.SEG_CHANNELS} with ATTENTION 'none'",
            f"its group norms need a multiple of {NORM_GROUPS} above it, such as 256",
        )
    _check_features(backbone)


def _check_features(backbone: Backbone) -> None:
    shapes = backbone.output_shape()
    absent = [name for name in SEG_FEATURES if name not in shapes]
    if absent:
        raise ConfigError(
            f"FCOSIS segments on {SEG_FEATURES}; the backbone {type(backbone).__name__} gives {list(shapes)}",
            "use build_resnet_fpn_p2p7_backbone, or build_timm_fpn_backbone with MODEL.TIMM.OUT_STRIDES (4, 8, 16, 32)",
        )
    found = [(shapes[name].stride, shapes[name].channels) for name in SEG_FEATURES]
    strides, channels = zip(*found, strict=True)
    if strides != tuple(MASK_STRIDE * 2**level for level in range(len(SEG_FEATURES))) or len(set(channels)) > 1:
        raise ConfigError(
            f"FCOSIS segments on {SEG_FEATURES}, here with strides {list(strides)} and {list(channels)} channels",
            f"take a pyramid: strides from {MASK_STRIDE} on, each twice the last, and equal channels",
        )
