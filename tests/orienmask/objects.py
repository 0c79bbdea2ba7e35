"""Objects for the tests of OrienMask."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.structures import BitMasks, Boxes, Instances

from orienmask.config import YOLOV4_ANCHORS
from orienmask.targets import TargetRule
from segzoo.geometry.masks import mask_boxes

STRIDES = (8, 16, 32)
RULE = TargetRule(YOLOV4_ANCHORS, STRIDES)
NUM_CLASSES = 80


def map_sizes(size: tuple[int, int]) -> list[tuple[int, int]]:
    return [(size[0] // stride, size[1] // stride) for stride in STRIDES]


def instances_of(masks: Sequence[np.ndarray], size: tuple[int, int], classes: Sequence[int] = ()) -> Instances:
    """A training sample's objects, boxes around the masks (H, W); classes 0, 1, 2, ... unless given."""
    stack = torch.from_numpy(np.stack(masks)) if len(masks) else torch.zeros(0, *size, dtype=torch.bool)
    instances = Instances(size)
    instances.gt_boxes = Boxes(mask_boxes(stack))
    instances.gt_classes = torch.tensor(list(classes) if classes else list(range(len(masks))), dtype=torch.int64)
    instances.gt_masks = BitMasks(stack)
    return instances


def blob(size: tuple[int, int], center: tuple[float, float], radius: float, seed: int = 0) -> np.ndarray:
    """(H, W) bool: a wavy disc with three to five bumps."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    dx, dy = x - center[0], y - center[1]
    angle = np.arctan2(dy, dx)
    limit = radius * (1 + 0.25 * np.sin(rng.integers(3, 6) * angle + rng.uniform(0, 6)))
    return np.hypot(dx, dy) < limit


def random_objects(count: int, size: tuple[int, int], seed: int, max_radius: float = 120.0) -> Instances:
    """Blobs of all sizes anywhere, overlapping as they fall."""
    rng = np.random.default_rng(seed)
    masks: list[np.ndarray] = []
    while len(masks) < count:
        radius = float(np.exp(rng.uniform(np.log(4), np.log(max_radius))))
        mask = blob(size, (rng.uniform(0, size[1]), rng.uniform(0, size[0])), radius, seed=len(masks))
        if mask.any():
            masks.append(mask)
    return instances_of(masks, size, rng.integers(0, NUM_CLASSES, count).tolist())
