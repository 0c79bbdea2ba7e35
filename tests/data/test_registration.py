"""Names of data sets and the checks between them (acceptance cases 3 and 6)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from segzoo.data.registration import (
    check_categories_agree,
    coco_dataset,
    load_dataset,
    load_metadata,
    num_classes_of,
    register_builtin,
    register_coco_json,
)
from segzoo.errors import DatasetError


def test_register_coco_json_reads_nothing_before_use(tmp_path: Path) -> None:
    register_coco_json("absent_set", str(tmp_path / "none.json"), str(tmp_path))
    metadata = MetadataCatalog.get("absent_set")
    assert (metadata.json_file, metadata.evaluator_type) == (str(tmp_path / "none.json"), "coco")
    with pytest.raises(DatasetError, match=r"none\.json does not exist"):
        DatasetCatalog.get("absent_set")


def test_register_coco_json_metadata_is_complete_after_loading(folder: Any) -> None:
    folder.content["categories"] = [{"id": 90, "name": "cat"}, {"id": 3, "name": "dog"}]
    folder.add_image()
    folder.add_annotation(category_id=90)
    metadata = load_metadata(folder.register("metadata_set"))
    assert metadata.thing_classes == ["dog", "cat"]
    assert metadata.thing_dataset_id_to_contiguous_id == {3: 0, 90: 1}
    assert metadata.has_annotations
    assert num_classes_of("metadata_set") == 2


def test_register_coco_json_again_replaces_and_reads_a_changed_file(folder: Any) -> None:
    folder.add_image()
    name = folder.register("changing_set")
    metadata = MetadataCatalog.get(name)
    assert num_classes_of(name) == 2
    folder.content["categories"].append({"id": 5, "name": "third category"})
    folder.register(name)
    assert num_classes_of(name) == 3
    # The object that others already hold is the one that changed.
    assert metadata.thing_classes == ["cat", "dog", "third category"]


def test_load_dataset_is_cached(folder: Any) -> None:
    folder.add_image()
    name = folder.register("cached_set")
    assert load_dataset(name) is load_dataset(name)


def test_load_dataset_unknown_name_suggests_the_nearest(folder: Any) -> None:
    folder.add_image()
    folder.register("my_very_own_set")
    with pytest.raises(DatasetError, match="nearest known name is 'my_very_own_set'"):
        load_dataset("my_very_own_sett")


def test_coco_dataset_registered_by_detectron2_code_is_wrapped(folder: Any) -> None:
    from detectron2.data.datasets import register_coco_instances

    folder.add_image()
    folder.add_annotation()
    register_coco_instances("by_detectron2", {}, folder.write(), str(folder.root))
    dataset = coco_dataset("by_detectron2")
    assert dataset.thing_classes == ["cat", "dog"]
    assert dataset.id_to_contiguous == {1: 0, 2: 1}
    assert dataset.has_annotations


def test_case_6_differing_categories_show_the_difference(make_folder: Callable[[str], Any]) -> None:
    names = [["cat", "dog", "cow"], ["cat", "cow", "dog", "hen"]]
    for number, classes in enumerate(names):
        folder = make_folder(f"part{number}")
        folder.content["categories"] = [{"id": k, "name": name} for k, name in enumerate(classes)]
        folder.add_image()
        folder.register(f"agree_{number}")
    check_categories_agree("agree_0", "agree_0")
    with pytest.raises(DatasetError) as error:
        check_categories_agree("agree_0", "agree_1")
    text = str(error.value)
    assert "class 1: 'dog' in agree_0, 'cow' in agree_1" in text
    assert "class 3: '(none)' in agree_0, 'hen' in agree_1" in text
    assert "class 0" not in text


def test_register_builtin_finds_coco_under_the_environment_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from segzoo.data import registration

    monkeypatch.setattr(registration, "_sources", {})
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    register_builtin()
    path = tmp_path / "coco" / "annotations" / "instances_val2017.json"
    with pytest.raises(DatasetError, match=r"instances_val2017\.json does not exist"):
        load_dataset("coco_2017_val")
    path.parent.mkdir(parents=True)
    image = {"id": 1, "file_name": "a.jpg", "height": 3, "width": 4}
    path.write_text(json.dumps({"images": [image], "categories": [{"id": 7, "name": "train"}]}))
    assert load_dataset("coco_2017_val")[0]["file_name"] == str(tmp_path / "coco" / "val2017" / "a.jpg")
    assert load_metadata("coco_2017_val").thing_classes == ["train"]
    assert "scenes-v1_train" in DatasetCatalog
