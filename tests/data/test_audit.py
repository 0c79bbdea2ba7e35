"""The audit and its command line (acceptance cases 1, 2, 9, 10, 12, 13, 21)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from detectron2.config import CfgNode
from PIL import Image

from segzoo.data.audit import audit_dataset, inspect_dataset
from segzoo.errors import DatasetError
from tools.audit import main


def test_audit_dataset_counts_everything(folder: Any, cfg: CfgNode) -> None:
    folder.add_image(40, 30)
    folder.add_image(60, 20)
    folder.add_annotation()
    folder.add_annotation(category_id=2)
    folder.add_annotation(iscrowd=1)
    folder.add_annotation(segmentation=[[1.0, 1.0]])
    report = audit_dataset(folder.register(), cfg)
    assert (report.num_images, report.num_usable, report.num_instances, report.num_crowd) == (2, 1, 2, 1)
    assert report.class_counts == {"cat": 1, "dog": 1}
    assert report.height_range == (20, 25, 30)
    assert report.dropped.first("polygon with fewer than 3 points") == [4]
    assert report.images.first("no valid annotation") == [2]
    table = report.table()
    for part in ("images     2, of which 1 are used", "cat", "polygon with fewer than 3 points: 4", "height 20 .. 30"):
        assert part in table
    json.dumps(report.to_dict())


def test_case_9_missing_file_stops_a_strict_audit_only(folder: Any, cfg: CfgNode) -> None:
    for _ in range(9):
        folder.add_image()
        folder.add_annotation(image_id=len(folder.content["images"]))
    for number in range(2, 9):
        (folder.root / f"{number}.png").unlink()
    name = folder.register()
    with pytest.raises(DatasetError) as error:
        audit_dataset(name, cfg)
    text = error.value.message.splitlines()[0]
    assert "7 image files do not exist" in text
    assert [number for number in range(1, 10) if f"/{number}.png" in text] == [2, 3, 4, 5, 6]
    assert "INPUT.STRICT False" in error.value.remedy
    cfg.INPUT.STRICT = False
    report = audit_dataset(name, cfg)
    assert report.num_usable == 2
    assert report.images.count("file does not exist") == 7


def test_case_10_size_that_differs_names_both_sizes(folder: Any, cfg: CfgNode) -> None:
    folder.add_image(40, 30)["width"] = 50
    folder.add_annotation()
    name = folder.register()
    with pytest.raises(DatasetError, match=r"1\.png.* is 40 x 30 \(width x height\) but 50 x 30 in the json"):
        audit_dataset(name, cfg)
    cfg.INPUT.STRICT = False
    with pytest.raises(DatasetError, match="none of its 1 images can be used"):
        audit_dataset(name, cfg)


def rotate_by_exif(folder: Any, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = folder.root / folder.content["images"][0]["file_name"]
    Image.open(path).convert("RGB").save(path, exif=exif)


def test_case_10_json_in_the_stored_frame_names_the_exif_orientation(folder: Any, cfg: CfgNode) -> None:
    folder.add_image(40, 30)
    folder.add_annotation()
    rotate_by_exif(folder, 6)
    with pytest.raises(DatasetError, match=r"is 30 x 40 .* but 40 x 30 in the json: .*EXIF orientation 6"):
        audit_dataset(folder.register(), cfg)


def test_case_10_json_in_the_shown_frame_is_accepted(folder: Any, cfg: CfgNode) -> None:
    entry = folder.add_image(40, 30)
    rotate_by_exif(folder, 6)
    entry["width"], entry["height"] = 30, 40
    folder.add_annotation()
    report = audit_dataset(folder.register(), cfg)
    assert "1 images carry an EXIF orientation" in report.warnings[0]


def test_case_12_nothing_to_train_on_lists_the_reasons(folder: Any, cfg: CfgNode) -> None:
    for _ in range(3):
        folder.add_image()
    folder.add_annotation(image_id=1, iscrowd=1)
    folder.add_annotation(image_id=2, segmentation=[[1.0, 1.0]])
    with pytest.raises(DatasetError) as error:
        audit_dataset(folder.register(), cfg)
    text = str(error.value)
    assert "none of its 3 images can be used" in text
    assert "1 x crowd annotations only: 1" in text
    assert "2 x no valid annotation: 2, 3" in text
    assert "1 x polygon with fewer than 3 points: 2" in text


def test_case_12_empty_images_alone_are_refused_also_when_they_are_kept(folder: Any, cfg: CfgNode) -> None:
    folder.add_image()
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    with pytest.raises(DatasetError, match="no instance to train on"):
        audit_dataset(folder.register(), cfg)


def test_case_2_json_without_annotations_serves_evaluation_only(folder: Any, cfg: CfgNode) -> None:
    folder.add_image()
    del folder.content["annotations"]
    name = folder.register()
    with pytest.raises(DatasetError, match="none of its 1 images"):
        audit_dataset(name, cfg)
    cfg.DATASETS.TRAIN = ()
    assert "not evaluated" in audit_dataset(name, cfg).warnings[0]


def test_case_13_unreadable_file_stops_unless_it_is_to_be_skipped(folder: Any, cfg: CfgNode) -> None:
    for number in (1, 2):
        folder.add_image()
        folder.add_annotation(image_id=number)
    (folder.root / "2.png").write_text("text")
    name = folder.register()
    with pytest.raises(DatasetError, match=r"1 image files are unreadable: image .*2\.png is not an image"):
        audit_dataset(name, cfg)
    cfg.INPUT.ON_BAD_IMAGE = "skip"
    assert audit_dataset(name, cfg).images.count("file is unreadable") == 1


@pytest.mark.parametrize("is_train_as_well", [True, False])
def test_case_13_unreadable_file_stops_an_evaluation_set_although_training_would_skip_it(
    is_train_as_well: bool, folder: Any, cfg: CfgNode
) -> None:
    for number in (1, 2):
        folder.add_image()
        folder.add_annotation(image_id=number)
    (folder.root / "2.png").write_text("text")
    name = folder.register()
    cfg.INPUT.ON_BAD_IMAGE = "skip"
    cfg.DATASETS.TEST = (name,)
    cfg.DATASETS.TRAIN = (name,) if is_train_as_well else ()
    with pytest.raises(DatasetError, match=r"1 image files are unreadable: image .*2\.png"):
        audit_dataset(name, cfg)
    cfg.INPUT.STRICT = False
    assert audit_dataset(name, cfg).num_usable == 1


def test_inspect_dataset_classes_without_instances_warn(folder: Any, cfg: CfgNode) -> None:
    folder.add_image()
    folder.add_annotation()
    assert inspect_dataset(folder.register(), cfg).warnings == ["1 classes without an instance: dog"]


def test_audit_tool_prints_table_and_json_and_exit_code(folder: Any, capsys: pytest.CaptureFixture[str]) -> None:
    folder.add_image()
    folder.add_annotation()
    arguments = ["--json-file", folder.write(), "--images", str(folder.root), "--json"]
    assert main(arguments) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["usable"], result["num_instances"]) == (True, 1)
    (folder.root / "1.png").unlink()
    assert main(arguments[:-1]) == 2
    assert "ERROR: 1 image files do not exist" in capsys.readouterr().out
    assert main([*arguments, "--evaluation-only", "INPUT.STRICT", "False"]) == 2


def test_case_1_audit_tool_broken_json_ends_with_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "broken.json"
    path.write_text("{\n,}")
    assert main(["--json-file", str(path), "--images", str(tmp_path), "--json"]) == 2
    printed = capsys.readouterr()
    assert "line 2" in printed.err
    assert json.loads(printed.out.splitlines()[-1])["usable"] is False
