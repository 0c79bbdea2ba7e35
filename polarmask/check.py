"""Values of MODEL.POLARMASK that cannot work, found before a model is built."""

from __future__ import annotations

import math

from detectron2.config import CfgNode

from polarmask.losses import RAY_LOSSES
from segzoo.errors import ConfigError

# Key -> allowed values.
CHOICES = {
    "CONVENTION": ("exact", "official"),
    "CENTER": ("mass", "box"),
    "PARTS": ("largest", "all"),
    "BOXES": ("contours", "predicted"),
    "MASK_LOSS": tuple(RAY_LOSSES),
    "CENTERNESS": ("polar", "cartesian"),
}


def check_polarmask(polar: CfgNode) -> None:
    """Checks MODEL.POLARMASK on its own.

    Raises:
        ConfigError: names the key, its value and what is allowed.
    """
    if polar.NUM_RAYS < 3:
        raise ConfigError(f"MODEL.POLARMASK.NUM_RAYS is {polar.NUM_RAYS}", "it must be at least 3, for a contour")
    for key, allowed in CHOICES.items():
        if polar[key] not in allowed:
            raise ConfigError(f"MODEL.POLARMASK.{key} is {polar[key]!r}", f"use one of {', '.join(allowed)}")
    for key in ("MASK_LOSS_WEIGHT", "CTR_BIAS"):
        if not 0 <= polar[key] < math.inf:
            raise ConfigError(f"MODEL.POLARMASK.{key} is {polar[key]}", "it must be at least 0 and finite")
    if polar.BOXES == "predicted" and not polar.BOX_BRANCH:
        raise ConfigError(
            "MODEL.POLARMASK.BOXES is 'predicted', but MODEL.POLARMASK.BOX_BRANCH is False",
            "set BOX_BRANCH True, or BOXES 'contours'",
        )
    if polar.CONVENTION == "official":
        _check_official(polar)


def _check_official(polar: CfgNode) -> None:
    if 360 % polar.NUM_RAYS:
        raise ConfigError(
            f"MODEL.POLARMASK.NUM_RAYS is {polar.NUM_RAYS}, but CONVENTION 'official' looks rays up by whole degrees",
            "use a divisor of 360, or CONVENTION 'exact'",
        )
    for key, default in (("CENTER", "mass"), ("PARTS", "largest")):
        if polar[key] != default:
            raise ConfigError(
                f"MODEL.POLARMASK.{key} is {polar[key]!r}, but CONVENTION 'official' has a rule of its own",
                f"leave {key} at {default!r}, or use CONVENTION 'exact'",
            )
