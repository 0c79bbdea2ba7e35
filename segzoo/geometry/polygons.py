"""COCO polygons and run lengths to compressed RLE, by pycocotools' own rasteriser.

Shape shorthand:
    D: detections, n: points of a polygon, H, W: size of the image in pixels.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from segzoo.errors import DatasetError
from segzoo.geometry.edges import encode_columns, run_lengths

# pycocotools walks a polygon's outline pixel by pixel, also where it is far outside of the image.
FARTHEST_SIZES_OUTSIDE = 8


def polygons_to_rles(polygons: Any, height: int, width: int) -> list[dict]:
    """One filled polygon a detection as compressed RLE, by the rule COCO's ground truth is drawn with.

    Args:
        polygons: (D, n, 2) array or tensor of points (x, y) in continuous image coordinates, closed implicitly.
        height, width: size of the masks; what lies outside is cut off.

    Returns:
        D dicts {"size": [H, W], "counts": bytes}; no full-size mask is made. A polygon of fewer than three points,
        or with a point that is not finite, gives an empty mask.
    """
    # A tensor, without asking torch for its type.
    if hasattr(polygons, "detach"):
        polygons = polygons.detach().cpu().numpy()
    points = np.ascontiguousarray(polygons, dtype=np.float64)
    if points.ndim != 3 or points.shape[2] != 2:
        raise ValueError(f"polygons must have the shape (D, n, 2), got {points.shape}")
    if len(points) == 0:
        return []
    if points.shape[1] < 3:
        return [empty_rle(height, width) for _ in points]
    is_drawable: np.ndarray = np.all(np.isfinite(points), axis=(1, 2))
    reach = FARTHEST_SIZES_OUTSIDE * max(height, width)
    points = np.clip(np.where(is_drawable[:, None, None], points, 0.0), -reach, reach)
    rles = coco_mask.frPyObjects(list(points.reshape(len(points), -1)), height, width)
    for position in np.flatnonzero(~is_drawable):
        rles[position] = empty_rle(height, width)
    return rles


def truncated_rles(contours_px: np.ndarray, image_size: tuple[int, int]) -> list[dict]:
    """Masks as PolarMask's authors draw them: points truncated to whole pixels, interior and outline set.

    Args:
        contours_px: (D, n, 2) x and y.
        image_size: (H, W) of the masks; what lies outside is cut off.

    Returns:
        D compressed RLEs; only the columns that a contour spans are ever held as pixels.
    """
    height, width = image_size
    # Truncation is towards zero, as of an integer cast; the limits keep cv2's coordinates in its range.
    points = np.clip(np.nan_to_num(contours_px), -height - width, 2 * (height + width)).astype(np.int32)
    rles = []
    for contour in points:
        left, right = np.clip((contour[:, 0].min(), contour[:, 0].max() + 1), 0, width).tolist()
        columns = np.zeros((height, right - left), dtype=np.uint8)
        if right > left:
            cv2.drawContours(columns, [contour[:, None] - np.array((left, 0), np.int32)], -1, 1, cv2.FILLED)
        rles.append(encode_columns(columns, left, image_size))
    return rles


def empty_rle(height: int, width: int) -> dict:
    """Compressed RLE of a mask without a pixel."""
    return coco_mask.frPyObjects({"size": [height, width], "counts": [height * width]}, height, width)


def segmentation_to_rle(segmentation: Any, height: int, width: int) -> dict:
    """A json "segmentation" as compressed RLE, bit for bit pycocotools' mask.

    Args:
        segmentation: list of polygons [x0, y0, x1, y1, ...], or {"size", "counts"} with a list of lengths
            (uncompressed) or COCO's text (compressed, str or bytes).
        height, width: size of the annotated image.

    Raises:
        DatasetError: the segmentation is malformed; the message says how, the caller adds file and ids.
    """
    if isinstance(segmentation, dict):
        return _rle_from_dict(segmentation, height, width)
    if not isinstance(segmentation, (list, tuple)) or not segmentation:
        raise DatasetError(f"a segmentation must be polygons or an RLE, got {_short(segmentation)}", _REMEDY)
    if not isinstance(segmentation[0], (list, tuple, np.ndarray)):
        raise DatasetError(f"a polygon outside of a list of polygons: {_short(segmentation)}", _REMEDY)
    polygons = [_checked_polygon(polygon) for polygon in segmentation]
    parts = coco_mask.frPyObjects(polygons, height, width)
    return coco_mask.merge(parts)


_REMEDY = "correct the annotation, or remove it; the COCO format page describes valid ones"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _checked_polygon(polygon: Any) -> np.ndarray:
    try:
        numbers = np.asarray(polygon, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DatasetError(f"a polygon that is not a list of numbers: {_short(polygon)}", _REMEDY) from error
    if numbers.ndim != 1 or len(numbers) % 2:
        raise DatasetError(f"a polygon with {numbers.size} numbers, not x and y of each point", _REMEDY)
    if len(numbers) < 6:
        # pycocotools would read four numbers as a box.
        raise DatasetError(f"a polygon with {len(numbers) // 2} points, fewer than 3", _REMEDY)
    if not np.isfinite(numbers).all():
        raise DatasetError("a polygon with NaN or infinite coordinates", _REMEDY)
    return numbers


def _rle_from_dict(segmentation: dict, height: int, width: int) -> dict:
    counts, size = segmentation.get("counts"), segmentation.get("size")
    if not isinstance(size, (list, tuple)) or [int(side) for side in size] != [height, width]:
        raise DatasetError(f"an RLE of size {_short(size)} for an image of (height, width) {[height, width]}", _REMEDY)
    if isinstance(counts, (list, tuple, np.ndarray)):
        lengths = np.asarray(counts)
        if lengths.ndim != 1 or (lengths.size and (lengths.dtype.kind not in "iu" or lengths.min() < 0)):
            raise DatasetError(f"an RLE whose counts are not whole numbers >= 0: {_short(counts)}", _REMEDY)
        _check_total(int(lengths.sum()), height, width)
        return coco_mask.frPyObjects({"size": [height, width], "counts": lengths.tolist()}, height, width)
    if isinstance(counts, (str, bytes)):
        try:
            compressed = counts.encode("ascii") if isinstance(counts, str) else counts
        except UnicodeEncodeError as error:
            raise DatasetError(f"an RLE whose text is not COCO's: {_short(counts)}", _REMEDY) from error
        rle = {"size": [height, width], "counts": compressed}
        lengths = run_lengths(rle)
        if lengths.size and lengths.min() < 0:
            raise DatasetError(f"an RLE whose text is not COCO's: {_short(counts)}", _REMEDY)
        _check_total(int(lengths.sum()), height, width)
        return rle
    raise DatasetError(f"an RLE without counts: {_short(segmentation)}", _REMEDY)


def _check_total(total: int, height: int, width: int) -> None:
    if total != height * width:
        raise DatasetError(f"an RLE of {total} pixels for an image of {height} x {width}", _REMEDY)
