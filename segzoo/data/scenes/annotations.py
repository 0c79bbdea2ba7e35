"""COCO annotations of a generated scene, equal to what is drawn to the pixel."""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as mask_api

from segzoo.data.scenes.layout import Layout, count_holes, count_parts


def outline_polygon(mask: np.ndarray) -> list[float] | None:
    """The outline of a mask along its pixels' borders.

    Args:
        mask: (h, w) bool.

    Returns:
        [x0, y0, x1, y1, ...] at whole pixels, or None when no single polygon describes the mask (several parts,
        holes, or pixels that touch at a corner only).
    """
    padded = np.pad(mask, 1).astype(np.int8)
    quads = padded[:-1, :-1] + padded[:-1, 1:] + padded[1:, :-1] + padded[1:, 1:]
    if np.any((quads == 2) & (padded[:-1, :-1] == padded[1:, 1:])):
        return None
    # The outline turns where an odd number of the four pixels around a corner is inside. Sorted along a line, such
    # corners are the ends of its segments two by two, so a partner in the row and one in the column give the walk.
    rows, cols = np.nonzero(quads % 2)
    if len(rows) == 0:
        return None
    by_column = np.lexsort((rows, cols))
    in_row = (np.arange(len(rows)) ^ 1).tolist()
    in_column = np.empty(len(rows), dtype=np.int64)
    in_column[by_column] = by_column[np.arange(len(rows)) ^ 1]
    partners = (in_row, in_column.tolist())
    walk: list[int] = []
    corner = 0
    while not walk or corner != 0:
        walk.append(corner)
        corner = partners[(len(walk) - 1) % 2][corner]
    if len(walk) != len(rows):
        return None
    points: list[float] = np.stack([cols[walk], rows[walk]], axis=1).astype(float).ravel().tolist()
    return points


def encode_segmentation(mask: np.ndarray) -> list[list[float]] | dict[str, Any]:
    """A (H, W) bool mask as COCO segmentation: one polygon where it is exact, else compressed RLE (counts str)."""
    height, width = mask.shape
    rle = mask_api.encode(np.asfortranarray(mask, dtype=np.uint8))
    polygon = outline_polygon(mask)
    # The outline is exact in every version of pycocotools tried; should one round otherwise, its RLE still is.
    if polygon is not None and mask_api.frPyObjects([polygon], height, width)[0]["counts"] == rle["counts"]:
        return [polygon]
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}


def annotate(layout: Layout) -> list[dict[str, Any]]:
    """COCO annotations of a layout's objects, without ids.

    Beyond COCO's own fields: full_area (pixels that nothing in front would leave), num_parts and num_holes of what
    is seen.
    """
    annotations = []
    for index in layout.object_indices():
        layer, mask = layout.layers[index], layout.visible_mask(index)
        seen = mask[layer.window]
        rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        top, left = int(rows[0]), int(cols[0])
        annotations.append(
            {
                "category_id": layer.category + 1,
                "segmentation": encode_segmentation(mask),
                "bbox": [left, top, int(cols[-1]) + 1 - left, int(rows[-1]) + 1 - top],
                "area": int(np.count_nonzero(mask)),
                "iscrowd": 0,
                "full_area": int(np.count_nonzero(layer.mask)),
                "num_parts": count_parts(seen),
                "num_holes": count_holes(seen),
            }
        )
    return annotations
