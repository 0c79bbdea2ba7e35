"""Masks predicted in boxes by a second stage (MaskFCOS): pooling and pasting in numpy, the mask head as second graph.

Shape shorthand: D detections, C channels, K classes, P side of a box's features, S of its mask, h, w of a level.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from segzoo.export.runtime import boxes as fcos
from segzoo.export.runtime.detections import Detections, finish
from segzoo.export.runtime.images import Prepared
from segzoo.export.runtime.tiles import masks_in_boxes, resample

# Of the feature pyramid's paper: a box of 224 px takes its features from level 4.
CANONICAL_PX, CANONICAL_LEVEL = 224, 4
# Pixels whose probability is at least this belong to a mask.
THRESHOLD = np.float32(0.5)


def decode(
    maps: Mapping[str, np.ndarray],
    settings: Mapping[str, Any],
    image: Prepared,
    objects: Callable[..., np.ndarray] | None,
) -> Detections:
    """Detections of one image.

    Args:
        maps: FCOS's, and "features_<level>" that masks are made of.
        settings: `detector_settings`, and "mask_levels", "mask_strides", "pooled_size", "sampling_ratio", "is_aligned".
        image: what the maps were made of.
        objects: the second graph: (D, C, P, P) -> (D, K or 1, S, S) logits.
    """
    found, _ = fcos.detect_boxes(maps, settings, image.input_size)
    classes = found.candidates.classes
    boxes = found.boxes_px * np.tile(fcos.output_scale(image.input_size, image.output_size), 2)
    masks: list[dict] = []
    if objects is not None and len(boxes):
        features = [fcos.take(maps, f"features_{level}")[0] for level in settings["mask_levels"]]
        logits = objects(pool_boxes(features, found.boxes_px, settings))
        own = classes if logits.shape[1] > 1 else np.zeros_like(classes)
        masks = paste_masks(fcos.sigmoid(logits[np.arange(len(own)), own]), boxes, image.output_size)
    return finish(boxes, found.candidates.scores, classes, masks, image.output_size)


def pool_boxes(features: list[np.ndarray], boxes_px: np.ndarray, settings: Mapping[str, Any]) -> np.ndarray:
    """(D, C, P, P) features of each box from the level of its size, by RoIAlign.

    Args:
        features: (C, h, w) of the levels, finest first.
        boxes_px: (D, 4) xyxy.
        settings: see `decode`.
    """
    strides, side = settings["mask_strides"], settings["pooled_size"]
    areas = (boxes_px[:, 2] - boxes_px[:, 0]) * (boxes_px[:, 3] - boxes_px[:, 1])
    finest = round(math.log2(strides[0]))
    size_levels = np.floor(CANONICAL_LEVEL + np.log2(np.sqrt(areas) / CANONICAL_PX + 1e-8))
    levels = np.clip(size_levels, finest, finest + len(strides) - 1).astype(np.int64) - finest
    pooled = np.zeros((len(boxes_px), len(features[0]), side, side), np.float32)
    for number, (box, level) in enumerate(zip(boxes_px, levels.tolist())):
        feature, scale = features[level], np.float32(1 / strides[level])
        # A mean of samples on a grid, so that it is a matrix on either side.
        columns, rows = (
            _pooling_weights(box[axis] * scale, box[axis + 2] * scale, feature.shape[2 - axis], side, settings)
            for axis in (0, 1)
        )
        is_row, is_column = rows.any(axis=0), columns.any(axis=0)
        part = feature[:, is_row][:, :, is_column]
        pooled[number] = rows[:, is_row] @ part @ columns[:, is_column].T
    return pooled


def _pooling_weights(start: float, end: float, length: int, side: int, settings: Mapping[str, Any]) -> np.ndarray:
    """(side, length) share of each cell of an axis in each bin of a box that reaches from start to end, in cells."""
    is_aligned = settings["is_aligned"]
    # In single precision all along, as the network's own pooling.
    half, least = np.float32(0.5 if is_aligned else 0), np.float32(-np.inf if is_aligned else 1)
    first, last = np.float32(start) - half, np.float32(end) - half
    span = np.float32(max(float(last - first), float(least)))
    samples = settings["sampling_ratio"] if settings["sampling_ratio"] > 0 else max(math.ceil(span / side), 1)
    places = first + (np.arange(side * samples, dtype=np.float32) + np.float32(0.5)) * (span / (side * samples))
    is_inside = (places >= -1) & (places <= length)
    places = np.clip(places, 0, length - 1)
    lower = np.floor(places).astype(np.int64)
    share = places - lower
    weights = np.zeros((side * samples, length), np.float32)
    number = np.arange(side * samples)
    np.add.at(weights, (number, lower), (1 - share) * is_inside)
    np.add.at(weights, (number, np.minimum(lower + 1, length - 1)), share * is_inside)
    return weights.reshape(side, samples, length).mean(axis=1, dtype=np.float32)


def paste_masks(probabilities: np.ndarray, boxes: np.ndarray, image_size: tuple[int, int]) -> list[dict]:
    """Run lengths of (D, S, S) masks stretched over their boxes (D, 4) xyxy px, bilinearly, 0 beyond their cells."""
    padded = np.pad(probabilities, ((0, 0), (1, 1), (1, 1)))
    side = np.float32(probabilities.shape[-1])
    limit = [image_size[1], image_size[0]] * 2
    corners = np.concatenate((np.floor(boxes[:, :2]) - 1, np.ceil(boxes[:, 2:]) + 1), axis=1)
    ranges = np.clip(corners, 0, limit).astype(np.int64)

    def is_inside(number: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        box = boxes[number]
        places = [(pixels - box[axis]) / (box[axis + 2] - box[axis]) * side + 1 for axis, pixels in enumerate((x, y))]
        return resample(padded[number], *places) >= THRESHOLD

    return masks_in_boxes(ranges, image_size, is_inside)
