"""The objects that every representation is measured on: those of one or several COCO json files, at the images' sizes.

Shape shorthand: M objects of an image.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from segzoo.data.coco_json import load_json, lossless_int
from segzoo.data.tally import Tally, short_list
from segzoo.errors import DatasetError
from segzoo.evaluation.ground_truth import GroundTruth, ground_truth_of

CROWDS = "crowds"
NO_PIXEL = "masks without a pixel"
NO_MASKS = "annotations of a file without masks"
KNOWN = "annotations that an earlier file has"
# How reasons end, of `GroundTruth.notes`, for which an annotation is not used; others are repairs.
DROPPED = ", dropped"


@dataclass(frozen=True)
class ImageObjects:
    """The objects of one image.

    image_id: of the json. size: (height, width) px. rles: M compressed run lengths. categories: (M,) category ids.
    areas: (M,) px, as written, which decide what is small, medium and large.
    """

    image_id: int
    size: tuple[int, int]
    rles: list[dict]
    categories: np.ndarray
    areas: np.ndarray


@dataclass
class DataSet:
    """What is measured on.

    truth: the same objects for the COCO engines, without crowds. files: the json files. left_out: annotations that are
    not measured, by reason. num_images: of the files, with those without objects.
    """

    truth: GroundTruth
    files: list[str]
    left_out: Tally = field(default_factory=Tally)

    @property
    def num_images(self) -> int:
        return len(self.truth.images)

    @property
    def num_objects(self) -> int:
        return len(self.truth.annotations)

    def images(self) -> list[ImageObjects]:
        """The images that have objects, in the order of the files."""
        owned = defaultdict(list)
        for annotation in self.truth.annotations:
            owned[annotation["image_id"]].append(annotation)
        return [
            ImageObjects(
                image_id,
                (image["height"], image["width"]),
                [one["segmentation"] for one in owned[image_id]],
                np.array([one["category_id"] for one in owned[image_id]]),
                np.array([one["area"] for one in owned[image_id]], dtype=np.float64),
            )
            for image_id, image in self.truth.images.items()
            if image_id in owned
        ]


def read_data_set(files: Sequence[str]) -> DataSet:
    """Reads COCO json files by the evaluation's own rules.

    Several files are measured as one: images of one id are one image, and an object that two files have counts once.
    Images themselves are not needed, unless the json lacks their sizes.

    Args:
        files: at least one.

    Raises:
        DatasetError: a file cannot be read, has no masks, or two files disagree about an image or a category.
    """
    data = DataSet(GroundTruth(has_masks=True), list(files))
    names: dict[int, str] = {}
    seen: set[tuple[int, int, bytes]] = set()
    for file in files:
        content = load_json(file)
        own = ground_truth_of(content, file)
        _join_images(data, own, names, content, file)
        for reason in own.notes:
            if reason.endswith(DROPPED):
                data.left_out.add(reason.removesuffix(DROPPED), count=own.notes.count(reason))
        _join_objects(data, own, seen)
    if not data.num_objects:
        raise DatasetError(
            f"{short_list(files)}: no object with a mask is left of {data.left_out.total()} annotations",
            "tools/audit.py says what is wrong with each",
        )
    return data


def _join_images(data: DataSet, own: GroundTruth, names: dict[int, str], content: dict[str, Any], file: str) -> None:
    """Adds a file's images and categories; refuses ids that mean something else in an earlier file."""
    file_names = {lossless_int(entry["id"], "an image id"): entry.get("file_name") for entry in content["images"]}
    for image_id, image in own.images.items():
        known, name = data.truth.images.setdefault(image_id, image), str(file_names[image_id])
        if known != image or names.setdefault(image_id, name) != name:
            first = f"{names.get(image_id)} of {known['height']} x {known['width']}"
            raise DatasetError(
                f"{file}: image id {image_id} is {name} of {image['height']} x {image['width']}, in an earlier file "
                f"{first} (height x width)",
                "measure the files one by one, or give the images ids of their own",
            )
    for category_id, category in own.categories.items():
        if data.truth.categories.setdefault(category_id, category) != category:
            raise DatasetError(
                f"{file}: category id {category_id} is {category!r}, in an earlier file "
                f"{data.truth.categories[category_id]!r}",
                "measure the files one by one, or number their categories alike",
            )


def _join_objects(data: DataSet, own: GroundTruth, seen: set[tuple[int, int, bytes]]) -> None:
    """Adds a file's objects, numbered on; counts those that are left out, and names some of their images."""
    if not own.has_masks:
        data.left_out.add(NO_MASKS, count=len(own.annotations))
        return
    # A file's own repetitions are objects, as they are to the evaluation.
    before = set(seen)
    for annotation in own.annotations:
        mask = annotation["segmentation"]
        key = (annotation["image_id"], annotation["category_id"], mask["counts"])
        where = annotation["image_id"]
        seen.add(key)
        if key in before:
            data.left_out.add(KNOWN, where)
        elif annotation["iscrowd"]:
            data.left_out.add(CROWDS, where)
        elif not coco_mask.area(mask):
            data.left_out.add(NO_PIXEL, where)
        else:
            data.truth.annotations.append({**annotation, "id": len(data.truth.annotations) + 1})
