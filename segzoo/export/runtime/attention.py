"""Masks from a segmentation that attends to what was detected (FCOSIS): the counterpart of fcosis/objects.py,
coloring.py, attention.py and masks.py.

What an object's attention is made of is numpy; the segmentation itself is the second graph, run once for every colour
group (objects whose boxes do not overlap).

Shape shorthand: R locations, D detections, G colour groups, h, w size of the stride-4 map.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from segzoo.export.runtime import boxes as fcos
from segzoo.export.runtime.detections import Detections, finish
from segzoo.export.runtime.images import Prepared
from segzoo.export.runtime.tiles import box_ranges, masks_in_boxes, resample, steps_px

# Pixels between neighbouring cells of the segmentation.
MASK_STRIDE = 4


def decode(
    maps: Mapping[str, np.ndarray],
    settings: Mapping[str, Any],
    image: Prepared,
    objects: Callable[..., np.ndarray] | None,
) -> Detections:
    """Detections of one image.

    Args:
        maps: FCOS's; without attention "class_logits" (1, K, h, w); with it "features_<level>" of the segmentation's
            levels, and with grouping "coarse_logits_<level>" and "center_offsets_<level>".
        settings: `detector_settings`, and "is_grouping", "seg_levels", "lam", "mu", "mask_threshold", "rival_score",
            "merged_iou", "merged_distance".
        image: what the maps were made of.
        objects: the second graph: features of the segmentation's levels and (G, 1, h, w) attention -> (G, h, w) logits;
            None without attention.
    """
    found, locations = fcos.detect_boxes(maps, settings, image.input_size)
    boxes, candidates = found.boxes_px, found.candidates
    if objects is None:
        logits, channels = fcos.take(maps, "class_logits")[0], candidates.classes
    else:
        features = [fcos.take(maps, f"features_{level}") for level in settings["seg_levels"]]
        channels = color_boxes(boxes)
        attention = attend(maps, settings, found, locations, channels, features[0].shape[2:])
        # One group after the other, so that memory does not grow with the objects.
        groups = [objects(*features, attention[number : number + 1])[0] for number in range(len(attention))]
        logits = np.stack(groups) if groups else np.zeros((0, *features[0].shape[2:]), np.float32)
    masks = cut_masks(logits, channels, boxes, image, settings["mask_threshold"])
    boxes = boxes * np.tile(fcos.output_scale(image.input_size, image.output_size), 2)
    return finish(boxes, candidates.scores, candidates.classes, masks, image.output_size)


def attend(
    maps: Mapping[str, np.ndarray],
    settings: Mapping[str, Any],
    found: fcos.Found,
    locations: fcos.Locations,
    colors: np.ndarray,
    map_size: tuple[int, ...],
) -> np.ndarray:
    """(G, 1, h, w) float32: lambda m - mu (1 - m) in the boxes of a group's objects, 0 elsewhere."""
    index = found.candidates.locations
    num_groups = int(colors.max()) + 1 if len(colors) else 0
    attention = np.zeros((num_groups, 1, *map_size), np.float32)
    lam, mu = np.float32(settings["lam"]), np.float32(settings["mu"])
    ranges = box_ranges(found.boxes_px / np.float32(MASK_STRIDE), (map_size[0], map_size[1]))
    is_grouping = settings["is_grouping"]
    memberships = _memberships(maps, settings, found, locations) if is_grouping else []
    for number, (left, top, right, bottom) in enumerate(ranges.tolist()):
        part = attention[colors[number], 0, top:bottom, left:right]
        if not is_grouping:
            part += lam
            continue
        step = np.float32(MASK_STRIDE / settings["strides"][locations.levels[index[number]]])
        x, y = (
            (np.arange(*span, dtype=np.float32) + np.float32(0.5)) * step for span in ((left, right), (top, bottom))
        )
        membership = resample(memberships[number], x, y)
        part += lam * membership - mu * (1 - membership)
    return attention


def _memberships(
    maps: Mapping[str, np.ndarray], settings: Mapping[str, Any], found: fcos.Found, locations: fcos.Locations
) -> list[np.ndarray]:
    """Of each detection, on the map of its level: coarse segmentation where a location belongs to it, else 0."""
    coarse = fcos.sigmoid(fcos.flatten_levels(maps, "coarse_logits", settings["levels"]))[:, 0]
    ways = fcos.flatten_levels(maps, "center_offsets", settings["levels"]) * locations.strides_px[:, None]
    index = found.candidates.locations
    own_ways = ways[index]
    is_wild = ~np.isfinite(own_ways).all(axis=1)
    centers = locations.points_px[index] + np.where(is_wild[:, None], np.float32(0), own_ways)
    stand_ins = merge_detections(found.boxes_px, centers, settings)
    scores = found.candidates.scores
    num_rivals = np.searchsorted(-scores, np.float32(settings["rival_score"]) * -scores, side="right")[stand_ins]
    sizes = [height * width for height, width in locations.map_sizes]
    starts = np.cumsum([0, *sizes])
    ends = locations.points_px + ways
    # Who competes by another one's centre is nobody's rival.
    rivals = np.where((stand_ins == np.arange(len(centers)))[:, None], centers, np.float32(np.inf))
    result = []
    for number, level in enumerate(locations.levels[index].tolist()):
        # Only the locations of the detection's own level are looked at.
        own = slice(starts[level], starts[level + 1])
        distance = _squared_distances(centers[stand_ins[number]], ends[own])
        nearest = np.full(len(distance), np.inf, np.float32)
        for rival in rivals[: num_rivals[number]]:
            # A NaN wins, as in torch's cummin: a location that points nowhere belongs to nobody.
            nearest = np.minimum(nearest, _squared_distances(rival, ends[own]))
        is_own = (distance <= nearest) & np.isfinite(distance)
        result.append((coarse[own] * is_own).reshape(locations.map_sizes[level]))
    return result


def _squared_distances(center: np.ndarray, points: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", over="ignore"):
        return np.square(points - center).sum(axis=1)


def merge_detections(boxes: np.ndarray, centers_px: np.ndarray, settings: Mapping[str, Any]) -> np.ndarray:
    """(D,) the best detection of the same object, see `fcosis.objects.merge_detections`."""
    count = len(boxes)
    if count == 0:
        return np.zeros(0, np.int64)
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 0)
    areas = sides[:, 0] * sides[:, 1]
    sizes = np.sqrt(areas)
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    overlap = np.maximum(np.minimum(boxes[:, None, 2:], boxes[None, :, 2:]) - low, 0).prod(axis=2)
    with np.errstate(invalid="ignore"):
        iou = overlap / (areas[:, None] + areas - overlap)
    distances = np.sqrt(np.square(centers_px[:, None] - centers_px).sum(axis=2))
    least = np.float32(settings["merged_distance"]) * np.minimum(sizes[:, None], sizes)
    is_same = (iou >= settings["merged_iou"]) & (distances <= least)
    np.fill_diagonal(is_same, True)
    best = is_same.argmax(axis=1)
    # From the best one to that one's best one: paths halve.
    for _ in range(count.bit_length()):
        best = best[best]
    return best


def color_boxes(boxes: np.ndarray) -> np.ndarray:
    """(D,) int64 colours from 0, Largest-First: boxes of one colour do not overlap."""
    count = len(boxes)
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    adjacency = (high > low).all(axis=2)
    np.fill_diagonal(adjacency, False)
    colors = np.full(count, count, np.int64)
    for vertex in np.argsort(-adjacency.sum(axis=1), kind="stable"):
        taken = set(colors[adjacency[vertex]].tolist())
        colors[vertex] = next(color for color in range(count + 1) if color not in taken)
    return colors


def cut_masks(
    logits: np.ndarray, channels: np.ndarray, boxes_px: np.ndarray, image: Prepared, threshold: float
) -> list[dict]:
    """Run lengths of the pixels of each box whose probability reaches the threshold.

    Args:
        logits: (B, h, w) at stride 4.
        channels: (D,) which of them holds a detection's mask.
        boxes_px: (D, 4) xyxy in pixels of the network's input.
        image: sizes of the input and the output.
        threshold: of the probability.
    """
    step = steps_px(image.input_size, image.output_size)
    least = np.float32(math.log(threshold / (1 - threshold)))

    def is_inside(number: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        places = [pixels * (step[axis] / np.float32(MASK_STRIDE)) for axis, pixels in enumerate((x, y))]
        return resample(logits[channels[number]], *places) >= least

    ranges = box_ranges(boxes_px / np.tile(step, 2), image.output_size)
    return masks_in_boxes(ranges, image.output_size, is_inside)
