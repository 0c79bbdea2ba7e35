"""Cutting small data sets out of large ones."""

from __future__ import annotations

import json
from pathlib import Path

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
