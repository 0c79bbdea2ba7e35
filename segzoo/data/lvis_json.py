"""LVIS json files as test sets: COCO's format, with what each image was searched for, and images named by address."""

from __future__ import annotations

import os
from typing import Any

from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

from segzoo.data.coco_json import CocoDataset, load_json, read_coco_content
from segzoo.data.tally import short_list
from segzoo.errors import DatasetError

# What LVIS's rule of evaluation needs: categories that are known to be absent, and those not annotated fully.
IMAGE_KEYS = ("neg_category_ids", "not_exhaustive_category_ids")
FREQUENCIES = ("r", "c", "f")
_REMEDY = "give a file of LVIS, or of Detectron2's datasets/prepare_cocofied_lvis.py; plain COCO files need no format"


def read_lvis_json(json_file: str, image_root: str, is_cocofied: bool) -> CocoDataset:
    """Reads and checks an LVIS json.

    Args:
        json_file: the annotation file.
        image_root: folder of the images, or of their folders "train2017" and "val2017".
        is_cocofied: whether its categories are COCO's by their ids. Then the classes are COCO's 80 whichever of them
            the file has, so that a model of COCO can be measured. (Detectron2's files leave out those without objects
            and name them as LVIS does.)

    Raises:
        DatasetError: see `read_coco_json`; and a file that LVIS's rule cannot be applied to.
    """
    content = load_json(json_file)
    for section in ("images", "categories", "annotations"):
        if not isinstance(content.get(section), list) or not all(isinstance(one, dict) for one in content[section]):
            raise DatasetError(f"{json_file}: has no list of objects under '{section}'", _REMEDY)
    _check_images(content["images"], json_file)
    _check_categories(content["categories"], json_file, is_cocofied)
    if is_cocofied:
        content["categories"] = [entry for entry in COCO_CATEGORIES if entry["isthing"]]
    for image in content["images"]:
        image["file_name"] = file_name_of(image, image_root)
    for annotation in content["annotations"]:
        # LVIS has no crowds and no key for them.
        annotation.setdefault("iscrowd", 0)
    return read_coco_content(content, json_file, image_root)


def file_name_of(image: dict[str, Any], image_root: str) -> Any:
    """The file of an image entry, seen from `image_root`.

    "coco_url" ends in <folder>/<file>; only version 0.5 has "file_name", with COCO's names of 2014 for some images.
    """
    address = image.get("coco_url")
    if not isinstance(address, str) or "/" not in address:
        return image.get("file_name")
    folder, name = address.split("/")[-2:]
    return os.path.join(folder, name) if os.path.isdir(os.path.join(image_root, folder)) else name


def _check_images(images: list[dict], json_file: str) -> None:
    lacking = [image.get("id") for image in images if not all(isinstance(image.get(key), list) for key in IMAGE_KEYS)]
    if lacking:
        raise DatasetError(
            f"{json_file}: {len(lacking)} images without the lists {' and '.join(IMAGE_KEYS)}, first image ids "
            f"{short_list(lacking[:3])}",
            _REMEDY,
        )


def _check_categories(categories: list[dict], json_file: str, is_cocofied: bool) -> None:
    lacking = [entry.get("id") for entry in categories if entry.get("frequency") not in FREQUENCIES]
    if lacking:
        allowed = ", ".join(FREQUENCIES)
        raise DatasetError(
            f"{json_file}: {len(lacking)} categories without a 'frequency' of {allowed}, first ids "
            f"{short_list(lacking[:3])}",
            _REMEDY,
        )
    coco_ids = {entry["id"] for entry in COCO_CATEGORIES if entry["isthing"]}
    alien = [entry.get("id") for entry in categories if entry.get("id") not in coco_ids]
    if is_cocofied and alien:
        raise DatasetError(
            f"{json_file}: {len(alien)} category ids are none of COCO's, first {short_list(alien[:3])}",
            "make the file by Detectron2's datasets/prepare_cocofied_lvis.py, or say DATASETS.VAL_FORMAT lvis",
        )
