"""OrienMask's targets and losses written down slowly, pixel map by pixel map, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from detectron2.structures import Instances

from orienmask.targets import TargetRule


def best_anchor(width: float, height: float, anchors: np.ndarray) -> int:
    overlap = np.minimum(anchors[:, 0], width) * np.minimum(anchors[:, 1], height)
    return int(np.argmax(overlap / (anchors.prod(axis=1) + width * height - overlap)))


def painting_order(instances: Instances, rule: TargetRule) -> list[int]:
    boxes = instances.gt_boxes.tensor.double().numpy()
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    if rule.overlap_order == "given":
        return list(range(len(boxes)))
    return list(np.argsort(-areas, kind="stable"))


def placed(instances: Instances, rule: TargetRule) -> list[dict[str, Any]]:
    """Each object in painting order with its anchor, stride, cell, centre and base position."""
    anchors = np.array(rule.anchors_px, dtype=np.float64)
    per_level = len(anchors) // len(rule.strides)
    objects = []
    for index in painting_order(instances, rule):
        x0, y0, x1, y1 = instances.gt_boxes.tensor[index].double().tolist()
        anchor = best_anchor(x1 - x0, y1 - y0, anchors)
        stride = rule.strides[anchor // per_level]
        center = np.array([(x0 + x1) / 2, (y0 + y1) / 2])
        limit = np.array([instances.image_size[1] // stride, instances.image_size[0] // stride]) - 1
        cell = np.minimum(np.floor(center / stride), limit).astype(int)
        base = center if rule.base_position == "box" else (cell + 0.5) * stride
        size = np.array([x1 - x0, y1 - y0])
        objects.append(
            {"index": index, "anchor": anchor, "stride": stride, "cell": cell, "center": center, "base": base}
            | {"size": size, "half_anchor": anchors[anchor] / 2, "class": int(instances.gt_classes[index])}
            | {"reach": rule.expand_ratio / 2 * size + stride / 2}
        )
    return objects


def orientation_maps(instances: Instances, rule: TargetRule) -> dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Anchor -> vectors (H, W, 2) in half anchors, positive (H, W), negative (H, W); one full pass an object."""
    height, width = instances.image_size
    pixels = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=2).astype(np.float64)
    maps: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = {}
    for entry in placed(instances, rule):
        if entry["anchor"] not in maps:
            empty = np.zeros((height, width))
            maps[entry["anchor"]] = (np.zeros((height, width, 2)), empty.copy(), empty.astype(bool), pixels)
        vectors, count, positive, _ = maps[entry["anchor"]]
        limit = np.array([width - 1, height - 1])
        first = np.round(np.clip(entry["base"] - entry["reach"], 0, limit))
        last = np.round(np.clip(entry["base"] + entry["reach"], 0, limit))
        area = ((pixels >= first) & (pixels <= last)).all(axis=2)
        mask = instances.gt_masks.tensor[entry["index"]].numpy() & area
        away = pixels - entry["base"]
        with np.errstate(divide="ignore"):
            stretch = np.maximum((entry["reach"] / np.abs(away)).min(axis=2), 1)
        with np.errstate(invalid="ignore"):
            outward = (stretch[..., None] - 1) * away
        outward[(away == 0).all(axis=2)] = entry["reach"] * (1, 0)
        outward /= entry["half_anchor"]
        negative = area & ~mask & ~positive
        vectors[negative] += outward[negative]
        count[negative] += 1
        vectors[mask] = -away[mask] / entry["half_anchor"]
        count[mask] = 1
        positive |= mask
    return {
        anchor: (vectors / np.maximum(count, 1)[..., None], positive, (count > 0) & ~positive)
        for anchor, (vectors, count, positive, _) in maps.items()
    }
