"""Reading COCO json files (acceptance cases 1 to 4, 7, 8, 10, 11, 22 to 24, 27, 28)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from segzoo.data.annotation_checks import written_area
from segzoo.data.coco_json import CocoDataset, lossless_int, read_coco_json
from segzoo.errors import DatasetError
from segzoo.geometry.polygons import segmentation_to_rle


def read(folder: Any) -> CocoDataset:
    return read_coco_json(folder.write(), str(folder.root))


def test_read_coco_json_plain_file_gives_detectron2_dicts(folder: Any) -> None:
    folder.add_image(40, 30)
    folder.add_annotation(category_id=2)
    dataset = read(folder)
    assert dataset.thing_classes == ["cat", "dog"]
    (record,) = dataset.dicts
    assert (record["height"], record["width"], record["image_id"]) == (30, 40, 1)
    assert record["file_name"] == str(folder.root / "1.png")
    (annotation,) = record["annotations"]
    assert annotation["bbox"] == [5.0, 5.0, 15.0, 15.0]
    assert (annotation["category_id"], annotation["iscrowd"], annotation["id"]) == (1, 0, 1)
    assert not dataset.dropped
    assert not dataset.repaired


def test_case_1_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"annotation file .*none\.json does not exist"):
        read_coco_json(str(tmp_path / "none.json"), str(tmp_path))


def test_case_1_broken_json_names_path_and_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_text('{\n"images": [],\n"annotations": [,]\n}')
    with pytest.raises(DatasetError, match=r"broken\.json is not JSON: .* at line 3, column") as error:
        read_coco_json(str(path), str(tmp_path))
    assert error.value.exit_code == 2


@pytest.mark.parametrize("content", ["[1, 2]", "3", '"text"'])
def test_case_1_json_that_is_no_object_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text(content)
    with pytest.raises(DatasetError, match="not an object"):
        read_coco_json(str(path), str(tmp_path))


def test_case_1_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "image.json"
    path.write_bytes(b"\x89PNG\xff\xfe\x00")
    with pytest.raises(DatasetError, match=r"image\.json is not JSON"):
        read_coco_json(str(path), str(tmp_path))


@pytest.mark.parametrize("key", ["images", "categories"])
@pytest.mark.parametrize("is_empty", [True, False])
def test_case_2_missing_or_empty_section_is_named(key: str, is_empty: bool, folder: Any) -> None:
    folder.add_image()
    if is_empty:
        folder.content[key] = []
    else:
        del folder.content[key]
    with pytest.raises(DatasetError, match=f"annotations.json has no (entries in|key) '{key}'"):
        read(folder)


@pytest.mark.parametrize("is_empty", [True, False])
def test_case_2_json_without_annotations_is_for_prediction(is_empty: bool, folder: Any) -> None:
    folder.add_image()
    if not is_empty:
        del folder.content["annotations"]
    dataset = read(folder)
    assert not dataset.has_annotations
    assert "annotations" not in dataset.dicts[0]


@pytest.mark.parametrize("ids", [[0, 3, 90], [90, 0, 3], [7, 8, 9]])
def test_case_3_category_ids_with_gaps_become_contiguous_and_back(ids: list[int], folder: Any) -> None:
    folder.add_image()
    folder.content["categories"] = [{"id": identifier, "name": f"c{identifier}"} for identifier in ids]
    for identifier in ids:
        folder.add_annotation(category_id=identifier)
    dataset = read(folder)
    assert dataset.thing_classes == [f"c{identifier}" for identifier in sorted(ids)]
    assert dataset.id_to_contiguous == {identifier: k for k, identifier in enumerate(sorted(ids))}
    back = {k: identifier for identifier, k in dataset.id_to_contiguous.items()}
    assert [back[annotation["category_id"]] for annotation in dataset.dicts[0]["annotations"]] == ids


def test_case_4_unknown_category_is_refused_with_count_and_first_ids(folder: Any) -> None:
    folder.add_image()
    for _ in range(5):
        folder.add_annotation(category_id=99)
    with pytest.raises(DatasetError) as error:
        read(folder)
    assert "5 annotations of categories" in str(error.value)
    assert "annotation 1 (category_id 99), annotation 2 (category_id 99), annotation 3" in str(error.value)
    assert "annotation 4" not in str(error.value)


def test_case_4_missing_category_is_refused(folder: Any) -> None:
    folder.add_image()
    del folder.add_annotation()["category_id"]
    with pytest.raises(DatasetError, match=r"annotation 1 \(category_id None\)"):
        read(folder)


@pytest.mark.parametrize(
    ("key", "kind"), [("images", "image"), ("annotations", "annotation"), ("categories", "category")]
)
def test_case_7_duplicate_ids_are_refused(key: str, kind: str, folder: Any) -> None:
    folder.add_image()
    folder.add_annotation()
    folder.content[key].append(dict(folder.content[key][0]))
    with pytest.raises(DatasetError, match=f"1 {kind} ids occur more than once, first 1"):
        read(folder)


def test_case_7_duplicate_file_names_warn(folder: Any) -> None:
    folder.add_image(file_name="same.png")
    folder.add_image(file_name="same.png")
    assert read(folder).warnings == ["1 file names occur more than once in 'images'"]


def test_case_8_annotation_of_absent_image_is_dropped_and_counted(folder: Any) -> None:
    folder.add_image()
    folder.add_annotation(image_id=1)
    folder.add_annotation(image_id=55)
    dataset = read(folder)
    assert len(dataset.dicts[0]["annotations"]) == 1
    assert dataset.dropped.first("annotation of an image that is not in the json") == [2]


@pytest.mark.parametrize(
    ("written", "expected"), [("7", 7), (7.0, 7), (7, 7), (0, 0), ("900000000000000001", 9 * 10**17 + 1)]
)
def test_case_11_lossless_int_accepts_whole_numbers(written: Any, expected: int) -> None:
    assert lossless_int(written, "id") == expected


@pytest.mark.parametrize("written", ["7.5", 7.5, "seven", None, True, [7], float("nan"), float("inf"), ""])
def test_case_11_lossless_int_refuses_the_rest(written: Any) -> None:
    with pytest.raises(DatasetError, match="not a whole number"):
        lossless_int(written, "id")


def test_case_11_string_and_float_ids_match_their_integers(folder: Any) -> None:
    folder.content["categories"] = [{"id": "4", "name": "cat"}]
    folder.add_image(id="7")
    folder.add_annotation(image_id=7.0, category_id=4.0, id="12")
    dataset = read(folder)
    assert dataset.dicts[0]["image_id"] == 7
    assert dataset.dicts[0]["annotations"][0]["id"] == 12
    assert dataset.id_to_contiguous == {4: 0}


@pytest.mark.parametrize("key", ["image_id", "category_id", "id"])
def test_case_11_id_that_is_not_whole_is_refused(key: str, folder: Any) -> None:
    folder.add_image()
    folder.add_annotation(**{"image_id": 1, key: 1.5})
    with pytest.raises(DatasetError, match=r"1\.5, not a whole number"):
        read(folder)


def test_case_10_missing_size_is_read_from_the_file(folder: Any) -> None:
    entry = folder.add_image(40, 30)
    del entry["height"], entry["width"]
    dataset = read(folder)
    assert (dataset.dicts[0]["height"], dataset.dicts[0]["width"]) == (30, 40)
    assert dataset.repaired.count("image size missing, read from the file") == 1


def test_case_22_all_segmentation_kinds_give_pycocotools_masks(folder: Any) -> None:
    folder.add_image(40, 30)
    polygon = [[3.2, 4.1, 20.7, 6.6, 12.3, 25.9], [25.0, 5.0, 35.0, 5.0, 35.0, 9.5]]
    expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygon, 30, 40)))
    flat = expected.flatten(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    compressed = coco_mask.encode(np.asfortranarray(expected))["counts"].decode()
    folder.add_annotation(segmentation=polygon)
    folder.add_annotation(segmentation={"size": [30, 40], "counts": counts}, iscrowd=1)
    folder.add_annotation(segmentation={"size": [30, 40], "counts": compressed})
    annotations = read(folder).dicts[0]["annotations"]
    assert [annotation["iscrowd"] for annotation in annotations] == [0, 1, 0]
    for annotation in annotations:
        drawn = coco_mask.decode(segmentation_to_rle(annotation["segmentation"], 30, 40))
        np.testing.assert_array_equal(drawn, expected)


@pytest.mark.parametrize(
    ("polygon", "reason"),
    [
        ([1.0, 1.0, 9.0, 9.0], "polygon with fewer than 3 points"),
        ([], "polygon with fewer than 3 points"),
        ([1.0, 1.0, 9.0, 1.0, 9.0, 9.0, 5.0], "polygon with an odd number of coordinates"),
        ([1.0, 1.0, 9.0, float("nan"), 9.0, 9.0], "polygon with NaN or infinite coordinates"),
        ([1.0, 1.0, float("inf"), 1.0, 9.0, 9.0], "polygon with NaN or infinite coordinates"),
        ([-5.0, 1.0, 9.0, 1.0, 9.0, 9.0], "polygon with negative coordinates"),
        ([50.0, 50.0, 60.0, 50.0, 60.0, 60.0], "empty mask or outside of the image"),
        ([5.0, 5.0, 5.0, 5.0, 5.0, 5.0], "empty mask or outside of the image"),
        ([5.6, 5.0, 5.9, 5.0, 5.9, 20.0, 5.6, 20.0], "empty mask or outside of the image"),
        (["a", "b", "c", "d", "e", "f"], "polygon is not a list of numbers"),
        ("text", "polygon is not a list of numbers"),
    ],
)
def test_case_23_bad_polygon_is_dropped_with_count_and_id(polygon: Any, reason: str, folder: Any) -> None:
    folder.add_image(40, 30)
    folder.add_annotation()
    folder.add_annotation(segmentation=[polygon])
    dataset = read(folder)
    assert [annotation["id"] for annotation in dataset.dicts[0]["annotations"]] == [1]
    assert dataset.dropped.to_dict() == {reason: {"count": 1, "first": [2]}}


def test_case_23_good_parts_of_an_object_stay(folder: Any) -> None:
    folder.add_image(40, 30)
    square = [5.0, 5.0, 15.0, 5.0, 15.0, 15.0, 5.0, 15.0]
    folder.add_annotation(segmentation=[square, [1.0, 1.0, 2.0, 2.0]])
    dataset = read(folder)
    assert dataset.dicts[0]["annotations"][0]["segmentation"] == [square]
    assert dataset.dropped.first("part of an object: polygon with fewer than 3 points") == [1]


def test_case_23_coordinates_beyond_the_image_are_clipped(folder: Any) -> None:
    folder.add_image(40, 30)
    folder.add_annotation(segmentation=[[-0.5, -0.5, 1e9, -0.5, 1e9, 10.0, -0.5, 10.0]], bbox=[0, 0, 40, 10])
    dataset = read(folder)
    (annotation,) = dataset.dicts[0]["annotations"]
    mask = coco_mask.decode(segmentation_to_rle(annotation["segmentation"], 30, 40))
    assert mask[:10].all()
    assert not mask[11:].any()
    assert not dataset.dropped


@pytest.mark.parametrize(
    "segmentation",
    [
        {"size": [30, 40], "counts": [0, 5]},
        {"size": [30, 40], "counts": [-5, 1205]},
        {"size": [40, 30], "counts": [0, 1200]},
        {"size": [30, 40], "counts": "01"},
        {"size": [30, 40], "counts": "~~~~\u00ff"},
        {"size": [30, 40], "counts": None},
        {"size": "large", "counts": [0, 1200]},
        {"counts": [0, 1200]},
        {},
    ],
)
def test_case_23_invalid_rle_is_dropped_with_count_and_id(segmentation: Any, folder: Any) -> None:
    folder.add_image(40, 30)
    folder.add_annotation(segmentation=segmentation)
    dataset = read(folder)
    assert dataset.dicts[0]["annotations"] == []
    assert dataset.dropped.to_dict() == {"invalid RLE": {"count": 1, "first": [1]}}


@pytest.mark.parametrize("segmentation", [[], 5, None])
def test_case_23_no_segmentation_is_dropped(segmentation: Any, folder: Any) -> None:
    folder.add_image()
    folder.add_annotation()["segmentation"] = segmentation
    assert read(folder).dropped.count("no segmentation") == 1


def test_case_24_empty_rle_is_dropped(folder: Any) -> None:
    folder.add_image(40, 30)
    folder.add_annotation(segmentation={"size": [30, 40], "counts": [1200]})
    assert read(folder).dropped.count("empty mask or outside of the image") == 1


@pytest.mark.parametrize(
    ("bbox", "reason"),
    [
        ([0.0, 0.0, 30.0, 10.0], "bbox disagrees with its mask"),
        ([5.0, 5.0, -10.0, 10.0], "bbox of zero or negative size"),
        ([5.0, 5.0, 0.0, 10.0], "bbox of zero or negative size"),
        ([5.0, float("nan"), 10.0, 10.0], "bbox disagrees with its mask"),
        ([5.0, 5.0, 10.0], "bbox is not four numbers"),
        (None, "bbox missing"),
    ],
)
def test_case_27_bad_box_is_taken_from_the_mask(bbox: Any, reason: str, folder: Any) -> None:
    folder.add_image()
    folder.add_annotation(bbox=bbox)
    dataset = read(folder)
    assert dataset.dicts[0]["annotations"][0]["bbox"] == [5.0, 5.0, 15.0, 15.0]
    assert dataset.repaired.first(f"{reason}: taken from the mask") == [1]


def test_case_28_missing_fields_are_derived_and_counted(folder: Any) -> None:
    folder.add_image()
    entry = folder.add_annotation()
    for key in ("bbox", "area", "iscrowd", "id"):
        del entry[key]
    dataset = read(folder)
    (annotation,) = dataset.dicts[0]["annotations"]
    assert (annotation["iscrowd"], annotation["id"]) == (0, 1)
    assert dataset.repaired.total() == 4


@pytest.mark.parametrize(
    ("written", "expected"), [(7.25, 7.25), (16, 16.0), ("12.5", 12.5), (0, 0.0), (None, None), ("large", None)]
)
def test_case_28_area_is_kept_as_written_or_left_to_the_mask(written: Any, expected: Any, folder: Any) -> None:
    folder.add_image()
    folder.add_annotation(area=written)
    dataset = read(folder)
    assert dataset.dicts[0]["annotations"][0].get("area") == expected
    assert dataset.repaired.count("area missing, taken from the mask") == int(expected is None)


@pytest.mark.parametrize("value", [float("nan"), [3], 10**400])
def test_written_area_that_is_no_number_is_none(value: Any) -> None:
    assert written_area(value) is None


@pytest.mark.parametrize(("written", "expected"), [(True, 1), (False, 0), ("1", 1), ("0", 0), (1.0, 1), (None, 0)])
def test_case_28_crowd_flag_in_any_spelling(written: Any, expected: int, folder: Any) -> None:
    folder.add_image()
    folder.add_annotation(iscrowd=written)
    assert read(folder).dicts[0]["annotations"][0]["iscrowd"] == expected


def test_read_coco_json_byte_order_mark_is_accepted(folder: Any) -> None:
    folder.add_image()
    path = Path(folder.write())
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(folder.content).encode())
    assert len(read_coco_json(str(path), str(folder.root)).dicts) == 1


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_read_coco_json_entry_that_is_no_object_is_refused(key: str, folder: Any) -> None:
    folder.add_image()
    folder.content[key].append("text")
    with pytest.raises(DatasetError, match=f"'{key}' entry"):
        read(folder)


@pytest.mark.parametrize(("key", "value"), [("file_name", None), ("height", 0), ("width", "wide"), ("width", 3.5)])
def test_read_coco_json_bad_image_entry_is_refused(key: str, value: Any, folder: Any) -> None:
    folder.add_image()[key] = value
    with pytest.raises(DatasetError, match="image id 1"):
        read(folder)
