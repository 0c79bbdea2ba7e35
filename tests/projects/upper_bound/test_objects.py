"""Which annotations are measured, and that nothing is left out without a word."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from projects.upper_bound.objects import CROWDS, KNOWN, NO_PIXEL, read_data_set
from projects.upper_bound.report import describe_data
from segzoo.errors import DatasetError
from tests.projects.upper_bound.drawn import SIZE, annotation, disc, rectangle, write_json


def test_crowds_empty_and_unusable_annotations_are_left_out_and_counted(tmp_path: Path) -> None:
    good = annotation(disc((100, 80), 30), 10)
    outside = {**good, "segmentation": [[400.0, 10.0, 420.0, 10.0, 420.0, 30.0]]}
    entries = [
        good,
        annotation(rectangle(0, 0, 50, 50), 10, iscrowd=1),
        outside,
        {**good, "segmentation": [[1.0, 2.0, 3.0]]},
        {**good, "image_id": 99},
        annotation(rectangle(9, 9, 20, 10), 30, 7),
    ]
    data = read_data_set([write_json(tmp_path / "a.json", entries)])
    counts = {reason: data.left_out.count(reason) for reason in data.left_out}
    assert counts == {
        "of an image that the file does not list": 1,
        "without a usable mask": 1,
        CROWDS: 1,
        NO_PIXEL: 1,
    }
    assert (data.num_images, data.num_objects) == (3, 2)
    assert describe_data(data).startswith("2 objects of 3 images; left out for all representations: 1 ")
    assert [image.image_id for image in data.images()] == [10, 30]
    assert data.images()[1].categories.tolist() == [7]
    assert data.images()[1].areas.tolist() == [200.0]


def test_an_object_that_two_files_have_counts_once_and_images_are_joined(tmp_path: Path) -> None:
    shared, own, other = disc((100, 80), 30), disc((50, 80), 20), disc((200, 100), 25)
    first = write_json(tmp_path / "a.json", [annotation(shared, 10), annotation(own, 20)])
    crowd = annotation(rectangle(0, 0, 9, 9), 20, iscrowd=1)
    second = write_json(tmp_path / "b.json", [annotation(other, 10), annotation(shared, 10), crowd])
    data = read_data_set([first, second])
    assert data.num_objects == 3
    assert {reason: data.left_out.count(reason) for reason in data.left_out} == {KNOWN: 1, CROWDS: 1}
    assert [len(image.rles) for image in data.images()] == [2, 1]
    assert [entry["id"] for entry in data.truth.annotations] == [1, 2, 3]


def test_an_object_that_one_file_has_twice_counts_twice(tmp_path: Path) -> None:
    twice = [annotation(disc((100, 80), 30), 10)] * 2
    assert read_data_set([write_json(tmp_path / "a.json", twice)]).num_objects == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": [{"id": 10, "height": 9, "width": 9, "file_name": "0.jpg"}]}, "image id 10 is 0.jpg of 9 x 9"),
        (
            {"images": [{"id": 10, "height": SIZE[0], "width": SIZE[1], "file_name": "z.jpg"}]},
            "(?s)image id 10 is z.jpg.*in an earlier file 0.jpg.*one by one",
        ),
        ({"categories": [{"id": 3, "name": "cat"}]}, "(?s)category id 3 is 'cat', in an earlier file 'ant'"),
    ],
)
def test_files_that_disagree_are_refused_with_the_id(change: dict, message: str, tmp_path: Path) -> None:
    first = write_json(tmp_path / "a.json", [annotation(disc((100, 80), 30), 10)])
    second = write_json(tmp_path / "b.json", [], **change)
    with pytest.raises(DatasetError, match=message):
        read_data_set([first, second])


def test_a_file_without_an_object_is_refused(tmp_path: Path) -> None:
    boxes = {key: value for key, value in annotation(disc((9, 9), 5), 10).items() if key != "segmentation"}
    with pytest.raises(DatasetError, match="no object with a mask is left of 1 annotations"):
        read_data_set([write_json(tmp_path / "a.json", [boxes])])


def test_sizes_that_the_json_lacks_are_asked_for_by_name(tmp_path: Path) -> None:
    path = Path(write_json(tmp_path / "a.json", [annotation(disc((9, 9), 5), 10)]))
    content = json.loads(path.read_text())
    del content["images"][0]["width"]
    path.write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=r"a\.json.*0\.jpg"):
        read_data_set([str(path)])


def test_run_lengths_stay_those_of_the_file(tmp_path: Path) -> None:
    mask = disc((100, 80), 30)
    image = read_data_set([write_json(tmp_path / "a.json", [annotation(mask, 10)])]).images()[0]
    from pycocotools import mask as coco_mask

    assert np.array_equal(coco_mask.decode(image.rles[0]).astype(bool), mask)
