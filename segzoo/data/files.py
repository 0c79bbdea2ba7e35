"""Whether the image files of a data set are there, readable, and of the size that the json says."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from detectron2.config import CfgNode

from segzoo.data.coco_json import CocoDataset
from segzoo.data.image_io import image_size
from segzoo.data.mapper import size_mismatch
from segzoo.data.registration import coco_dataset, fingerprint
from segzoo.errors import DatasetError

logger = logging.getLogger(__name__)

# Header reads wait for the disk most of the time.
_NUM_THREADS = 16
# (name, json file, image folder, number of dicts, the json's time and size) -> indices of unusable dicts.
_faulty: dict[tuple, frozenset[int]] = {}


@dataclass
class FileCheck:
    """Faulty files of a data set; each is the index of its dict and a sentence that names it."""

    missing: list[tuple[int, str]] = field(default_factory=list)
    unreadable: list[tuple[int, str]] = field(default_factory=list)
    mismatched: list[tuple[int, str]] = field(default_factory=list)
    num_rotated: int = 0

    def faulty_indices(self) -> set[int]:
        """Indices of all dicts whose file cannot be used."""
        return {index for index, _ in self.missing + self.unreadable + self.mismatched}


def check_files(dicts: Sequence[dict[str, Any]]) -> FileCheck:
    """Reads the header of every image file of dataset dicts, in parallel."""
    check = FileCheck()
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        for index, (kind, message) in enumerate(pool.map(_check_file, dicts, chunksize=64)):
            if kind == "rotated":
                check.num_rotated += 1
            elif kind:
                getattr(check, kind).append((index, message))
    return check


def usable_dicts(name: str, cfg: CfgNode) -> list[dict[str, Any]]:
    """The dataset dicts that training or evaluation uses.

    With INPUT.STRICT (the default) these are all: the audit has stopped at a faulty file, and the mapper refuses one
    that came later. Otherwise dicts of missing, unreadable or mismatched files are left out, counted in the log.
    """
    dataset = coco_dataset(name)
    if cfg.INPUT.STRICT:
        return dataset.dicts
    faulty = _faulty_indices(name, dataset)
    if faulty:
        logger.warning("%s: %d of %d images are left out (INPUT.STRICT False)", name, len(faulty), len(dataset.dicts))
    return [record for index, record in enumerate(dataset.dicts) if index not in faulty]


def _faulty_indices(name: str, dataset: CocoDataset) -> frozenset[int]:
    """Cached: an evaluation every few thousand iterations would read all headers again, on every rank."""
    source = (name, dataset.json_file, dataset.image_root, len(dataset.dicts))
    key = (*source, *fingerprint(dataset.json_file))
    if key not in _faulty:
        _faulty[key] = frozenset(check_files(dataset.dicts).faulty_indices())
    return _faulty[key]


def _check_file(record: dict[str, Any]) -> tuple[str, str]:
    path = record["file_name"]
    if not os.path.isfile(path):
        return "missing", path
    try:
        header = image_size(path)
    except DatasetError as error:
        return "unreadable", error.message
    expected = (record["height"], record["width"])
    if expected != (header.height, header.width):
        where = f"{path} (image id {record['image_id']})"
        mismatch = size_mismatch(where, expected, (header.height, header.width), header.orientation)
        return "mismatched", mismatch.message
    return ("rotated" if header.orientation != 1 else ""), ""
