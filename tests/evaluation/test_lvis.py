"""LVIS's rule on a small file of its format: what counts, what does not, and each way in which a file is refused."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances
from PIL import Image
from torch import nn

from segzoo.compat import numpy_float_alias
from segzoo.config import get_segzoo_cfg
from segzoo.data.lvis_json import file_name_of
from segzoo.data.registration import load_dataset, load_metadata, register_builtin, register_json
from segzoo.engine.setup import register_datasets, resolve_num_classes
from segzoo.errors import ConfigError, DatasetError
from segzoo.evaluation import evaluate
from segzoo.geometry.rle import RLEMasks, encode_masks
from segzoo.modeling.postprocess import build_instances

needs_lvis = pytest.mark.skipif(
    importlib.util.find_spec("lvis") is None, reason="needs the package lvis: pip install 'segzoo[lvis]'"
)
SIZE = (40, 60)
# COCO's ids of person, car and dog, and their classes among the 80.
PERSON, CAR, DOG = 1, 3, 18
CLASSES = {PERSON: 0, CAR: 2, DOG: 16}
# Image -> (category, box xyxy) of its objects.
OBJECTS = {
    139: [(PERSON, (2, 3, 20, 30)), (DOG, (30, 5, 55, 25))],
    285: [(PERSON, (10, 10, 40, 38))],
    632: [(DOG, (5, 5, 35, 35))],
}


def content() -> dict[str, Any]:
    """Three images; only 139 was searched for cars, and has none; not all persons of 285 are marked."""
    images = [
        {
            "id": image_id,
            "height": SIZE[0],
            "width": SIZE[1],
            "coco_url": f"http://images.invalid/val2017/{image_id:012}.jpg",
            "neg_category_ids": [CAR] if image_id == 139 else [],
            "not_exhaustive_category_ids": [PERSON] if image_id == 285 else [],
        }
        for image_id in OBJECTS
    ]
    annotations = []
    for image_id, objects in OBJECTS.items():
        for category, (x0, y0, x1, y1) in objects:
            entry = {"id": len(annotations) + 1, "image_id": image_id, "category_id": category}
            polygon = [float(v) for v in (x0, y0, x1, y0, x1, y1, x0, y1)]
            box = [float(x0), float(y0), float(x1 - x0), float(y1 - y0)]
            annotations.append({**entry, "segmentation": [polygon], "bbox": box, "area": box[2] * box[3]})
    categories = [
        {"id": number, "name": name, "frequency": "f", "synset": f"{name}.n.01"}
        for number, name in ((DOG, "pooch"), (PERSON, "person"), (CAR, "automobile"))
    ]
    return {"images": images, "annotations": annotations, "categories": categories}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Writes images and a json, perhaps changed, and registers it."""

    def write_set(change: Callable[[dict], Any] | None = None, file_format: str = "lvis_cocofied") -> str:
        (tmp_path / "val2017").mkdir(exist_ok=True)
        written = content()
        for image in written["images"]:
            Image.new("RGB", SIZE[::-1]).save(tmp_path / "val2017" / image["coco_url"].split("/")[-1])
        if change is not None:
            change(written)
        path = tmp_path / "lvis.json"
        path.write_text(json.dumps(written), encoding="utf-8")
        register_json("small_lvis", str(path), str(tmp_path), file_format)
        return "small_lvis"

    return write_set


class Oracle(nn.Module):
    """Gives the objects of OBJECTS and `more`: image -> (category, box, score)."""

    def __init__(self, more: dict[int, list] | None = None, has_masks: bool = True, empty: bool = False) -> None:
        super().__init__()
        self.more, self.has_masks, self.empty = more or {}, has_masks, empty

    def forward(self, batched_inputs: list[dict]) -> list[dict[str, Instances]]:
        return [{"instances": self.find(entry["image_id"])} for entry in batched_inputs]

    def find(self, image_id: int) -> Instances:
        found = [(category, box, 0.5) for category, box in OBJECTS[image_id]] + self.more.get(image_id, [])
        found = [] if self.empty else found
        masks = np.zeros((len(found), *SIZE), dtype=bool)
        for mask, (_, (x0, y0, x1, y1), _) in zip(masks, found, strict=True):
            mask[y0:y1, x0:x1] = True
        return build_instances(
            SIZE,
            torch.tensor([box for _, box, _ in found], dtype=torch.float32).reshape(-1, 4),
            torch.tensor([score for _, _, score in found]),
            torch.tensor([CLASSES[category] for category, _, _ in found], dtype=torch.int64),
            RLEMasks(encode_masks(masks) if found else [], SIZE) if self.has_masks else None,
        )


@pytest.fixture
def cfg() -> CfgNode:
    config = get_segzoo_cfg()
    config.DATALOADER.NUM_WORKERS, config.INPUT.MIN_SIZE_TEST = 0, 0
    return config


@needs_lvis
def test_ground_truth_as_predictions_is_100_and_absent_kinds_are_nan(
    write: Callable[..., str], cfg: CfgNode, tmp_path: Path
) -> None:
    results = evaluate(cfg, Oracle(), write(), str(tmp_path / "out"))
    for task in ("bbox", "segm"):
        assert results[task]["AP"] == results[task]["AP50"] == results[task]["APf"] == pytest.approx(100)
        assert math.isnan(results[task]["APr"])
    written = json.loads((tmp_path / "out" / "lvis_instances_results.json").read_text())
    # In the json's own ids.
    assert {entry["category_id"] for entry in written} == {PERSON, DOG}
    assert {entry["image_id"] for entry in written} == set(OBJECTS)
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["results"]["segm"]["APr"] is None


@needs_lvis
@pytest.mark.parametrize(
    ("image_id", "category", "is_counted"),
    [
        # Searched for and marked fully: a mistake, before the right ones.
        (139, PERSON, True),
        # Not all persons of 285 are marked: this may be one.
        (285, PERSON, False),
        # Nobody looked for dogs in 285.
        (285, DOG, False),
        (632, DOG, True),
    ],
)
def test_detection_without_an_object_counts_only_where_it_was_searched_for(
    image_id: int, category: int, is_counted: bool, write: Callable[..., str], cfg: CfgNode
) -> None:
    more = {image_id: [(category, (50, 30, 59, 39), 0.9)]}
    results = evaluate(cfg, Oracle(more), write())
    # One of three persons (two dogs) is a mistake, the first of all: precision 2 / 3 at every recall; one class of two.
    expected = (100 * 2 / 3 + 100) / 2 if is_counted else 100
    assert results["segm"]["AP"] == pytest.approx(expected, abs=0.1)
    assert results["bbox"]["AP"] == pytest.approx(expected, abs=0.1)


@needs_lvis
def test_case_47_no_detections_are_0_and_boxes_alone_have_no_masks(write: Callable[..., str], cfg: CfgNode) -> None:
    results = evaluate(cfg, Oracle(empty=True), write())
    assert results["bbox"]["AP"] == results["segm"]["AP"] == 0.0
    assert set(evaluate(cfg, Oracle(has_masks=False), "small_lvis")) == {"bbox"}


@needs_lvis
def test_class_beyond_those_of_the_set_is_an_error(write: Callable[..., str], cfg: CfgNode) -> None:
    write(file_format="lvis")
    with pytest.raises(DatasetError, match="predicts class 16, 'small_lvis' has 3 classes"):
        evaluate(cfg, Oracle(), "small_lvis")


def test_lvis_package_absent_is_one_clear_line(
    write: Callable[..., str], cfg: CfgNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = write()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="package lvis is not installed") as caught:
        evaluate(cfg, Oracle(), name)
    assert caught.value.remedy == "pip install 'segzoo[lvis]' (or: pip install lvis)"


def test_numpy_float_alias_is_there_meanwhile_only() -> None:
    assert not hasattr(np, "float")
    with numpy_float_alias():
        assert np.zeros(1).astype(dtype=np.float).dtype == np.float64  # type: ignore[attr-defined]
    assert not hasattr(np, "float")


def test_cocofied_file_has_cocos_80_classes_whichever_it_holds(write: Callable[..., str]) -> None:
    metadata = load_metadata(write())
    assert len(metadata.thing_classes) == 80
    assert [metadata.thing_dataset_id_to_contiguous_id[number] for number in (PERSON, CAR, DOG, 90)] == [0, 2, 16, 79]
    assert metadata.thing_classes[16] == "dog"
    assert metadata.evaluator_type == "lvis"
    records = load_dataset("small_lvis")
    assert [[one["category_id"] for one in record["annotations"]] for record in records] == [[0, 16], [0], [16]]
    assert all(Path(record["file_name"]).is_file() for record in records)


def test_lvis_file_of_its_own_categories_keeps_them(write: Callable[..., str]) -> None:
    metadata = load_metadata(write(file_format="lvis"))
    assert metadata.thing_classes == ["person", "automobile", "pooch"]


def test_val_json_flags_take_the_format(write: Callable[..., str], cfg: CfgNode, tmp_path: Path) -> None:
    write()
    cfg.DATASETS.VAL_JSON, cfg.DATASETS.VAL_IMAGES = str(tmp_path / "lvis.json"), str(tmp_path / "val2017")
    cfg.DATASETS.TEST, cfg.DATASETS.VAL_FORMAT = ("val_json",), "lvis_cocofied"
    register_datasets(cfg)
    assert resolve_num_classes(cfg, is_training=False) == 80
    # Given the folder of the images itself.
    assert all(Path(record["file_name"]).is_file() for record in load_dataset("val_json"))


def test_builtin_name_of_table_4_lies_beside_coco(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lvis").mkdir()
    (tmp_path / "coco" / "val2017").mkdir(parents=True)
    (tmp_path / "lvis" / "lvis_v0.5_val_cocofied.json").write_text(json.dumps(content()), encoding="utf-8")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setattr("segzoo.data.registration._sources", {})
    register_builtin()
    records = load_dataset("lvis_v0.5_val_cocofied")
    assert records[0]["file_name"] == str(tmp_path / "coco" / "val2017" / "000000000139.jpg")
    assert len(load_metadata("lvis_v0.5_val_cocofied").thing_classes) == 80


def test_file_name_of_an_image_without_address_is_its_own() -> None:
    assert file_name_of({"file_name": "a.jpg"}, "") == "a.jpg"
    assert file_name_of({"coco_url": "http://images.invalid/val2017/b.jpg", "file_name": "a.jpg"}, "nowhere") == "b.jpg"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda c: c.pop("categories"), "has no list of objects under 'categories'"),
        (lambda c: c["images"][1].pop("neg_category_ids"), "1 images without the lists .* first image ids 285"),
        (
            lambda c: c["categories"][0].update(frequency="often"),
            "1 categories without a 'frequency' of r, c, f, first ids 18",
        ),
        (lambda c: c["categories"][0].update(id=12), "1 category ids are none of COCO's, first 12"),
        (lambda c: c["annotations"][0].update(category_id=12), "1 annotations of categories that are not in"),
    ],
)
def test_file_that_lvis_cannot_measure_is_refused(
    change: Callable[[dict], Any], expected: str, write: Callable[..., str]
) -> None:
    with pytest.raises(DatasetError, match=rf"lvis\.json: {expected}"):
        load_dataset(write(change))


def test_case_45_unknown_format_names_the_allowed(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"(?s)format 'lvvis'.*coco, lvis, lvis_cocofied"):
        register_json("some_set", str(tmp_path / "a.json"), str(tmp_path), "lvvis")
