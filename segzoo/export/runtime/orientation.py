"""Masks of pixels that point at their box's centre (OrienMask): the counterpart of orienmask/decode.py.

Shape shorthand: R predictions of an image, A anchors of a level, K classes, D detections, h, w of the orientation maps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from segzoo.export.runtime import boxes as fcos
from segzoo.export.runtime.detections import Detections, finish
from segzoo.export.runtime.images import Prepared
from segzoo.export.runtime.tiles import MAX_PIXELS
from segzoo.geometry.edges import encode_edges

# Of the orientation maps, px.
MAP_STRIDE = 4
# Longer sides of boxes count as this long.
MAX_SIDE_PX = 16_384.0


def decode(maps: Mapping[str, np.ndarray], settings: Mapping[str, Any], image: Prepared) -> Detections:
    """Detections of one image.

    Args:
        maps: (1, A (5 + K), h, w) "boxes_<stride>" of every stride, and (1, 2 x anchors, h, w) "orientations".
        settings: "strides", "anchors_px" and the fields of orienmask's DecodeRule.
        image: what the maps were made of.
    """
    raw, anchors, cells, strides = _predictions(maps, settings)
    is_usable = (cells * strides[:, None] < np.array(image.input_size[::-1])).all(axis=1) & np.isfinite(raw).all(axis=1)
    scores = fcos.sigmoid(raw[:, 4:5]) * fcos.sigmoid(raw[:, 5:])
    scores = np.where(is_usable[:, None], scores, np.float32(-1)).reshape(-1)
    best = np.argsort(-scores, kind="stable")[: settings["pre_nms_topk"]]
    best = best[scores[best] > np.float32(settings["score_threshold"])]
    index, classes = np.divmod(best, raw.shape[1] - 5)
    sizes_px = np.array(settings["anchors_px"], np.float32)[anchors[index]]
    centers = (fcos.sigmoid(raw[index, :2]) + cells[index]) * strides[index, None]
    sides = np.minimum(fcos.exp_size(raw[index, 2:4]) * sizes_px, np.float32(MAX_SIDE_PX))
    is_grid = settings["base_position"] == "grid"
    bases = (cells[index] + np.float32(0.5)) * strides[index, None] if is_grid else centers
    corners = np.concatenate((centers - sides / 2, centers + sides / 2), axis=1)
    # Every class on an island of its own, in double precision, as in orienmask.decode.suppress.
    islands = corners.astype(np.float64) + classes[:, None] * (4 * MAX_SIDE_PX)
    keep = fcos.nms(islands, scores[best].astype(np.float64), classes, settings["nms_threshold"])
    keep = keep[: settings["max_detections"]]
    reach = sides[keep] * np.float32(settings["tau"] / 2)
    masks = pointing_masks(
        fcos.take(maps, "orientations")[0],
        np.array(settings["anchors_px"], np.float32),
        anchors[index[keep]],
        (bases[keep] - reach, bases[keep] + reach),
        image,
    )
    boxes = corners[keep] * np.tile(fcos.output_scale(image.input_size, image.output_size), 2)
    return finish(boxes, scores[best[keep]], classes[keep], masks, image.output_size)


def _predictions(
    maps: Mapping[str, np.ndarray], settings: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(R, 5 + K) raw values, (R,) anchors, (R, 2) column and row, (R,) strides: level, anchor, row, column."""
    rows, anchors, cells, strides = [], [], [], []
    per_level = len(settings["anchors_px"]) // len(settings["strides"])
    for level, stride in enumerate(settings["strides"]):
        values = fcos.take(maps, f"boxes_{stride}")[0]
        height, width = values.shape[1:]
        split = values.reshape(per_level, -1, height * width)
        rows.append(split.transpose(0, 2, 1).reshape(per_level * height * width, -1))
        anchors.append(np.repeat(np.arange(level * per_level, (level + 1) * per_level), height * width))
        y, x = np.mgrid[:height, :width].astype(np.float32)
        cells.append(np.tile(np.stack((x, y), axis=2).reshape(-1, 2), (per_level, 1)))
        strides.append(np.full(per_level * height * width, stride, np.float32))
    raw = np.concatenate(rows).astype(np.float32, copy=False)
    return raw, np.concatenate(anchors), np.concatenate(cells), np.concatenate(strides)


def pointing_masks(
    orientations: np.ndarray,
    anchors_px: np.ndarray,
    anchors: np.ndarray,
    limits: tuple[np.ndarray, np.ndarray],
    image: Prepared,
) -> list[dict]:
    """Run lengths of all pixels whose vector ends between the limits of a detection.

    Args:
        orientations: (2 x anchors, h, w).
        anchors_px: (anchors, 2) width and height.
        anchors: (D,) index of each detection's anchor.
        limits: (D, 2) least and largest x and y, exclusive.
        image: sizes of the input and the output.
    """
    height, width = image.output_size
    # Pixels lie at whole numbers in the network's input here, as the authors' weights need it.
    columns, rows = (
        (np.arange(count, dtype=np.float32) + np.float32(0.5)) * np.float32(inner / max(count, 1)) - np.float32(0.5)
        for count, inner in zip((width, height), image.input_size[::-1])
    )
    maps = orientations.reshape(-1, 2, *orientations.shape[1:]).astype(np.float32, copy=False)
    edges: list[list[np.ndarray]] = [[np.zeros(0, np.int64)] for _ in anchors]
    step = max(1, MAX_PIXELS // max(height, 1))
    for anchor in np.unique(anchors).tolist():
        # Transposed, as run lengths go down the columns.
        vectors = maps[anchor].transpose(0, 2, 1) * (anchors_px[anchor] / 2)[:, None, None]
        for left in range(0, width, step):
            ends = _end_points(vectors, rows, columns[left : left + step])
            for number in np.flatnonzero(anchors == anchor).tolist():
                low, high = limits[0][number], limits[1][number]
                is_inside = np.zeros(ends.shape[1] + 2, bool)
                between = (ends > low[:, None]) & (ends < high[:, None])
                np.logical_and(between[0], between[1], out=is_inside[1:-1])
                edges[number].append(np.flatnonzero(is_inside[1:] != is_inside[:-1]) + left * height)
    return [encode_edges(np.concatenate(parts), image.output_size) for parts in edges]


def _end_points(vectors: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """(2, columns * rows) x and y that pixels point to, column by column, from (2, w, h) vectors in pixels."""
    half = np.float32(0.5)
    moved = _interpolate(vectors, 2, (rows + half) / MAP_STRIDE - half)
    moved = _interpolate(moved, 1, (columns + half) / MAP_STRIDE - half)
    moved[0] += columns[:, None]
    moved[1] += rows
    return moved.reshape(2, -1)


def _interpolate(values: np.ndarray, axis: int, places: np.ndarray) -> np.ndarray:
    """Linear interpolation between cells at whole numbers along one axis; the border's value beyond them."""
    last = values.shape[axis] - 1
    places = np.clip(places, 0, last)
    lower = np.floor(places).astype(np.int64)
    shape = [1] * values.ndim
    shape[axis] = -1
    share = (places - lower.astype(np.float32)).reshape(shape)
    start, end = values.take(lower, axis=axis), values.take(np.minimum(lower + 1, last), axis=axis)
    return start + (end - start) * share
