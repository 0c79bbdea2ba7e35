"""The annotations that predictions are measured against: the json file itself, made safe for the COCO engines."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

from pycocotools import mask as coco_mask

from segzoo.data.annotation_checks import check_segmentation, crowd_flag
from segzoo.data.coco_json import entry_size, load_json, lossless_int
from segzoo.data.tally import Tally
from segzoo.errors import DatasetError
from segzoo.geometry.polygons import segmentation_to_rle

logger = logging.getLogger(__name__)


@dataclass
class GroundTruth:
    """What is measured against.

    Attributes:
        images: {id: {"id", "height", "width"}}, ids as whole numbers.
        categories: {id: name}, ids as whole numbers, in the json's order.
        annotations: dicts of id, image_id, category_id, bbox (xywh px), area (px), iscrowd and, when the json has
            masks, segmentation (compressed RLE).
        has_masks: whether the json has segmentations.
        image_ids, category_ids: {whole number: the json's own spelling}, for result files.
        annotation_ids: {id of `annotations`: the json's own}, for messages.
        notes: what was repaired or dropped, by reason, with the first annotation ids.
    """

    images: dict[int, dict] = field(default_factory=dict)
    categories: dict[int, str] = field(default_factory=dict)
    annotations: list[dict] = field(default_factory=list)
    has_masks: bool = False
    image_ids: dict[int, Any] = field(default_factory=dict)
    category_ids: dict[int, Any] = field(default_factory=dict)
    annotation_ids: dict[int, Any] = field(default_factory=dict)
    notes: Tally = field(default_factory=Tally)


def load_ground_truth(json_file: str, image_root: str = "") -> GroundTruth:
    """Reads a COCO json for evaluation.

    Args:
        json_file: the annotation file.
        image_root: folder of the images, read only for the sizes that the json does not give.

    A valid file is taken as it is, so that AP is that of pycocotools on the file. What would stop or silently mislead
    the engines is repaired and counted in one warning: a missing iscrowd is 0, a missing area or bbox is the mask's,
    annotations are numbered from 1 (an id of 0 means "unmatched" to the engines); annotations of absent images,
    unknown categories or without a usable mask are dropped.

    Raises:
        DatasetError: the file is missing or not json, or an image or category cannot be read.
    """
    return ground_truth_of(load_json(json_file), json_file, image_root)


def ground_truth_of(raw: dict[str, Any], json_file: str, image_root: str = "") -> GroundTruth:
    """The same of a file's content; `json_file` is named in errors and in the log."""
    truth = GroundTruth()
    try:
        for image in raw["images"]:
            number = lossless_int(image["id"], "an image id")
            height, width = entry_size(image, json_file, image_root)
            truth.images[number] = {"id": number, "height": height, "width": width}
            truth.image_ids[number] = image["id"]
        for category in raw["categories"]:
            number = lossless_int(category["id"], "a category id")
            truth.categories[number] = str(category.get("name", f"category {number}"))
            truth.category_ids[number] = category["id"]
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{json_file}: images or categories cannot be read: {error!r}", _REMEDY) from error
    except DatasetError as error:
        where = "" if error.message.startswith(json_file) else f"{json_file}: "
        raise DatasetError(f"{where}{error.message}", error.remedy) from error
    entries = raw.get("annotations") or []
    truth.has_masks = any(isinstance(entry, dict) and entry.get("segmentation") for entry in entries)
    for entry in entries:
        try:
            annotation = _usable_annotation(entry, truth, truth.notes)
        except DatasetError as error:
            truth.notes.add(error.message, entry.get("id") if isinstance(entry, dict) else entry)
        else:
            truth.annotations.append({**annotation, "id": len(truth.annotations) + 1})
            truth.annotation_ids[len(truth.annotations)] = entry.get("id")
    if truth.notes:
        rows = truth.notes.rows()
        lines = "\n".join(f"  {count:>6} {reason} (annotation ids {ids})" for reason, count, ids in rows)
        logger.warning("%s: ground truth repaired or dropped for evaluation:\n%s", json_file, lines)
    return truth


_REMEDY = "the audit (any run of train_net.py) says more about this file"


def _usable_annotation(entry: Any, truth: GroundTruth, tally: Tally) -> dict:
    """The repaired annotation. Raises DatasetError with the reason when it has to be dropped."""
    if not isinstance(entry, dict):
        raise DatasetError("is not an object, dropped")
    identifier = entry.get("id")
    try:
        image_id, category_id = (lossless_int(entry.get(key), key) for key in ("image_id", "category_id"))
    except DatasetError as error:
        # The value would make every annotation a reason of its own.
        raise DatasetError("image_id or category_id is not a whole number, dropped") from error
    if image_id not in truth.images:
        raise DatasetError("of an image that the file does not list, dropped")
    if category_id not in truth.categories:
        raise DatasetError("of a category that the file does not list, dropped")
    if entry.get("iscrowd") is None:
        tally.add("iscrowd missing, taken as 0", identifier)
    annotation: dict[str, Any] = {"image_id": image_id, "category_id": category_id}
    annotation["iscrowd"] = crowd_flag(entry.get("iscrowd"))
    if truth.has_masks:
        size = truth.images[image_id]
        annotation["segmentation"] = _usable_rle(entry.get("segmentation"), size["height"], size["width"])
    bbox = _numbers(entry.get("bbox"), 4)
    if bbox is None:
        if not truth.has_masks:
            raise DatasetError("without a usable bbox, dropped")
        tally.add("bbox missing or not four numbers, taken from the mask", identifier)
        bbox = coco_mask.toBbox(annotation["segmentation"]).tolist()
    area = _numbers([entry.get("area")], 1)
    if area is None:
        tally.add("area missing, taken from the mask or box", identifier)
        area = [float(coco_mask.area(annotation["segmentation"]))] if truth.has_masks else [bbox[2] * bbox[3]]
    return {**annotation, "bbox": bbox, "area": area[0]}


def _usable_rle(segmentation: Any, height: int, width: int) -> dict:
    try:
        return segmentation_to_rle(segmentation, height, width)
    except DatasetError:
        # Some parts may be sound; training keeps those as well.
        usable, _, _ = check_segmentation(segmentation, height, width)
        if usable is None:
            raise DatasetError("without a usable mask, dropped") from None
        return segmentation_to_rle(usable, height, width)


def _numbers(values: Any, count: int) -> list[float] | None:
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError):
        return None
    # A NaN differs from itself.
    return numbers if len(numbers) == count and all(number == number for number in numbers) else None
