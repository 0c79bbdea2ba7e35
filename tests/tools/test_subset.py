"""Cutting small data sets out of large ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tools.subset import main


def write_large(path: Path) -> None:
    """Images 5, 4, 3, 2, 1 with 0, 1, 2, 3, 4 objects; image 2 has a small one, image 3 a small crowd."""
    annotations = []
    for image_id in range(1, 5):
        for index in range(5 - image_id):
            is_small = index == 0 and image_id in (2, 3)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": image_id,
                    "area": 10.0 if is_small else 400.0,
                    "iscrowd": int(is_small and image_id == 3),
                }
            )
    images = [{"id": image_id, "file_name": f"{image_id}.png"} for image_id in range(5, 0, -1)]
    categories = [{"id": k, "name": f"class {k}"} for k in range(1, 7)]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))


def test_subset_takes_the_lowest_ids_that_pass(tmp_path: Path, capsys) -> None:
    write_large(tmp_path / "large.json")
    words = ["--annotations", str(tmp_path / "large.json"), "--output", str(tmp_path / "small.json"), "--json"]
    assert main([*words, "--images", "2", "--min-annotations", "2", "--min-area", "256"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"images": 2, "annotations": 6, "classes": 2}
    small = json.loads((tmp_path / "small.json").read_text())
    assert [image["id"] for image in small["images"]] == [1, 3]
    assert {annotation["image_id"] for annotation in small["annotations"]} == {1, 3}
    assert len(small["categories"]) == 6


def test_subset_says_when_too_few_images_pass(tmp_path: Path, capsys) -> None:
    write_large(tmp_path / "large.json")
    words = ["--annotations", str(tmp_path / "large.json"), "--output", str(tmp_path / "small.json")]
    assert main([*words, "--images", "4", "--min-area", "256"]) == 2
    assert "only 3 of 4" in capsys.readouterr().err
    assert not (tmp_path / "small.json").exists()


def test_subset_of_a_missing_file_is_a_clear_error(tmp_path: Path, capsys) -> None:
    words = ["--annotations", str(tmp_path / "none.json"), "--output", str(tmp_path / "small.json")]
    assert main(words) == 2
    assert "none.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("section", "change", "expected"),
    [
        ("annotations", {"image_id": None}, "'annotations' entry 0 (id 1): image_id is None"),
        ("annotations", {"area": "large"}, "annotation id 1: area is 'large'"),
        ("annotations", {"area": None}, "annotation id 1 has no area and image id 1 no size"),
        ("images", {"id": "seven"}, "'images' entry 0 (id seven): id is 'seven'"),
    ],
)
def test_subset_names_the_entry_that_it_cannot_read(
    section: str, change: dict[str, Any], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "large.json"
    write_large(path)
    content = json.loads(path.read_text())
    content[section][0].update(change)
    path.write_text(json.dumps(content))
    words = ["--annotations", str(path), "--output", str(tmp_path / "small.json"), "--images", "1", "--min-area", "9"]
    assert main(words) == 2
    printed = capsys.readouterr().err
    assert expected in printed
    assert str(path) in printed


def test_subset_takes_a_missing_area_from_the_mask(tmp_path: Path) -> None:
    square = [[0, 0, 10, 0, 10, 10, 0, 10]]
    content = {
        "images": [{"id": 1, "file_name": "1.png", "height": 20, "width": 20}],
        "annotations": [{"id": 1, "image_id": "1", "category_id": 1, "segmentation": square}],
        "categories": [{"id": 1, "name": "square"}],
    }
    (tmp_path / "large.json").write_text(json.dumps(content))
    words = ["--annotations", str(tmp_path / "large.json"), "--output", str(tmp_path / "small.json"), "--images", "1"]
    assert main([*words, "--min-area", "101"]) == 2
    assert main([*words, "--min-area", "100"]) == 0
    assert json.loads((tmp_path / "small.json").read_text()) == content


def test_subset_that_cannot_be_written_says_what_to_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_large(tmp_path / "large.json")
    output = tmp_path / "none" / "small.json"
    assert main(["--annotations", str(tmp_path / "large.json"), "--output", str(output), "--images", "1"]) == 2
    printed = capsys.readouterr().err
    assert "check the folder of --output" in printed
    assert "resume" not in printed
