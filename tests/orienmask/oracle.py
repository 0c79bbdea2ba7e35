"""OrienMask's targets and losses written down slowly, pixel map by pixel map, in float64."""

from __future__ import annotations

from collections.abc import Sequence
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


def sigmoid(logit: float) -> float:
    return float(1 / (1 + np.exp(-logit)))


def entropy(logit: float, target: float) -> float:
    probability = sigmoid(logit)
    return -(target * np.log(probability) + (1 - target) * np.log(1 - probability))


def iou(first: np.ndarray, second: np.ndarray) -> float:
    """Of two boxes by centre and size."""
    low = np.maximum(first[:2] - first[2:] / 2, second[:2] - second[2:] / 2)
    high = np.minimum(first[:2] + first[2:] / 2, second[:2] + second[2:] / 2)
    overlap = np.clip(high - low, 0, None).prod()
    return float(overlap / (first[2:].prod() + second[2:].prod() - overlap))


def box_losses(
    maps: Sequence[np.ndarray], batch: Sequence[Instances], rule: TargetRule, ignore_threshold: float
) -> dict[str, float]:
    """Sums over a batch of YOLOv3's losses, prediction by prediction.

    Args:
        maps: (N, A, 5 + K, Hi, Wi) of every level, finest first.
        batch: N images.
        rule, ignore_threshold: see the package.
    """
    losses = dict.fromkeys(("loss_xy", "loss_wh", "loss_obj", "loss_noobj", "loss_cls"), 0.0)
    anchors = np.array(rule.anchors_px, dtype=np.float64)
    for image, instances in enumerate(batch):
        height, width = instances.image_size
        cells: dict[tuple[int, ...], list[dict[str, Any]]] = {}
        objects = placed(instances, rule)
        for entry in objects:
            cells.setdefault((entry["anchor"], int(entry["cell"][1]), int(entry["cell"][0])), []).append(entry)
        for level, level_maps in enumerate(maps):
            stride, per_level = rule.strides[level], level_maps.shape[1]
            for own, row, column in np.ndindex(per_level, *level_maps.shape[-2:]):
                raw, anchor = level_maps[image, own, :, row, column], level * per_level + own
                found = cells.get((anchor, row, column), [])
                if not found:
                    center = (np.array([sigmoid(raw[0]), sigmoid(raw[1])]) + (column, row)) * stride
                    box = np.concatenate((center, np.exp(raw[2:4]) * anchors[anchor]))
                    overlaps = [iou(box, np.concatenate((entry["center"], entry["size"]))) for entry in objects]
                    if max(overlaps, default=0.0) <= ignore_threshold:
                        losses["loss_noobj"] += entropy(raw[4], 0.0)
                    continue
                last, classes = found[-1], {entry["class"] for entry in found}
                scale = 2 - last["size"][0] * last["size"][1] / (width * height)
                for axis in range(2):
                    offset = last["center"][axis] / stride - last["cell"][axis]
                    losses["loss_xy"] += scale * entropy(raw[axis], offset)
                    log_size = np.log(last["size"][axis] / anchors[anchor, axis])
                    losses["loss_wh"] += scale / 2 * (raw[2 + axis] - log_size) ** 2
                losses["loss_obj"] += entropy(raw[4], 1.0)
                losses["loss_cls"] += sum(entropy(raw[5 + k], float(k in classes)) for k in range(len(raw) - 5))
    return losses
