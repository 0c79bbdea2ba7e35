"""CenterNet's targets, losses and decoding written out: numpy, one object and one cell at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from detectron2.structures import BitMasks, Boxes, Instances

from segzoo.geometry.masks import mask_boxes


class CenterObject(NamedTuple):
    """An object of the oracle: class, box in cells, column and row of its cell."""

    class_index: int
    box: tuple[float, float, float, float]
    x: int
    y: int


def boxes_to_instances(boxes_px: Sequence[Sequence[float]], classes: Sequence[int], size: tuple[int, int]) -> Instances:
    """A training sample without masks."""
    instances = Instances(size)
    instances.gt_boxes = Boxes(torch.tensor(boxes_px, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
    return instances


def masks_to_instances(masks: Sequence[np.ndarray], classes: Sequence[int], size: tuple[int, int]) -> Instances:
    """A training sample of (H, W) masks and the boxes around them."""
    stack = torch.from_numpy(np.stack(masks)) if len(masks) else torch.zeros(0, *size, dtype=torch.bool)
    instances = boxes_to_instances(mask_boxes(stack).tolist(), classes, size)
    instances.gt_masks = BitMasks(stack)
    return instances


def list_objects(instances: Instances, map_size: tuple[int, int], max_objects: int) -> list[CenterObject]:
    """The first `max_objects` of an image that have an extent in the map."""
    height, width = map_size
    objects = []
    for box, class_index in zip(instances.gt_boxes.tensor.numpy(), instances.gt_classes.tolist()):
        x0, x1 = (float(np.clip(side / np.float32(4), 0, width - 1)) for side in box[[0, 2]])
        y0, y1 = (float(np.clip(side / np.float32(4), 0, height - 1)) for side in box[[1, 3]])
        if x1 > x0 and y1 > y0 and len(objects) < max_objects:
            objects.append(CenterObject(class_index, (x0, y0, x1, y1), int((x0 + x1) / 2), int((y0 + y1) / 2)))
    return objects


def radius_of(height: float, width: float, overlap: float = 0.7) -> int:
    """CenterNet's radius, with the larger root divided by 2 whatever the equation's first factor is."""
    equations = (
        (1.0, height + width, width * height * (1 - overlap) / (1 + overlap)),
        (4.0, 2 * (height + width), (1 - overlap) * width * height),
        (4 * overlap, -2 * overlap * (height + width), (overlap - 1) * width * height),
    )
    return max(0, int(min((b + math.sqrt(b * b - 4 * a * c)) / 2 for a, b, c in equations)))


def heatmap_of(objects: Sequence[CenterObject], num_classes: int, map_size: tuple[int, int]) -> np.ndarray:
    """(K, H, W)."""
    height, width = map_size
    heatmap = np.zeros((num_classes, height, width))
    for item in objects:
        x0, y0, x1, y1 = item.box
        radius = radius_of(math.ceil(np.float32(y1) - np.float32(y0)), math.ceil(np.float32(x1) - np.float32(x0)))
        sigma = (2 * radius + 1) / 6
        for y in range(item.y - radius, item.y + radius + 1):
            for x in range(item.x - radius, item.x + radius + 1):
                if 0 <= y < height and 0 <= x < width:
                    value = math.exp(-((x - item.x) ** 2 + (y - item.y) ** 2) / (2 * sigma**2))
                    heatmap[item.class_index, y, x] = max(heatmap[item.class_index, y, x], value)
    return heatmap


def focal_of(logits: np.ndarray, heatmap: np.ndarray) -> float:
    """The penalty-reduced focal loss, a sum in fp64, cell by cell."""
    total = 0.0
    for logit, target in zip(logits.ravel().astype(np.float64), heatmap.ravel().astype(np.float64)):
        p = min(max(1 / (1 + math.exp(-logit)), 1e-4), 1 - 1e-4)
        if target == 1:
            total -= (1 - p) ** 2 * math.log(p)
        else:
            total -= (1 - target) ** 4 * p**2 * math.log(1 - p)
    return total


def peaks_of(scores: np.ndarray, count: int) -> list[tuple[float, int, int, int]]:
    """(score, class, column, row) of a (K, H, W) map's peaks, best first; scores must differ."""
    found = []
    for class_index, y, x in np.ndindex(*scores.shape):
        window = scores[class_index, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
        if scores[class_index, y, x] == window.max():
            found.append((float(scores[class_index, y, x]), class_index, x, y))
    return sorted(found, reverse=True)[:count]
