"""Cases 1 to 12: what each method's training says to a faulty json before its first iteration, with exit code 2."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from segzoo.data.image_io import EXIF_ORIENTATION
from tests.acceptance.runs import flags_of
from tests.data.conftest import CocoFolder

Refuse = Callable[..., str]
Runs = Callable[..., str]


def test_case_01_a_missing_or_broken_json_is_named_with_its_line(filled: CocoFolder, refuse: Refuse) -> None:
    flags = flags_of(filled)
    Path(flags[1]).write_text('{\n"images": [],\n"annotations": [,]\n}')
    assert "annotations.json is not JSON: " in (printed := refuse(flags))
    assert "at line 3, column" in printed
    Path(flags[1]).unlink()
    assert f"annotation file {flags[1]} does not exist" in refuse(flags)


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_case_02_a_missing_or_empty_section_is_named(filled: CocoFolder, refuse: Refuse, key: str) -> None:
    kept = filled.content.pop(key)
    assert f"'{key}'" in refuse(flags_of(filled)) or key == "annotations"
    filled.content[key] = type(kept)()
    printed = refuse(flags_of(filled))
    assert f"'{key}'" in printed or (key == "annotations" and "none of its 4 images can be used" in printed)


def test_case_02_a_json_without_annotations_is_predicted_and_not_evaluated(
    filled: CocoFolder, make_folder: Callable[[str], CocoFolder], trains: Runs, tmp_path: Path
) -> None:
    val = make_folder("val")
    val.add_image()
    del val.content["annotations"]
    assert "annotations.json has no annotations: not evaluated" in trains([*flags_of(filled), *flags_of(val, "val")])
    results = tmp_path / "out" / "inference" / "val_json" / "coco_instances_results.json"
    assert isinstance(json.loads(results.read_text()), list)


def test_case_03_category_ids_with_gaps_come_back_in_results(filled: CocoFolder, trains: Runs, tmp_path: Path) -> None:
    ids = [0, 3, 90]
    filled.content["categories"] = [{"id": number, "name": f"kind{number}"} for number in ids]
    for entry, number in zip(filled.content["annotations"], (90, 3, 0, 3), strict=True):
        entry["category_id"] = number
    thresholds = {f"MODEL__{head}__SCORE_THRESH_TEST": 0.0 for head in ("FCOS", "ROI_HEADS", "ORIENMASK", "CENTERMASK")}
    log = trains([*flags_of(filled), *flags_of(filled, "val")], **thresholds)
    assert "category ids of the json -> class indices: {0: 0, 3: 1, 90: 2}" in log
    results = json.loads((tmp_path / "out" / "inference" / "val_json" / "coco_instances_results.json").read_text())
    assert results
    assert {entry["category_id"] for entry in results} <= set(ids)


def test_case_04_unknown_categories_are_counted_with_the_first_ids(filled: CocoFolder, refuse: Refuse) -> None:
    for entry in filled.content["annotations"]:
        entry["category_id"] = 99
    printed = refuse(flags_of(filled))
    assert "4 annotations of categories that are not in 'categories'" in printed
    assert "annotation 3 (category_id 99)" in printed
    assert "annotation 4 " not in printed


def test_case_05_another_number_of_classes_is_refused_with_both_numbers(filled: CocoFolder, refuse: Refuse) -> None:
    printed = refuse(flags_of(filled), MODEL__NUM_CLASSES=5)
    assert "MODEL.NUM_CLASSES is 5, but data set 'train_json' has 2 classes" in printed
    assert "give MODEL.NUM_CLASSES 2" in printed


def test_case_06_differing_classes_of_train_and_val_are_shown(
    filled: CocoFolder, make_folder: Callable[[str], CocoFolder], refuse: Refuse
) -> None:
    val = make_folder("val")
    val.add_image()
    val.add_annotation()
    val.content["categories"] = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    printed = refuse([*flags_of(filled), *flags_of(val, "val")])
    assert "class 0: 'cat' in train_json, 'dog' in val_json" in printed
    assert "class 1: 'dog' in train_json, 'cat' in val_json" in printed


@pytest.mark.parametrize(("key", "kind"), [("images", "image"), ("annotations", "annotation")])
def test_case_07_duplicate_ids_are_named(filled: CocoFolder, refuse: Refuse, key: str, kind: str) -> None:
    filled.content[key].append(dict(filled.content[key][2]))
    assert f"1 {kind} ids occur more than once, first 3" in refuse(flags_of(filled))


def test_case_07_duplicate_file_names_warn(filled: CocoFolder, trains: Runs) -> None:
    filled.content["images"][1]["file_name"] = filled.content["images"][0]["file_name"]
    assert "warning: 1 file names occur more than once in 'images'" in trains(flags_of(filled))


def test_case_08_annotations_of_absent_images_are_dropped_and_counted(filled: CocoFolder, trains: Runs) -> None:
    for _ in range(2):
        filled.add_annotation(image_id=77)
    assert "2 x annotation of an image that is not in the json: 5, 6" in trains(flags_of(filled))


def test_case_09_missing_files_are_counted_and_left_out_on_request(
    filled: CocoFolder, refuse: Refuse, trains: Runs
) -> None:
    for number in (1, 2):
        (filled.root / f"{number}.png").unlink()
    printed = refuse(flags_of(filled))
    assert "2 image files do not exist: " in printed
    assert "1.png" in printed
    assert "INPUT.STRICT False" in printed
    assert "2 of 4 images are left out" in trains(flags_of(filled), INPUT__STRICT=False)


def test_case_10_another_size_in_the_file_is_named_with_its_exif_orientation(
    filled: CocoFolder, refuse: Refuse
) -> None:
    filled.content["images"][0]["width"] = 50
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    Image.open(filled.root / "2.png").save(filled.root / "2.png", exif=exif)
    printed = refuse(flags_of(filled))
    assert "1.png (image id 1) is 40 x 30 (width x height) but 50 x 30 in the json" in printed
    assert "2.png (image id 2) is 30 x 40 (width x height) but 40 x 30 in the json" in printed
    assert "EXIF orientation 6" in printed


@pytest.mark.parametrize("as_written", [str, float])
def test_case_11_lossless_ids_are_accepted(filled: CocoFolder, trains: Runs, as_written: type) -> None:
    for key in ("images", "annotations"):
        for entry in filled.content[key]:
            entry.update({name: as_written(value) for name, value in entry.items() if name.endswith("id")})
    assert "instances  4, and 0 crowds" in trains(flags_of(filled))


@pytest.mark.parametrize("value", ["seven", 7.5, None, [7]])
def test_case_11_ids_that_are_not_whole_are_refused(filled: CocoFolder, refuse: Refuse, value: Any) -> None:
    filled.content["annotations"][1]["image_id"] = value
    assert f"annotation id 2: image_id is {value!r}, not a whole number" in refuse(flags_of(filled))


def test_case_12_nothing_left_to_train_on_shows_the_reasons(folder: CocoFolder, refuse: Refuse) -> None:
    for _ in range(4):
        folder.add_image()
    folder.add_annotation(image_id=1, iscrowd=1)
    folder.add_annotation(image_id=2, segmentation=[[1.0, 1.0]])
    folder.add_annotation(image_id=3, segmentation={"size": [30, 40], "counts": [1200]})
    printed = refuse(flags_of(folder))
    assert "none of its 4 images can be used" in printed
    for reason in (
        "1 x crowd annotations only: 1",
        "3 x no valid annotation: 2, 3, 4",
        "1 x polygon with fewer than 3 points: 2",
        "1 x empty mask or outside of the image: 3",
    ):
        assert reason in printed
