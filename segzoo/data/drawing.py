"""From annotations to the masks, boxes and classes of the augmented image.

Shape shorthand:
    M: instances, H, W: size of the augmented image in pixels; h, w: of a mask's box.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances
from fvcore.transforms.transform import TransformList
from pycocotools import mask as coco_mask

from segzoo.data.transforms import FlipTransform, WindowTransform, mask_sources
from segzoo.data.warps import WarpTransform
from segzoo.errors import DatasetError
from segzoo.geometry.polygons import segmentation_to_rle
from segzoo.geometry.rle import run_lengths


class Patch(NamedTuple):
    """A mask without its surroundings: `pixels` (h, w) bool, the first of them in column `left`, row `top`."""

    left: int
    top: int
    pixels: np.ndarray

    @property
    def box(self) -> tuple[int, int, int, int]:
        """xyxy px, ending one past the last pixel."""
        height, width = self.pixels.shape
        return self.left, self.top, self.left + width, self.top + height


_NOTHING = Patch(0, 0, np.zeros((0, 0), dtype=bool))


def draw_instances(
    annotations: list[dict],
    transforms: TransformList,
    dataset_dict: dict[str, Any],
    image_size: tuple[int, int],
    *,
    keeps_boxes: bool = False,
) -> tuple[Instances, int]:
    """Draws annotations into the augmented image.

    Polygons are transformed as polygons and drawn once, at the final size, exactly as pycocotools draws them; run
    lengths are transformed pixel by pixel, by the resize's own rule. Neither reaches beyond what is left of the image.

    Args:
        annotations: M of them, with "segmentation" and "category_id".
        transforms: from the original to the augmented image.
        dataset_dict: for "height" and "width" of the original image, and the names in errors.
        image_size: (H, W) of the augmented image.
        keeps_boxes: whether boxes are the annotations' (see `resized_box`), where they have one, not the masks'.

    Returns:
        Instances with gt_boxes (M', 4), gt_classes (M',) int64 and gt_masks (M', H, W) bool, without those that have
        no pixel left; the number of these.

    Raises:
        DatasetError: a segmentation is malformed; names the file, the image and the annotation.
    """
    sources = mask_sources(transforms.transforms, dataset_dict["height"], dataset_dict["width"])
    masks = np.zeros((len(annotations), *image_size), dtype=bool)
    boxes: list[Any] = []
    classes = []
    for annotation in annotations:
        if isinstance(annotation["segmentation"], dict):
            patch = _resampled_patch(original_rle(annotation, dataset_dict), *sources)
        else:
            with _naming(annotation, dataset_dict):
                patch = _drawn_patch(annotation["segmentation"], transforms, image_size, *sources)
        if not patch.pixels.size:
            continue
        left, top, right, bottom = patch.box
        masks[len(boxes), top:bottom, left:right] = patch.pixels
        has_box = keeps_boxes and annotation.get("bbox") is not None
        boxes.append(resized_box(annotation, transforms, image_size) if has_box else patch.box)
        classes.append(annotation["category_id"])
    instances = Instances(image_size)
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
    instances.gt_masks = BitMasks(torch.from_numpy(masks[: len(boxes)]))
    return instances, len(annotations) - len(boxes)


def resized_box(
    annotation: dict[str, Any], transforms: TransformList, image_size: tuple[int, int]
) -> tuple[float, float, float, float]:
    """xyxy px of an annotation's box in the augmented image, moved by its first and its last pixel.

    A box x .. x + w - 1 becomes s x .. s (x + w - 1), clipped to the image's first and last pixel, also to those of
    every crop and of the image's place on a canvas, and ends one pixel later in the continuous coordinates that are
    given back.

    Args:
        annotation: with "bbox" and "bbox_mode".
        transforms: from the original to the augmented image.
        image_size: (H, W) of the augmented image.
    """
    box = np.array([_annotated_box(annotation)], dtype=np.float64)
    box[:, 2:] = np.maximum(box[:, 2:] - 1, box[:, :2])
    for transform in transforms.transforms:
        # Mirrored, the first pixel's near side is the last one's far side.
        is_flip = isinstance(transform, FlipTransform)
        box[:, 2:] += is_flip
        box = transform.apply_box(box)
        box[:, 2:] -= is_flip
        if isinstance(transform, WindowTransform | WarpTransform):
            x0, y0, x1, y1 = transform.content
            box = np.clip(box, [x0, y0, x0, y0], np.array([x1, y1, x1, y1]) - 1)
    last = np.array([image_size[1], image_size[0]] * 2) - 1
    x0, y0, x1, y1 = np.clip(box[0], 0, last).tolist()
    return x0, y0, x1 + 1, y1 + 1


def original_boxes(dataset_dict: dict[str, Any]) -> np.ndarray:
    """(M, 4) xyxy px: the boxes of an image's annotations but crowds; one that has none gets its mask's.

    Raises:
        DatasetError: a segmentation that had to be drawn is malformed.
    """
    boxes = []
    for annotation in dataset_dict.get("annotations", []):
        if annotation.get("iscrowd", 0):
            continue
        has_box = annotation.get("bbox") is not None
        boxes.append(_annotated_box(annotation) if has_box else _patch_of(original_rle(annotation, dataset_dict)).box)
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)


def _annotated_box(annotation: dict[str, Any]) -> list[float]:
    mode = annotation.get("bbox_mode", BoxMode.XYXY_ABS)
    return BoxMode.convert(list(annotation["bbox"]), mode, BoxMode.XYXY_ABS)


def original_rle(annotation: dict[str, Any], dataset_dict: dict[str, Any]) -> dict:
    """The mask of an annotation at the size of the original image as compressed RLE, by pycocotools' rule.

    Raises:
        DatasetError: its segmentation is malformed; names the file, the image and the annotation.
    """
    with _naming(annotation, dataset_dict):
        return segmentation_to_rle(annotation["segmentation"], dataset_dict["height"], dataset_dict["width"])


@contextmanager
def _naming(annotation: dict[str, Any], dataset_dict: dict[str, Any]) -> Iterator[None]:
    try:
        yield
    except DatasetError as error:
        where = f"{dataset_dict['file_name']}: image id {dataset_dict['image_id']}"
        what = f"{where}: annotation id {annotation.get('id')}: {error.message}"
        raise DatasetError(what, error.remedy) from error


def _drawn_patch(
    polygons: list, transforms: TransformList, image_size: tuple[int, int], rows: np.ndarray, columns: np.ndarray
) -> Patch:
    """The patch of moved polygons, within the rows and columns that show the image (see mask_sources)."""
    lengths = [len(polygon) for polygon in polygons]
    points = np.concatenate([np.asarray(polygon, dtype=np.float64) for polygon in polygons]).reshape(-1, 2)
    points = transforms.apply_coords(points)
    if not any(isinstance(transform, WindowTransform | WarpTransform) for transform in transforms.transforms):
        return _patch_of(segmentation_to_rle(_parts(points, lengths), *image_size))
    # pycocotools rounds negative coordinates towards zero, which would bend an outline that comes in from the left or
    # from above: it is drawn further right and down, and the part in the image is cut out.
    margin = np.maximum(np.ceil(-np.nan_to_num(points).min(axis=0)), 0).astype(int)
    right, bottom = margin + [image_size[1], image_size[0]]
    drawn = segmentation_to_rle(_parts(points + margin, lengths), int(bottom), int(right))
    return _cut_patch(drawn, margin, np.flatnonzero(rows >= 0), np.flatnonzero(columns >= 0))


def _parts(points: np.ndarray, lengths: list[int]) -> list[np.ndarray]:
    return np.split(points.reshape(-1), np.cumsum(lengths)[:-1])


def _cut_patch(rle: dict, corner: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> Patch:
    """The patch of an RLE in an image whose corner lies at `corner` (x, y) of it, within runs of rows and columns."""
    if not (coco_mask.area(rle) and rows.size and columns.size):
        return _NOTHING
    x0, y0, width, height = coco_mask.toBbox(rle).astype(int).tolist()
    left, top = max(x0 - corner[0], columns[0]), max(y0 - corner[1], rows[0])
    right, bottom = min(x0 + width - corner[0], columns[-1] + 1), min(y0 + height - corner[1], rows[-1] + 1)
    if left >= right or top >= bottom:
        return _NOTHING
    pixels = _decode_columns(rle, left + corner[0], right + corner[0])[top + corner[1] : bottom + corner[1]]
    return _trimmed(Patch(left, top, pixels))


def _patch_of(rle: dict) -> Patch:
    if not coco_mask.area(rle):
        # pycocotools gives an empty mask some box or other.
        return _NOTHING
    left, top, width, height = coco_mask.toBbox(rle).astype(int).tolist()
    return Patch(left, top, _decode_columns(rle, left, left + width)[top : top + height])


def _trimmed(patch: Patch) -> Patch:
    """The patch without rows and columns at its border that hold no pixel of the mask."""
    has_row, has_column = (np.flatnonzero(patch.pixels.any(axis=axis)) for axis in (1, 0))
    if not has_row.size:
        return _NOTHING
    pixels = patch.pixels[has_row[0] : has_row[-1] + 1, has_column[0] : has_column[-1] + 1]
    return Patch(int(patch.left + has_column[0]), int(patch.top + has_row[0]), pixels)


def _decode_columns(rle: dict, x_min: int, x_end: int) -> np.ndarray:
    """(H, x_end - x_min) bool: some columns of an RLE. Decoding whole masks would be the dearest step of a sample."""
    height = rle["size"][0]
    lengths = run_lengths(rle)
    ends = np.clip(np.cumsum(lengths), x_min * height, x_end * height)
    is_object = np.arange(len(lengths)) % 2 == 1
    return np.repeat(is_object, np.diff(ends, prepend=x_min * height)).reshape(-1, height).T


def _resampled_patch(rle: dict, rows: np.ndarray, columns: np.ndarray) -> Patch:
    """The patch of the mask whose pixel (i, j) is pixel (rows[i], columns[j]) of an RLE (see mask_sources)."""
    old = _patch_of(rle)
    left, top, right, bottom = old.box
    # Both are runs of neighbours, because rows and columns never turn back.
    new_rows = np.flatnonzero((rows >= top) & (rows < bottom))
    new_columns = np.flatnonzero((columns >= left) & (columns < right))
    # Columns first: they are contiguous in what _decode_columns gives.
    pixels = old.pixels.T[columns[new_columns] - left][:, rows[new_rows] - top].T
    if not pixels.size:
        return _NOTHING
    # A resize that shrinks, or a crop, may have passed over the outermost pixels.
    return _trimmed(Patch(int(new_columns[0]), int(new_rows[0]), pixels))
