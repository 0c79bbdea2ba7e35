"""Masks as a local shape times a global saliency (CenterMask on CenterNet and on FCOS).

The counterpart of centermask/decode.py and centermask/assembly.py. Shapes wait for their places: the 3 x 3
neighbourhoods of the cells where something was found go through the second graph, which knows the shapes' weights.

Shape shorthand: K classes, C channels of a feature, Cs of the saliency, D detections, S side of a shape, h, w size of a
map.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from segzoo.export.runtime import boxes as fcos
from segzoo.export.runtime.detections import Detections, finish
from segzoo.export.runtime.images import Prepared
from segzoo.export.runtime.tiles import box_ranges, masks_in_boxes, resample, steps_px

# Image pixels between neighbouring cells of CenterNet's maps and of the saliency.
MAP_STRIDE = 4
# A box without width or height, as pixels of the output.
MIN_SIDE = np.float32(1e-4)
ObjectGraph = Callable[..., np.ndarray]


def decode_centers(
    maps: Mapping[str, np.ndarray], settings: Mapping[str, Any], image: Prepared, objects: ObjectGraph | None
) -> Detections:
    """Detections of CenterMask on CenterNet.

    Args:
        maps: (1, C, h, w) "heatmap", "offset", "size" and, if it has them, "saliency" and "feature".
        settings: "score_threshold", "max_detections", "mask_threshold".
        image: what the maps were made of.
        objects: the second graph: (D, 9 C) neighbourhoods -> (D, S, S) logits; None = no shapes.
    """
    scores, classes, cells = find_peaks(_peak_scores(fcos.take(maps, "heatmap")[0], image), settings["max_detections"])
    offsets, sizes = (fcos.take(maps, name)[0][:, cells[:, 1], cells[:, 0]].T for name in ("offset", "size"))
    centers = cells.astype(np.float32) + offsets
    boxes = np.concatenate((centers - sizes / 2, centers + sizes / 2), axis=1) * np.float32(MAP_STRIDE)
    inside = fcos.clip_boxes(boxes, image.input_size)
    keep = (scores > np.float32(settings["score_threshold"])) & np.isfinite(boxes).all(axis=1)
    keep &= (inside[:, 2:] > inside[:, :2]).all(axis=1)
    boxes, scores, classes, cells = boxes[keep], scores[keep], classes[keep], cells[keep]
    shapes = None
    if objects is not None and len(cells):
        shapes = objects(gather_neighborhoods(fcos.take(maps, "feature")[0], cells))
    saliency = fcos.take(maps, "saliency")[0] if settings["has_saliency"] else None
    masks = assemble_masks(shapes, saliency, boxes, classes, image, settings["mask_threshold"])
    boxes = boxes * np.tile(fcos.output_scale(image.input_size, image.output_size), 2)
    return finish(boxes, scores, classes, masks, image.output_size)


def decode_fcos(
    maps: Mapping[str, np.ndarray], settings: Mapping[str, Any], image: Prepared, objects: ObjectGraph | None
) -> Detections:
    """Detections of CenterMask-FCOS; as `decode_centers` with FCOS's maps and "box_features_<level>"."""
    found, locations = fcos.detect_boxes(maps, settings, image.input_size)
    candidates, shapes = found.candidates, None
    if objects is not None and len(found.boxes_px):
        index = candidates.locations
        cells = (locations.points_px[index] / locations.strides_px[index, None]).astype(np.int64)
        levels = locations.levels[index]
        features = [fcos.take(maps, f"box_features_{name}")[0] for name in settings["levels"]]
        neighborhoods = np.zeros((len(cells), 9 * len(features[0])), np.float32)
        for level, feature in enumerate(features):
            own = np.flatnonzero(levels == level)
            neighborhoods[own] = gather_neighborhoods(feature, cells[own])
        shapes = objects(neighborhoods)
    saliency = fcos.take(maps, "saliency")[0] if settings["has_saliency"] else None
    masks = assemble_masks(shapes, saliency, found.boxes_px, candidates.classes, image, settings["mask_threshold"])
    boxes = found.boxes_px * np.tile(fcos.output_scale(image.input_size, image.output_size), 2)
    return finish(boxes, candidates.scores, candidates.classes, masks, image.output_size)


def _peak_scores(heatmap: np.ndarray, image: Prepared) -> np.ndarray:
    """(K, h, w) probabilities, 0 in the padding and where a logit is NaN."""
    scores = np.nan_to_num(fcos.sigmoid(heatmap), nan=0.0)
    rows, columns = (-(-side // MAP_STRIDE) for side in image.input_size)
    scores[:, rows:] = 0
    scores[:, :, columns:] = 0
    return scores


def find_peaks(scores: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The `count` best cells that are the largest of their 3 x 3 neighbours; of each class as many at most.

    Args:
        scores: (K, h, w).

    Returns:
        scores, classes (D,), cells (D, 2) column and row, best first.
    """
    _, height, width = scores.shape
    padded = np.pad(scores, ((0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    largest = np.max([padded[:, y : y + height, x : x + width] for y in range(3) for x in range(3)], axis=0)
    peaks = np.where(scores == largest, scores, np.float32(0)).reshape(len(scores), -1)
    places = np.argsort(-peaks, axis=1, kind="stable")[:, :count]
    values = np.take_along_axis(peaks, places, axis=1)
    best = np.argsort(-values.reshape(-1), kind="stable")[:count]
    cells = places.reshape(-1)[best]
    return values.reshape(-1)[best], best // values.shape[1], np.stack((cells % width, cells // width), axis=1)


def gather_neighborhoods(feature: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """(D, 9 C) the 3 x 3 cells around each of (D, 2) cells of a (C, h, w) feature, row by row, zeros beyond the map."""
    padded = np.pad(feature, ((0, 0), (1, 1), (1, 1)))
    steps = np.arange(3)
    rows, columns = cells[:, 1, None, None] + steps[:, None], cells[:, 0, None, None] + steps
    return (
        padded[:, rows, columns]
        .transpose(1, 2, 3, 0)
        .reshape(len(cells), 9 * len(feature))
        .astype(np.float32, copy=False)
    )


def assemble_masks(
    shapes: np.ndarray | None,
    saliency: np.ndarray | None,
    boxes_px: np.ndarray,
    classes: np.ndarray,
    image: Prepared,
    threshold: float,
) -> list[dict]:
    """The pixels of a box whose product of shape and saliency reaches the threshold, as run lengths.

    Args:
        shapes: (D, S, S) logits, or None.
        saliency: (Cs, h, w) logits at stride 4, or None.
        boxes_px: (D, 4) xyxy in pixels of the network's input.
        classes: (D,).
        image: sizes of the input and the output.
        threshold: of the probability.
    """
    step = steps_px(image.input_size, image.output_size)
    boxes = boxes_px / np.tile(step, 2)

    def is_inside(number: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        probability = np.ones((1, 1), np.float32)
        if shapes is not None:
            side, box = shapes.shape[-1], boxes[number]
            places = [
                (pixels - box[axis]) * (np.float32(side) / np.maximum(box[axis + 2] - box[axis], MIN_SIDE))
                for axis, pixels in enumerate((x, y))
            ]
            probability = probability * fcos.sigmoid(resample(shapes[number], *places))
        if saliency is not None:
            plane = saliency[classes[number] if len(saliency) > 1 else 0]
            places = [pixels * (step[axis] / np.float32(MAP_STRIDE)) for axis, pixels in enumerate((x, y))]
            probability = probability * fcos.sigmoid(resample(plane, *places))
        is_large: np.ndarray = probability >= np.float32(threshold)
        return is_large

    return masks_in_boxes(box_ranges(boxes, image.output_size), image.output_size, is_inside)
