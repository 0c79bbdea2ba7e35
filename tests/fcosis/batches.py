"""Toy configs of FCOSIS's relatives, and batches that are hard for them."""

from __future__ import annotations

import numpy as np
from detectron2.config import CfgNode

from tests.contract.toys import ellipse, make_input, toy_config

THIRDS = (1 / 3, 1 / 3, 1 / 3)
KINDS = ("none", "one empty image", "300", "twins", "pixel")


def fcosis_config(architecture: str, *options: object, regularization: tuple[float, ...] = THIRDS) -> CfgNode:
    """The toy FCOS's config for another meta-architecture."""
    cfg = toy_config("FCOS", "MODEL.META_ARCHITECTURE", architecture, *options)
    cfg.MODEL.FCOSIS.REGULARIZATION = list(regularization)
    return cfg


def hard_batch(kind: str, size: tuple[int, int]) -> list[dict]:
    """A batch of KINDS with images of `size` (H, W), at least 90 x 110."""
    pixel = np.zeros(size, bool)
    pixel[37, 51] = True
    twin = ellipse(size, (60, 50), (40, 35))
    if kind == "none":
        return [make_input(size, [], seed) for seed in range(2)]
    if kind == "one empty image":
        return [make_input(size, [twin], 0), make_input(size, [], 1)]
    if kind == "300":
        centers = np.random.default_rng(0).uniform(10, 90, (300, 2))
        return [make_input(size, [ellipse(size, (x, y), (9, 7)) for x, y in centers], 0)]
    return [make_input(size, {"twins": [twin, twin, twin], "pixel": [pixel]}[kind], 0)]
