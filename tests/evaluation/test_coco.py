"""CocoEvaluator against pycocotools run directly on the json, and the cases where evaluators usually break."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from segzoo.config import get_segzoo_cfg
from segzoo.errors import ConfigError, DatasetError
from segzoo.evaluation import CocoEvaluator
from segzoo.geometry.rle import RLEMasks, encode_masks

HEIGHT, WIDTH = 120, 160
CATEGORY_IDS = [0, 3, 90]
STATISTICS = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
NAME = "evaluation-under-test"


def settings(engine: str = "faster") -> CfgNode:
    cfg = get_segzoo_cfg()
    cfg.TEST.COCO_ENGINE = engine
    return cfg


def ellipse(rng: np.random.Generator) -> np.ndarray:
    """A random filled ellipse, some of each of COCO's sizes."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    half_height, half_width = np.exp(rng.uniform(1.0, 4.2, 2))
    y, x = rng.uniform(0, HEIGHT), rng.uniform(0, WIDTH)
    return ((rows - y) / half_height) ** 2 + ((columns - x) / half_width) ** 2 <= 1


def text_rle(mask: np.ndarray) -> dict:
    rle = encode_masks(mask[None])[0]
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def annotation_of(mask: np.ndarray, image_id: int, category_id: int, identifier: int, is_crowd: bool = False) -> dict:
    held = RLEMasks(encode_masks(mask[None]), mask.shape)
    x_min, y_min, x_max, y_max = held.boxes()[0].tolist()
    return {
        "id": identifier,
        "image_id": image_id,
        "category_id": category_id,
        "iscrowd": int(is_crowd),
        "area": int(held.area()[0]),
        "bbox": [x_min, y_min, x_max - x_min, y_max - y_min],
        "segmentation": text_rle(mask),
    }


def random_json(seed: int = 0, num_images: int = 6, last_category: int = 3) -> dict:
    rng = np.random.default_rng(seed)
    images: list[dict] = [
        {"id": 7 * i + 3, "height": HEIGHT, "width": WIDTH, "file_name": f"{i}.png"} for i in range(num_images)
    ]
    annotations: list[dict] = []
    for image in images:
        for number in range(rng.integers(0, 8)):
            mask = ellipse(rng)
            if mask.any():
                category_id = CATEGORY_IDS[rng.integers(0, last_category)]
                identifier = len(annotations) + 1
                annotations.append(annotation_of(mask, image["id"], category_id, identifier, is_crowd=number == 3))
    categories = [
        {"id": number, "name": name} for number, name in zip(CATEGORY_IDS, ["cat", "dog", "eel"], strict=True)
    ]
    return {"images": images, "categories": categories, "annotations": annotations}


@pytest.fixture
def register(tmp_path: Path) -> Iterator:
    """Writes a json and registers it as NAME; gives the file's path."""

    def write(content: dict) -> str:
        path = tmp_path / "truth.json"
        path.write_text(json.dumps(content))
        DatasetCatalog.register(NAME, lambda: [])
        MetadataCatalog.get(NAME).set(
            json_file=str(path),
            thing_classes=["cat", "dog", "eel"],
            thing_dataset_id_to_contiguous_id={number: index for index, number in enumerate(CATEGORY_IDS)},
        )
        return str(path)

    yield write
    if NAME in DatasetCatalog:
        DatasetCatalog.remove(NAME)
        MetadataCatalog.remove(NAME)


def instances_of(masks: list[np.ndarray], scores: list[float], classes: list[int], as_rle: bool = True) -> Instances:
    stack = np.stack(masks) if masks else np.zeros((0, HEIGHT, WIDTH), bool)
    held = RLEMasks(encode_masks(stack), (HEIGHT, WIDTH))
    return Instances(
        (HEIGHT, WIDTH),
        pred_boxes=Boxes(held.boxes()),
        scores=torch.tensor(scores, dtype=torch.float32),
        pred_classes=torch.tensor(classes, dtype=torch.int64),
        pred_masks=held if as_rle else torch.from_numpy(stack),
    )


def random_predictions(content: dict, seed: int = 1) -> dict[int, Instances]:
    """Shifted ground truth of now and then another class, false alarms, and scores with ties and above 1."""
    rng = np.random.default_rng(seed)
    predictions = {}
    for image in content["images"]:
        masks = [ellipse(rng) for _ in range(rng.integers(0, 3))]
        classes = rng.integers(0, 3, len(masks)).tolist()
        for entry in content["annotations"]:
            if entry["image_id"] == image["id"]:
                mask = coco_mask.decode(entry["segmentation"]).astype(bool)
                masks.append(np.roll(mask, rng.integers(-4, 5), axis=1))
                is_right = rng.random() < 0.8
                classes.append(CATEGORY_IDS.index(entry["category_id"]) if is_right else int(rng.integers(0, 3)))
        predictions[image["id"]] = instances_of(masks, (rng.integers(1, 12, len(masks)) / 8).tolist(), classes)
    return predictions


def run(predictions: dict[int, Instances], engine: str = "faster", output_dir: Path | None = None) -> dict:
    evaluator = CocoEvaluator(NAME, settings(engine), str(output_dir) if output_dir else None)
    for image_id, instances in predictions.items():
        evaluator.process([{"image_id": image_id}], [{"instances": instances}])
    return evaluator.evaluate()


def official(json_file: str, results_file: Path, iou_type: str) -> dict[str, float]:
    """pycocotools on the files alone, by its own loading and summary."""
    results = json.loads(results_file.read_text())
    if iou_type == "segm":
        results = [{key: value for key, value in entry.items() if key != "bbox"} for entry in results]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(json_file)
        evaluation = COCOeval(truth, truth.loadRes(results), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    values = [value * 100 if value > -1 else math.nan for value in evaluation.stats]
    return dict(zip(STATISTICS, values, strict=True))


@pytest.mark.parametrize("engine", ["faster", "pycocotools"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_evaluate_random_predictions_equals_pycocotools_on_the_files(register, tmp_path, engine, seed) -> None:
    content = random_json(seed)
    json_file = register(content)
    results = run(random_predictions(content, seed + 10), engine, tmp_path)
    assert set(results) == {"bbox", "segm"}
    for task in ("bbox", "segm"):
        expected = official(json_file, tmp_path / "coco_instances_results.json", task)
        found = [results[task][key] for key in STATISTICS]
        np.testing.assert_allclose(found, list(expected.values()), rtol=0, atol=1e-9)
        assert 1 < results[task]["AP"] < 99


def test_evaluate_engines_agree_on_every_key_to_1e_9(register) -> None:
    content = random_json(4, num_images=20)
    register(content)
    predictions = random_predictions(content)
    faster, reference = run(predictions, "faster"), run(predictions, "pycocotools")
    for task in ("bbox", "segm"):
        assert list(faster[task]) == list(reference[task])
        np.testing.assert_allclose(list(faster[task].values()), list(reference[task].values()), rtol=0, atol=1e-9)


@pytest.mark.parametrize("engine", ["faster", "pycocotools"])
def test_evaluate_ground_truth_as_predictions_gives_100(register, engine) -> None:
    content = random_json(2, last_category=2)
    register(content)
    predictions = {}
    for image in content["images"]:
        own = [a for a in content["annotations"] if a["image_id"] == image["id"] and not a["iscrowd"]]
        masks = [coco_mask.decode(a["segmentation"]).astype(bool) for a in own]
        classes = [CATEGORY_IDS.index(a["category_id"]) for a in own]
        predictions[image["id"]] = instances_of(masks, [1.0] * len(own), classes)
    results = run(predictions, engine)
    for task in ("bbox", "segm"):
        for key in ("AP", "AP50", "AP75", "AP-cat", "AP-dog", "AR100"):
            assert results[task][key] == pytest.approx(100.0, abs=1e-9), (task, key)
        assert math.isnan(results[task]["AP-eel"]), "a class without objects has nothing to measure"


@pytest.mark.parametrize("engine", ["faster", "pycocotools"])
def test_evaluate_no_detections_gives_zero_for_both_tasks_and_warns(register, engine, caplog) -> None:
    content = random_json(2)
    register(content)
    with caplog.at_level(logging.WARNING):
        results = run({image["id"]: instances_of([], [], []) for image in content["images"]}, engine)
    assert "no detections" in caplog.text
    for task in ("bbox", "segm"):
        assert set(results[task]) == {*STATISTICS, "AP-cat", "AP-dog", "AP-eel"}
        assert [results[task][key] for key in ("AP", "AP50", "AP75", "AR100", "AP-cat")] == [0.0] * 5


def test_evaluate_bool_masks_equal_rle_masks(register) -> None:
    content = random_json(3)
    register(content)
    as_rle = random_predictions(content)
    as_bool = {key: Instances(one.image_size, **one.get_fields()) for key, one in as_rle.items()}
    for instances in as_bool.values():
        instances.pred_masks = instances.pred_masks.to_tensor()
    first, second = run(as_rle), run(as_bool)
    np.testing.assert_equal(first, second)


def test_evaluate_boxes_only_gives_bbox_only(register) -> None:
    content = random_json(3)
    register(content)
    predictions = random_predictions(content)
    for instances in predictions.values():
        instances.remove("pred_masks")
    assert set(run(predictions)) == {"bbox"}


def test_evaluate_json_without_annotations_writes_results_and_says_not_evaluated(register, tmp_path, caplog) -> None:
    content = random_json(3)
    predictions = random_predictions(content)
    del content["annotations"]
    register(content)
    assert run(predictions, output_dir=tmp_path) == {}
    assert "not evaluated" in caplog.text
    assert len(json.loads((tmp_path / "coco_instances_results.json").read_text())) > 0


def test_evaluate_category_ids_with_gaps_are_written_as_in_the_json(register, tmp_path) -> None:
    content = random_json(3)
    for category, spelling in zip(content["categories"], ["0", 3.0, 90], strict=True):
        category["id"] = spelling
    for image in content["images"]:
        image["id"] = str(image["id"])
    register(content)
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[10:30, 20:60] = True
    run({3: instances_of([mask] * 3, [0.9, 0.8, 0.7], [2, 0, 1])}, output_dir=tmp_path)
    written = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert [(entry["category_id"], entry["image_id"]) for entry in written] == [(90, "3"), ("0", "3"), (3.0, "3")]
    assert written[0]["bbox"] == [20.0, 10.0, 40.0, 20.0]
    assert coco_mask.decode(written[0]["segmentation"]).sum() == mask.sum()


def test_evaluate_detection_inside_crowd_is_no_false_alarm(register) -> None:
    crowd, single = np.zeros((2, HEIGHT, WIDTH), bool)
    crowd[:, 80:] = True
    single[10:60, 10:60] = True
    inside = np.zeros_like(crowd)
    inside[20:50, 100:130] = True
    content = random_json(0)
    content["annotations"] = [annotation_of(single, 3, 3, 1), annotation_of(crowd, 3, 3, 2, is_crowd=True)]
    register(content)
    with_inside = run({3: instances_of([single, inside], [0.5, 0.9], [1, 1])})
    elsewhere = run({3: instances_of([single, np.roll(inside, -50, axis=1)], [0.5, 0.9], [1, 1])})
    for task in ("bbox", "segm"):
        assert with_inside[task]["AP"] == pytest.approx(100.0)
        assert elsewhere[task]["AP"] == pytest.approx(50.0)


def test_evaluate_faulty_annotations_are_repaired_counted_and_do_not_mislead(register, caplog) -> None:
    single = np.zeros((HEIGHT, WIDTH), bool)
    single[10:60, 10:60] = True
    good = annotation_of(single, 3, 3, 0)
    bare = {key: good[key] for key in ("id", "image_id", "category_id", "segmentation")}
    content = random_json(0)
    content["annotations"] = [
        {**bare, "image_id": "3"},
        {**good, "id": 5, "image_id": 999},
        {**good, "id": 6, "category_id": 4},
        {**good, "id": 7, "segmentation": [[1, 1, 2, 2]]},
        {**good, "id": 8, "image_id": None},
    ]
    register(content)
    # An id of 0 reads as "unmatched" in the engines; the only usable annotation has it.
    results = run({3: instances_of([single], [0.5], [1])}, "pycocotools")
    assert results["segm"]["AP"] == pytest.approx(100.0)
    assert results["bbox"]["AP"] == pytest.approx(100.0)
    for said in ("does not list", "usable mask", "area missing", "iscrowd missing", "whole number"):
        assert said in caplog.text


def test_evaluate_image_given_twice_counts_once(register) -> None:
    content = random_json(3)
    register(content)
    predictions = random_predictions(content)
    evaluator = CocoEvaluator(NAME, settings())
    for _ in range(2):
        for image_id, instances in predictions.items():
            evaluator.process([{"image_id": image_id}], [{"instances": instances}])
    np.testing.assert_equal(evaluator.evaluate(), run(predictions))
    evaluator.reset()
    assert evaluator.evaluate()["bbox"]["AP"] == 0.0


def test_evaluate_missing_images_are_named(register, caplog) -> None:
    content = random_json(3)
    register(content)
    predictions = random_predictions(content)
    run({3: predictions[3]})
    assert "5 of 6 images" in caplog.text
    with pytest.raises(DatasetError, match="999"):
        run({999: predictions[3]})


def test_evaluate_masks_of_another_size_are_refused_with_both_sizes(register) -> None:
    content = random_json(3)
    content["images"][0].update(height=WIDTH, width=HEIGHT)
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 3]
    register(content)
    with pytest.raises(DatasetError, match=r"160 x 120.*120 x 160"):
        run({3: instances_of([np.ones((HEIGHT, WIDTH), bool)], [0.5], [1])})


def test_evaluate_class_beyond_the_set_is_refused(register) -> None:
    register(random_json(3))
    with pytest.raises(DatasetError, match="class 3"):
        run({3: instances_of([np.ones((HEIGHT, WIDTH), bool)], [0.5], [3])})


def test_evaluate_adds_boundary_ap_where_it_is_asked_for(register) -> None:
    content = random_json(3)
    register(content)
    predictions = random_predictions(content)
    cfg = settings()
    cfg.TEST.BOUNDARY_AP = True
    evaluator = CocoEvaluator(NAME, cfg)
    for image_id, instances in predictions.items():
        evaluator.process([{"image_id": image_id}], [{"instances": instances}])
    results = evaluator.evaluate()
    assert list(results) == ["bbox", "segm", "boundary"]
    assert results["boundary"].keys() == results["segm"].keys()
    assert 0 < results["boundary"]["AP"] < results["segm"]["AP"]
    without = run(predictions)
    np.testing.assert_equal({"bbox": results["bbox"], "segm": results["segm"]}, without)
    cfg.TEST.COCO_ENGINE = "pycocotools"
    with pytest.raises(ConfigError, match="knows no boundaries"):
        CocoEvaluator(NAME, cfg)


def test_evaluate_unknown_engine_is_refused(register) -> None:
    register(random_json(3))
    with pytest.raises(ConfigError, match="COCO_ENGINE"):
        run({3: instances_of([], [], [])}, "fast")


def test_evaluator_unreadable_json_is_a_dataset_error(register) -> None:
    path = Path(register(random_json(3)))
    path.write_text('{"images": [')
    with pytest.raises(DatasetError, match="not JSON"):
        run({})
    path.unlink()
    with pytest.raises(DatasetError, match="does not exist"):
        run({})
