"""Segmentations and boxes of a COCO json: what is kept, what is dropped, and why."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pycocotools import mask as coco_mask

from segzoo.errors import DatasetError
from segzoo.geometry.polygons import FARTHEST_SIZES_OUTSIDE, segmentation_to_rle

# Tools that put pixel centres at whole numbers write -0.5 for the image's border; that is no error.
LOWEST_COORDINATE = -0.5
# A box of the json further than this from its mask's, in pixels at any side, counts as disagreeing.
BOX_TOLERANCE_PX = 2.0
# Polygons less wide or high than this are rasterised while reading: they may hold no pixel centre at all.
_THIN_PX = 2.0

Segmentation = list[list[float]] | dict[str, Any]
Box = tuple[float, float, float, float]


def crowd_flag(value: Any) -> int:
    """A json's "iscrowd" as 0 or 1, the same for training and evaluation; None (not given) is 0."""
    if isinstance(value, str):
        # Python calls "0" true.
        return int(value.strip().lower() not in ("", "0", "0.0", "false"))
    return int(bool(value))


def written_area(value: Any) -> float | None:
    """A json's "area", px, or None if it is not given or not a number."""
    try:
        area = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    # A NaN differs from itself.
    return area if area == area else None


def polygon_fault(polygon: Any) -> str:
    """Why a polygon [x0, y0, x1, y1, ...] cannot be used, or "" if it can."""
    if not isinstance(polygon, list):
        return "polygon is not a list of numbers"
    if len(polygon) % 2:
        return "polygon with an odd number of coordinates"
    if len(polygon) < 6:
        return "polygon with fewer than 3 points"
    try:
        # The sum is finite only if every term is, unless terms overflow, which no pixel coordinate does.
        is_finite, lowest = math.isfinite(sum(polygon)), min(polygon)
    except TypeError:
        return "polygon is not a list of numbers"
    if not is_finite:
        return "polygon with NaN or infinite coordinates"
    return "polygon with negative coordinates" if lowest < LOWEST_COORDINATE else ""


def check_polygons(polygons: Sequence[Any], height: int, width: int) -> tuple[list[list[float]], Box | None, list[str]]:
    """Splits the parts of an object into usable polygons and faults.

    Args:
        polygons: the parts, each [x0, y0, x1, y1, ...] in pixels.
        height, width: size of the image.

    Returns:
        the usable parts; the box xyxy around them clipped to the image (None without one pixel of mask); the faults.
    """
    faults = [polygon_fault(polygon) for polygon in polygons]
    # pycocotools walks an outline pixel by pixel, also where it is far outside: 1e9 would take all memory.
    reach = FARTHEST_SIZES_OUTSIDE * max(height, width)
    usable = [_nearer(polygon, reach) for polygon, fault in zip(polygons, faults) if not fault]
    faults = [fault for fault in faults if fault]
    if not usable:
        return [], None, faults or ["no segmentation"]
    x_min = max(min(min(polygon[0::2]) for polygon in usable), 0.0)
    y_min = max(min(min(polygon[1::2]) for polygon in usable), 0.0)
    x_max = min(max(max(polygon[0::2]) for polygon in usable), float(width))
    y_max = min(max(max(polygon[1::2]) for polygon in usable), float(height))
    if x_max <= x_min or y_max <= y_min:
        is_empty = True
    elif min(x_max - x_min, y_max - y_min) < _THIN_PX:
        is_empty = not coco_mask.area(segmentation_to_rle(usable, height, width))
    else:
        is_empty = False
    if is_empty:
        return [], None, [*faults, "empty mask or outside of the image"]
    return usable, (x_min, y_min, x_max, y_max), faults


def _nearer(polygon: list[float], reach: float) -> list[float]:
    # Not copied in the usual case: COCO has 1.5 million polygons.
    return polygon if max(polygon) <= reach else [min(value, reach) for value in polygon]


def check_segmentation(segmentation: Any, height: int, width: int) -> tuple[Segmentation | None, Box | None, list[str]]:
    """Checks one "segmentation" of a json.

    Args:
        segmentation: polygons, an uncompressed or a compressed RLE, or anything else that a file may hold.
        height, width: size of the annotated image.

    Returns:
        what is usable of it (polygons or compressed RLE) or None; the box xyxy in pixels of that; the faults found,
        which may be there although a part is usable.
    """
    if isinstance(segmentation, (list, tuple)):
        polygons, box, faults = check_polygons(segmentation, height, width)
        return polygons or None, box, faults
    if not isinstance(segmentation, dict):
        return None, None, ["no segmentation"]
    try:
        rle = segmentation_to_rle(segmentation, height, width)
    except (DatasetError, TypeError, ValueError, OverflowError):
        return None, None, ["invalid RLE"]
    if not coco_mask.area(rle):
        return None, None, ["empty mask or outside of the image"]
    x_min, y_min, box_width, box_height = coco_mask.toBbox(rle).tolist()
    return rle, (x_min, y_min, x_min + box_width, y_min + box_height), []


def box_fault(bbox: Any, mask_box: Box) -> str:
    """What is wrong with a json's bbox [x, y, width, height] (pixels) given its mask's box xyxy, or ""."""
    if bbox is None:
        return "bbox missing"
    try:
        x, y, width, height = (float(value) for value in bbox)
    except (TypeError, ValueError):
        return "bbox is not four numbers"
    if not (width > 0 and height > 0):
        return "bbox of zero or negative size"
    # All, not max: NaN must disagree, and max() passes it over.
    agrees = all(abs(a - b) <= BOX_TOLERANCE_PX for a, b in zip((x, y, x + width, y + height), mask_box))
    return "" if agrees else "bbox disagrees with its mask"
