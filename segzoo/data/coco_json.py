"""Reading COCO json files: what cannot be repaired stops with a DatasetError, the rest is repaired and counted."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from detectron2.structures import BoxMode

from segzoo.data.annotation_checks import Box, box_fault, check_segmentation, crowd_flag, written_area
from segzoo.data.image_io import image_size
from segzoo.data.tally import Tally, short_list
from segzoo.errors import DatasetError

logger = logging.getLogger(__name__)


@dataclass
class CocoDataset:
    """A data set as it was read, with what was dropped or repaired on the way.

    Attributes:
        json_file, image_root: where it was read from.
        dicts: one dict an image in Detectron2's standard format; "annotations" is absent when the json has none.
        thing_classes: names by contiguous id.
        id_to_contiguous: category id of the json -> 0..K-1, in the order of the ids.
        has_annotations: False for a json of images and categories only (evaluation predicts, but cannot score).
        dropped: annotations (or parts of them) that are not used, by reason.
        repaired: fields that were derived or corrected, by reason.
        warnings: sentences about the file that are worth a look.
    """

    json_file: str
    image_root: str
    dicts: list[dict[str, Any]]
    thing_classes: list[str]
    id_to_contiguous: dict[int, int]
    has_annotations: bool
    dropped: Tally = field(default_factory=Tally)
    repaired: Tally = field(default_factory=Tally)
    warnings: list[str] = field(default_factory=list)


def read_coco_json(json_file: str, image_root: str) -> CocoDataset:
    """Reads and checks a COCO json.

    Args:
        json_file: the annotation file.
        image_root: folder that its file names are relative to.

    Raises:
        DatasetError: the file is missing or not JSON, lacks a key, has duplicate ids, ids that are not whole
            numbers, or annotations of an unknown category.
    """
    return read_coco_content(load_json(json_file), json_file, image_root)


def read_coco_content(content: dict[str, Any], json_file: str, image_root: str) -> CocoDataset:
    """The same for a file's content; `json_file` is named in errors."""
    categories = _section(content, "categories", json_file)
    images = _section(content, "images", json_file)
    classes, id_to_contiguous = _read_categories(categories, json_file)
    annotations = content.get("annotations")
    if annotations is not None and not isinstance(annotations, list):
        raise DatasetError(f"{json_file}: 'annotations' is a {type(annotations).__name__}, not a list", _FORMAT)
    dataset = CocoDataset(json_file, image_root, [], classes, id_to_contiguous, has_annotations=bool(annotations))
    by_image_id = _read_images(images, dataset)
    if annotations:
        _read_annotations(annotations, by_image_id, dataset)
    if list(id_to_contiguous) != list(id_to_contiguous.values()):
        logger.info("%s: category ids of the json -> class indices: %s", json_file, id_to_contiguous)
    return dataset


_FORMAT = "see docs/data.md for the format"


def load_json(json_file: str) -> dict[str, Any]:
    """The content of a json file that holds an object.

    Raises:
        DatasetError: the file is missing, unreadable, not JSON (names the line) or not an object.
    """
    try:
        with open(json_file, encoding="utf-8-sig") as file:
            content = json.load(file)
    except FileNotFoundError as error:
        remedy = "check the path; the builtin names lie under the folder DETECTRON2_DATASETS (default ./datasets)"
        raise DatasetError(f"annotation file {json_file} does not exist", remedy) from error
    except OSError as error:
        raise DatasetError(f"annotation file {json_file} cannot be read: {error.strerror}") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise DatasetError(f"{json_file} is not JSON: {error.msg} at {where}", "export the file again") from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise DatasetError(f"{json_file} is not JSON: {error}", "export the file again") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{json_file}: holds a {type(content).__name__}, not an object with 'images'", _FORMAT)
    return content


def lossless_int(value: Any, what: str) -> int:
    """An id written as 7, 7.0 or "7" as 7.

    Raises:
        DatasetError: `value` is not a whole number; `what` says where it stands.
    """
    if type(value) is int:
        return value
    try:
        if isinstance(value, str):
            return int(value)
        if isinstance(value, float) and value.is_integer():
            return int(value)
    except ValueError:
        # Reported below, with the value, as every other one that is not whole.
        pass
    raise DatasetError(f"{what} is {value!r}, not a whole number", "number the entries with integers")


def _section(content: dict[str, Any], key: str, json_file: str) -> list[Any]:
    section = content.get(key)
    if not isinstance(section, list) or not section:
        what = "has no key" if key not in content else "has no entries in" if section == [] else "has no list under"
        raise DatasetError(f"{json_file} {what} '{key}'", f"a COCO file needs 'images' and 'categories'; {_FORMAT}")
    for position, entry in enumerate(section):
        if not isinstance(entry, dict):
            raise DatasetError(f"{json_file}: '{key}' entry {position} is {entry!r}, not an object", _FORMAT)
    return section


def _entry_id(entry: dict[str, Any], kind: str, position: int, json_file: str) -> int:
    if "id" not in entry:
        raise DatasetError(f"{json_file}: {kind} entry {position} has no 'id'", _FORMAT)
    value = entry["id"]
    return value if type(value) is int else lossless_int(value, f"{json_file}: the id of {kind} entry {position}")


def _refuse_duplicates(ids: Iterable[int], kind: str, json_file: str) -> None:
    seen: set[int] = set()
    twice = [identifier for identifier in ids if identifier in seen or seen.add(identifier)]  # type: ignore[func-returns-value]
    if twice:
        raise DatasetError(
            f"{json_file}: {len(twice)} {kind} ids occur more than once, first {short_list(twice[:3])}",
            "give every entry an id of its own (files merged without renumbering?)",
        )


def _read_categories(categories: list[dict], json_file: str) -> tuple[list[str], dict[int, int]]:
    names: dict[int, str] = {}
    ids = [_entry_id(entry, "categories", position, json_file) for position, entry in enumerate(categories)]
    _refuse_duplicates(ids, "category", json_file)
    for identifier, entry in zip(ids, categories):
        names[identifier] = str(entry.get("name", f"category {identifier}"))
    # In the order of the ids, as COCO's own tools: the order in the file means nothing.
    ordered = sorted(ids)
    return [names[identifier] for identifier in ordered], {identifier: k for k, identifier in enumerate(ordered)}


def _read_images(images: list[dict], dataset: CocoDataset) -> dict[int, dict[str, Any]]:
    ids = [_entry_id(entry, "images", position, dataset.json_file) for position, entry in enumerate(images)]
    _refuse_duplicates(ids, "image", dataset.json_file)
    by_image_id: dict[int, dict[str, Any]] = {}
    for image_id, entry in zip(ids, images):
        file_name = entry.get("file_name")
        if not isinstance(file_name, str) or not file_name:
            raise DatasetError(f"{dataset.json_file}: image id {image_id} has no 'file_name'", _FORMAT)
        record: dict[str, Any] = {"file_name": os.path.join(dataset.image_root, file_name), "image_id": image_id}
        if lacks_size(entry):
            dataset.repaired.add("image size missing, read from the file", image_id)
        record["height"], record["width"] = entry_size(entry, dataset.json_file, dataset.image_root)
        if dataset.has_annotations:
            record["annotations"] = []
        by_image_id[image_id] = record
    dataset.dicts = list(by_image_id.values())
    num_names = len({record["file_name"] for record in dataset.dicts})
    if num_names < len(dataset.dicts):
        dataset.warnings.append(f"{len(dataset.dicts) - num_names} file names occur more than once in 'images'")
    return by_image_id


def lacks_size(entry: dict[str, Any]) -> bool:
    """Whether an entry of "images" does not give the image's size."""
    return entry.get("height") is None or entry.get("width") is None


def entry_size(entry: dict[str, Any], json_file: str, image_root: str) -> tuple[int, int]:
    """(height, width) in px of an entry of "images": as written, or the file's when the entry lacks it.

    Raises:
        DatasetError: the size is not two whole positive numbers, or the file cannot be read.
    """
    if lacks_size(entry):
        header = image_size(os.path.join(image_root, entry["file_name"]))
        return header.height, header.width
    where = f"{json_file}: image id {entry['id']}:"
    height, width = (lossless_int(entry[side], f"{where} {side}") for side in ("height", "width"))
    if height <= 0 or width <= 0:
        raise DatasetError(f"{where} height {height}, width {width} must be positive", "correct the json")
    return height, width


def _read_annotations(annotations: list[Any], by_image_id: dict[int, dict], dataset: CocoDataset) -> None:
    json_file = dataset.json_file
    for position, entry in enumerate(annotations):
        if not isinstance(entry, dict):
            raise DatasetError(f"{json_file}: 'annotations' entry {position} is {entry!r}, not an object", _FORMAT)
    ids = _annotation_ids(annotations, dataset)
    _refuse_duplicates(ids, "annotation", json_file)
    _refuse_unknown_categories(annotations, ids, dataset)
    for annotation_id, entry in zip(ids, annotations):
        where = f"{json_file}: annotation id {annotation_id}: image_id"
        record = by_image_id.get(lossless_int(entry.get("image_id"), where))
        if record is None:
            dataset.dropped.add("annotation of an image that is not in the json", annotation_id)
            continue
        instance = _read_annotation(entry, annotation_id, record, dataset)
        if instance is not None:
            record["annotations"].append(instance)


def _annotation_ids(annotations: list[dict], dataset: CocoDataset) -> list[int]:
    """Ids as written; when no annotation has one, their positions serve."""
    if not any("id" in entry for entry in annotations):
        dataset.repaired.add("annotation id missing", count=len(annotations))
        return list(range(1, len(annotations) + 1))
    return [_entry_id(entry, "annotations", position, dataset.json_file) for position, entry in enumerate(annotations)]


def _refuse_unknown_categories(annotations: list[dict], ids: list[int], dataset: CocoDataset) -> None:
    known = dataset.id_to_contiguous
    unknown = []
    for annotation_id, entry in zip(ids, annotations):
        value = entry.get("category_id")
        if type(value) is not int and value is not None:
            where = f"{dataset.json_file}: annotation id {annotation_id}: category_id"
            value = entry["category_id"] = lossless_int(value, where)
        if value not in known:
            unknown.append((annotation_id, value))
    if unknown:
        first = short_list(f"annotation {identifier} (category_id {value})" for identifier, value in unknown[:3])
        raise DatasetError(
            f"{dataset.json_file}: {len(unknown)} annotations of categories that are not in 'categories': {first}",
            f"the known ids are {short_list(sorted(known)[:20])}{' ...' if len(known) > 20 else ''}",
        )


def _read_annotation(entry: dict, annotation_id: int, record: dict, dataset: CocoDataset) -> dict[str, Any] | None:
    segmentation, box, faults = check_segmentation(entry.get("segmentation"), record["height"], record["width"])
    if segmentation is None or box is None:
        dataset.dropped.add(faults[0], annotation_id)
        return None
    for fault in faults:
        dataset.dropped.add(f"part of an object: {fault}", annotation_id)
    is_crowd = entry.get("iscrowd")
    if is_crowd is None:
        dataset.repaired.add("iscrowd missing, taken as 0", annotation_id)
    instance = {
        "id": annotation_id,
        "bbox": _checked_box(entry, annotation_id, box, dataset),
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": dataset.id_to_contiguous[entry["category_id"]],
        "segmentation": segmentation,
        "iscrowd": crowd_flag(is_crowd),
    }
    area = written_area(entry.get("area"))
    if area is None:
        # Left to those who ask for it: nearly every run does without.
        dataset.repaired.add("area missing, taken from the mask", annotation_id)
    else:
        instance["area"] = area
    return instance


def _checked_box(entry: dict, annotation_id: int, mask_box: Box, dataset: CocoDataset) -> list[float]:
    fault = box_fault(entry.get("bbox"), mask_box)
    if fault:
        dataset.repaired.add(f"{fault}: taken from the mask", annotation_id)
        return list(mask_box)
    x, y, width, height = (float(value) for value in entry["bbox"])
    return [x, y, x + width, y + height]
