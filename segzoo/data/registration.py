"""COCO json files under names: detectron2's catalogs, filled lazily, with the checks that cross data sets."""

from __future__ import annotations

import difflib
import os
from functools import lru_cache, partial
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata

from segzoo.data.coco_json import CocoDataset, read_coco_json
from segzoo.data.lvis_json import read_lvis_json
from segzoo.errors import DatasetError

# Formats of json files: COCO's; LVIS's with its own categories; LVIS's with COCO's 80 classes.
FORMATS = ("coco", "lvis", "lvis_cocofied")
# Name -> (json file, image folder, format) of what register_json registered.
_sources: dict[str, tuple[str, str, str]] = {}

_COCO = {
    "coco_2014_train": ("annotations/instances_train2014.json", "train2014"),
    "coco_2014_val": ("annotations/instances_val2014.json", "val2014"),
    "coco_2014_minival": ("annotations/instances_minival2014.json", "val2014"),
    "coco_2014_valminusminival": ("annotations/instances_valminusminival2014.json", "val2014"),
    "coco_2017_train": ("annotations/instances_train2017.json", "train2017"),
    "coco_2017_val": ("annotations/instances_val2017.json", "val2017"),
    "coco_2017_val_100": ("annotations/instances_val2017_100.json", "val2017"),
    "coco_2017_test": ("annotations/image_info_test2017.json", "test2017"),
    "coco_2017_test-dev": ("annotations/image_info_test-dev2017.json", "test2017"),
}
# The one of table 4 of CenterMask: made from LVIS 0.5 by Detectron2's datasets/prepare_cocofied_lvis.py.
_LVIS = {"lvis_v0.5_val_cocofied": "lvis_v0.5_val_cocofied.json"}
_SCENES = ("scenes-v1_train", "scenes-v1_val")


def register_coco_json(name: str, json_file: str, image_root: str) -> None:
    """Registers a COCO json; nothing is read before the data set is first used.

    Args:
        name: for cfg.DATASETS; an earlier registration of the same name is replaced.
        json_file: the annotation file.
        image_root: the folder its file names are relative to.
    """
    register_json(name, json_file, image_root, "coco")


def register_json(name: str, json_file: str, image_root: str, file_format: str) -> None:
    """Registers a json of one of FORMATS, see `register_coco_json`; LVIS's are for evaluation.

    Raises:
        DatasetError: another format.
    """
    if file_format not in FORMATS:
        raise DatasetError(f"data set {name!r} has the format {file_format!r}", f"use one of {', '.join(FORMATS)}")
    _sources[name] = (os.fspath(json_file), os.fspath(image_root), file_format)
    # Assigned, not DatasetCatalog.register: that refuses a name that is known, such as Detectron2's own COCO names.
    DatasetCatalog[name] = partial(_load_dicts, name)
    evaluator = file_format.split("_")[0]
    _set_metadata(name, json_file=_sources[name][0], image_root=_sources[name][1], evaluator_type=evaluator)


def register_builtin() -> None:
    """Registers COCO and cocofied LVIS under $DETECTRON2_DATASETS (default ./datasets), and the generated scenes.

    The scenes are written when they are first used. A name that was registered by hand is left alone.
    """
    datasets = os.path.expanduser(os.environ.get("DETECTRON2_DATASETS", "datasets"))
    root = os.path.join(datasets, "coco")
    for name, (json_file, folder) in _COCO.items():
        if name not in _sources:
            register_coco_json(name, os.path.join(root, json_file), os.path.join(root, folder))
    for name, json_file in _LVIS.items():
        if name not in _sources:
            register_json(name, os.path.join(datasets, "lvis", json_file), root, "lvis_cocofied")
    for name in _SCENES:
        if name not in _sources:
            DatasetCatalog[name] = partial(_generate_scenes, name)


def load_dataset(name: str) -> list[dict[str, Any]]:
    """The dataset dicts of a registered name; shared and cached, so never change them.

    Raises:
        DatasetError: the name is unknown (names the nearest), or the data set cannot be read.
    """
    if name not in DatasetCatalog:
        known = DatasetCatalog.list()
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
        raise DatasetError(
            f"data set {name!r} is not registered; the nearest known name is {nearest[0] if nearest else '(none)'!r}",
            "register it by segzoo.data.registration.register_coco_json or train_net.py --train-json / --val-json",
        )
    return DatasetCatalog.get(name)


def load_metadata(name: str) -> Metadata:
    """The metadata of a registered name, complete: the data set is read if it was not yet."""
    load_dataset(name)
    return MetadataCatalog.get(name)


def coco_dataset(name: str) -> CocoDataset:
    """The data set of a registered name with what was dropped and repaired when it was read.

    A name that was registered by other code than register_coco_json is wrapped as it is.
    """
    dicts = load_dataset(name)
    if name in _sources:
        return _read_cached(*_sources[name], *fingerprint(_sources[name][0]))
    metadata = MetadataCatalog.get(name)
    classes = list(metadata.get("thing_classes", []))
    mapping = metadata.get("thing_dataset_id_to_contiguous_id") or {k: k for k in range(len(classes))}
    has_annotations = any(record.get("annotations") for record in dicts)
    json_file, image_root = metadata.get("json_file", name), metadata.get("image_root", "")
    return CocoDataset(json_file, image_root, dicts, classes, mapping, has_annotations)


def num_classes_of(name: str) -> int:
    """Number of classes of a registered data set."""
    return len(load_metadata(name).thing_classes)


def check_categories_agree(train_name: str, val_name: str) -> None:
    """Refuses two data sets whose classes differ in names or order.

    Raises:
        DatasetError: with the differing class indices.
    """
    train, val = (list(load_metadata(name).thing_classes) for name in (train_name, val_name))
    if train == val:
        return
    lines = [
        f"    class {k}: {train[k] if k < len(train) else '(none)'!r} in {train_name}, "
        f"{val[k] if k < len(val) else '(none)'!r} in {val_name}"
        for k in range(max(len(train), len(val)))
        if train[k : k + 1] != val[k : k + 1]
    ]
    shown = "\n".join(lines[:10] + ([f"    ... and {len(lines) - 10} more"] if len(lines) > 10 else []))
    raise DatasetError(
        f"{train_name} ({len(train)} classes) and {val_name} ({len(val)} classes) disagree:\n{shown}",
        "write the same 'categories' with the same ids into both json files",
    )


def _load_dicts(name: str) -> list[dict[str, Any]]:
    source = _sources[name]
    dataset = _read_cached(*source, *fingerprint(source[0]))
    _set_metadata(
        name,
        thing_classes=dataset.thing_classes,
        thing_dataset_id_to_contiguous_id=dataset.id_to_contiguous,
        has_annotations=dataset.has_annotations,
    )
    return dataset.dicts


def fingerprint(json_file: str) -> tuple[int, int]:
    """Time and size of a file: they change when it is written anew, so that no cache serves an old one."""
    try:
        status = os.stat(json_file)
    except OSError:
        # Reading reports it.
        return (0, 0)
    return (status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=8)
def _read_cached(json_file: str, image_root: str, file_format: str, modified_ns: int, num_bytes: int) -> CocoDataset:
    if file_format == "coco":
        return read_coco_json(json_file, image_root)
    return read_lvis_json(json_file, image_root, is_cocofied=file_format == "lvis_cocofied")


def _generate_scenes(name: str) -> list[dict[str, Any]]:
    from segzoo.data.scenes import scenes_v1

    # Registers the name anew, as a json like any other.
    scenes_v1()
    return DatasetCatalog.get(name)


def _set_metadata(name: str, **values: Any) -> None:
    # Metadata refuses to change a value; a name may be registered again with another file.
    vars(MetadataCatalog.get(name)).update(values)
