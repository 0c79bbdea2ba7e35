"""FCOS's candidates and NMS in numpy: the counterpart of segzoo/modeling/fcos/decode.py.

Shape shorthand: R locations, K classes, L levels, D candidates or detections.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from segzoo.errors import CheckpointError

# exp() of more than this is never a size in an image; as in segzoo.modeling.fcos.head.
MAX_LOG_SIZE = np.float32(math.log(16_384.0))
# Up to so many boxes torchvision moves the classes apart before it compares; beyond, it compares class by class.
MAX_MOVED_BOXES = 1000


class Locations(NamedTuple):
    """Cells of all levels: points_px (R, 2) their centres; strides_px, levels (R,); map_sizes (h, w) of each level."""

    points_px: np.ndarray
    strides_px: np.ndarray
    levels: np.ndarray
    map_sizes: list[tuple[int, int]]


class Candidates(NamedTuple):
    """Pairs of location and class, (D,) each."""

    locations: np.ndarray
    classes: np.ndarray
    scores: np.ndarray

    def select(self, index: np.ndarray) -> Candidates:
        return Candidates(self.locations[index], self.classes[index], self.scores[index])


class Found(NamedTuple):
    """Detections in pixels of the network's input, best first; boxes_px (D, 4) are clipped to the image."""

    boxes_px: np.ndarray
    candidates: Candidates


def find_locations(maps: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> Locations:
    """The cells of the levels that the settings name."""
    points, strides, levels, sizes = [], [], [], []
    for number, (level, stride) in enumerate(zip(settings["levels"], settings["strides"], strict=True)):
        height, width = take(maps, f"cls_logits_{level}").shape[2:]
        y, x = np.mgrid[:height, :width].astype(np.float32)
        points.append((np.stack((x, y), axis=-1).reshape(-1, 2) + np.float32(0.5)) * np.float32(stride))
        strides.append(np.full(height * width, stride, np.float32))
        levels.append(np.full(height * width, number))
        sizes.append((height, width))
    return Locations(np.concatenate(points), np.concatenate(strides), np.concatenate(levels), sizes)


def take(maps: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """A map by its name.

    Raises:
        CheckpointError: the graph does not give it.
    """
    if name not in maps:
        raise CheckpointError(f"the model has no output {name!r}; it gives {', '.join(maps)}", "export it again")
    return maps[name]


def flatten_levels(maps: Mapping[str, np.ndarray], name: str, levels: Sequence[str]) -> np.ndarray:
    """(1, C, h, w) of every level, "<name>_<level>" -> (R, C)."""
    flat = [take(maps, f"{name}_{level}")[0] for level in levels]
    return np.concatenate([values.reshape(len(values), -1).T for values in flat]).astype(np.float32, copy=False)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) in float32, without an overflow."""
    with np.errstate(over="ignore"):
        return (1 / (1 + np.exp(-logits.astype(np.float32, copy=False)))).astype(np.float32, copy=False)


def exp_size(log_sizes: np.ndarray) -> np.ndarray:
    """Sizes in pixels from their logarithms, clamped."""
    return np.exp(np.minimum(log_sizes, MAX_LOG_SIZE))


def usable_locations(points_px: np.ndarray, input_size: tuple[int, int], outputs: Sequence[np.ndarray]) -> np.ndarray:
    """(R,) whether a location lies in the image, not in its padding, and none of the (R, C) outputs is NaN there."""
    is_usable: np.ndarray = np.all(points_px < np.array(input_size[::-1], np.float32), axis=1)
    for output in outputs:
        is_usable &= ~np.isnan(output).any(axis=1)
    return is_usable


def select_candidates(
    cls_scores: np.ndarray,
    centerness: np.ndarray,
    is_usable: np.ndarray,
    level_sizes: Sequence[int],
    settings: Mapping[str, Any],
) -> Candidates:
    """The pairs that go into NMS, see `segzoo.modeling.fcos.decode.select_candidates`.

    Args:
        cls_scores: (R, K) probabilities.
        centerness: (R,) probabilities.
        is_usable: (R,).
        level_sizes: number of locations of each level.
        settings: "score_threshold", "pre_nms_topk" and perhaps "centerness_bias".
    """
    cls_scores = np.where(is_usable[:, None], cls_scores, np.float32(-1))
    centerness = np.where(is_usable, centerness, np.float32(0))
    ranking = np.where(is_usable, (cls_scores * centerness[:, None]).max(axis=1), np.float32(-1))
    kept, start = [], 0
    for size in level_sizes:
        best = np.argsort(-ranking[start : start + size], kind="stable")[: settings["pre_nms_topk"]]
        kept.append(best + start)
        start += size
    locations = np.concatenate(kept)
    row, classes = np.nonzero(cls_scores[locations] > np.float32(settings["score_threshold"]))
    locations = locations[row]
    bias = np.float32(settings.get("centerness_bias", 0.0))
    return Candidates(locations, classes, cls_scores[locations, classes] * (centerness[locations] + bias))


def detect_boxes(
    maps: Mapping[str, np.ndarray], settings: Mapping[str, Any], input_size: tuple[int, int]
) -> tuple[Found, Locations]:
    """All of FCOS's way from the raw maps of one image to its detections.

    Args:
        maps: "cls_logits_<level>", "box_logits_<level>", "centerness_logits_<level>".
        settings: see `segzoo.export.plan.detector_settings`.
        input_size: (height, width) px without padding.
    """
    locations = find_locations(maps, settings)
    cls_scores, centerness, log_sizes = (
        flatten_levels(maps, name, settings["levels"]) for name in ("cls_logits", "centerness_logits", "box_logits")
    )
    cls_scores, centerness = sigmoid(cls_scores), sigmoid(centerness)
    is_usable = usable_locations(locations.points_px, input_size, (cls_scores, centerness, log_sizes))
    level_sizes = [height * width for height, width in locations.map_sizes]
    candidates = select_candidates(cls_scores, centerness[:, 0], is_usable, level_sizes, settings)
    points = locations.points_px[candidates.locations]
    boxes = clip_boxes(distances_to_boxes(points, exp_size(log_sizes[candidates.locations])), input_size)
    keep = suppress(boxes, candidates, settings)
    return Found(boxes[keep], candidates.select(keep)), locations


def distances_to_boxes(points_px: np.ndarray, distances_px: np.ndarray) -> np.ndarray:
    """(D, 2) points and (D, 4) l, t, r, b -> (D, 4) xyxy."""
    return np.concatenate((points_px - distances_px[:, :2], points_px + distances_px[:, 2:]), axis=1)


def clip_boxes(boxes: np.ndarray, size: tuple[float, float]) -> np.ndarray:
    """xyxy boxes clipped to [0, width] x [0, height]."""
    limit = np.array([size[1], size[0]] * 2, np.float32)
    return np.clip(boxes, 0, limit)


def output_scale(input_size: tuple[int, int], output_size: tuple[int, int]) -> np.ndarray:
    """(2,) float32 factors of x and y from network input pixels to the output's."""
    return np.array([output_size[1] / input_size[1], output_size[0] / input_size[0]], np.float32)


def suppress(boxes: np.ndarray, candidates: Candidates, settings: Mapping[str, Any]) -> np.ndarray:
    """Indices of the best "max_detections" survivors of class-wise NMS, best first; boxes without area are left out."""
    has_area = np.flatnonzero((boxes[:, 2:] > boxes[:, :2]).all(axis=1))
    own, classes = boxes[has_area], candidates.classes[has_area]
    if 0 < len(own) <= MAX_MOVED_BOXES:
        # As torchvision does it: boxes are rounded where they are moved to, which decides on overlaps near the limit.
        own = own + classes.astype(np.float32)[:, None] * (own.max() + np.float32(1))
    keep = nms(own, candidates.scores[has_area], classes, settings["nms_threshold"])
    return has_area[keep[: settings["max_detections"]]]


def nms(boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, threshold: float) -> np.ndarray:
    """Indices of boxes (D, 4) that no better one of their class overlaps by an IoU above the threshold, best first."""
    order = np.argsort(-scores, kind="stable")
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    is_kept = np.zeros(len(boxes), bool)
    for index in np.unique(classes):
        rest = order[classes[order] == index]
        while len(rest):
            best, rest = rest[0], rest[1:]
            is_kept[best] = True
            low = np.maximum(boxes[best, :2], boxes[rest, :2])
            sides = np.maximum(np.minimum(boxes[best, 2:], boxes[rest, 2:]) - low, 0)
            overlap = sides[:, 0] * sides[:, 1]
            with np.errstate(invalid="ignore"):
                iou = overlap / (areas[best] + areas[rest] - overlap)
            # In double precision, as torchvision's threshold is.
            rest = rest[~(iou > np.float64(threshold))]
    return order[is_kept[order]]
