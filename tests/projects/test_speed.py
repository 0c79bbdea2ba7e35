"""Every model's stages: all of a prediction belongs to one, each stage is found, and looking changes nothing."""

from __future__ import annotations

import json
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import projects.speed
from projects.catalog import CONFIGS, MAIN_CONFIGS
from projects.speed import FUNCTIONS, build_predictor, fill_with_detections, make_subject, prepare_untrained
from segzoo.engine.predictor import Predictor
from segzoo.evaluation.stages import STAGES, StageClock, watched
from tests.contract.toys import MODELS, WITHOUT_MASKS, toy_config
from tools import benchmark as command

CPU = torch.device("cpu")
# As many as small images have room for after NMS.
MAX_DETECTIONS = 8
SMALL = ("INPUT.MIN_SIZE_TEST", 96, "INPUT.MAX_SIZE_TEST", 128, "TEST.DETECTIONS_PER_IMAGE", MAX_DETECTIONS)
IMAGES = projects.speed._images("", (90, 120), 2)


def make_predictor(name: str) -> Predictor:
    torch.manual_seed(0)
    predictor = build_predictor(toy_config(name, *SMALL), "", CPU)
    prepare_untrained(predictor, IMAGES[0])
    return predictor


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_stage_of_every_model_is_found_and_all_of_its_time_belongs_to_one(name: str) -> None:
    predictor = make_predictor(name)
    fill_with_detections(predictor, IMAGES)
    subject = make_subject(name, predictor, IMAGES, "fp32")
    expected = subject.predict(StageClock(CPU))
    clock = StageClock(CPU)
    with watched(clock, subject.modules, subject.functions):
        start = time.perf_counter()
        found = subject.predict(clock)
        whole_ms = (time.perf_counter() - start) * 1000
    spent = clock.milliseconds()
    missing = {"masks", "RLE", "neck"} if name in WITHOUT_MASKS else {"neck"}
    assert {stage for stage in STAGES if spent.get(stage, 0.0) > 0} >= {*STAGES} - missing
    assert sum(spent.values()) == pytest.approx(whole_ms, rel=0.03)
    for one, other in zip(found, expected, strict=True):
        assert len(one) == len(other) > 0
        assert torch.equal(one.pred_boxes.tensor, other.pred_boxes.tensor)
        if one.has("pred_masks"):
            assert one.pred_masks.rles == other.pred_masks.rles


def test_looking_costs_next_to_nothing() -> None:
    predictor = make_predictor("PolarMask")
    fill_with_detections(predictor, IMAGES)
    subject = make_subject("PolarMask", predictor, IMAGES, "fp32")
    clock = StageClock(CPU)
    with watched(clock, subject.modules, subject.functions):
        subject.predict(clock)
    num_marks, whole_ms = len(clock.marks), sum(clock.milliseconds().values())
    other = StageClock(CPU)
    start = time.perf_counter()
    for _ in range(1000):
        other.enter("heads")
        other.leave()
    mark_ms = (time.perf_counter() - start) / 2
    assert num_marks * mark_ms < 0.02 * whole_ms


@pytest.mark.parametrize("name", ["PolarMask", "FCOSIS", "CenterMask", "OrienMask", "MaskRCNN"])
def test_fill_keeps_the_best_detections_and_spares_the_others(name: str) -> None:
    predictor = make_predictor(name)
    projects.speed.set_score_threshold(predictor.model, 0.0)
    best = [predictor(image) for image in IMAGES]
    threshold = fill_with_detections(predictor, IMAGES)
    assert threshold > 0
    for image, expected in zip(IMAGES, best, strict=True):
        found = predictor(image)
        assert len(found) == MAX_DETECTIONS
        assert torch.equal(found.scores, expected.scores)
        assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)


def test_fill_without_enough_candidates_is_zero() -> None:
    predictor = make_predictor("OrienMask")
    rule = predictor.model.decode_rule
    predictor.model.decode_rule = rule._replace(pre_nms_topk=5)
    assert fill_with_detections(predictor, IMAGES) == 0.0


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("name", ["PolarMask", "CenterMaskFCOS", "CenterMask-stacks", "OrienMask", "FCOSIS"])
def test_untrained_networks_stay_finite_in_every_precision(name: str, precision: str) -> None:
    if projects.speed.can_compute(precision, CPU):
        pytest.skip(f"torch has no {precision} on a CPU")
    predictor = make_predictor(name)
    fill_with_detections(predictor, IMAGES)
    found = make_subject(name, predictor, IMAGES, precision).predict(StageClock(CPU))
    assert all(len(one) > 0 and torch.isfinite(one.scores).all() for one in found)


def test_untrained_heads_see_objects_of_the_usual_size() -> None:
    predictor = make_predictor("FCOS")
    fill_with_detections(predictor, IMAGES)
    boxes = predictor(np.zeros((96, 128, 3), dtype=np.uint8)).pred_boxes.tensor
    sides = boxes[:, 2:] - boxes[:, :2]
    assert 30 < sides.median() <= 96


def test_functions_of_stages_are_found_where_they_are_called() -> None:
    # A name that nothing calls any more would count as decoding without a word.
    from segzoo.evaluation.stages import _places

    for functions in FUNCTIONS.values():
        assert all(_places(function) for function in functions)


def test_default_configs_exist() -> None:
    assert all((CONFIGS / name).is_file() for name in MAIN_CONFIGS)


OPTIONS = ["--opts", "INPUT.FIXED_SIZE", "(64, 96)", "MODEL.DEVICE", "cpu"]
CONFIG = str(CONFIGS / "orienmask_EffLite0.yaml")


def test_benchmark_speed_prints_a_table_and_json(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacks = projects.speed.can_compute
    monkeypatch.setattr(
        projects.speed, "can_compute", lambda name, device: "no fp16 here" if name == "fp16" else lacks(name, device)
    )
    image = tmp_path / "image.png"
    cv2.imwrite(str(image), np.full((70, 100, 3), 90, dtype=np.uint8))
    words = ["speed", "--config-file", CONFIG, "--batch", "1", "2", "--precision", "fp32", "fp16", "--fill"]
    code = command.main([*words, "--repeats", "1", "--warm-up", "1", "--image", str(image), "--json", *OPTIONS])
    assert code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "skipped: no fp16 here"
    assert [line.split()[:3] for line in lines if line.startswith("orienmask_EffLite0.yaml ")] == [
        ["orienmask_EffLite0.yaml", "fp32", "1"],
        ["orienmask_EffLite0.yaml", "fp32", "2"],
    ]
    result = json.loads(lines[-1])
    assert (result["image_size"], result["weights"], result["filled"]) == ([70, 100], "random", True)
    assert result["skipped"] == ["no fp16 here"]
    assert {row["batch"]: set(row["stages_ms"]) for row in result["rows"]} == {1: {*STAGES}, 2: {*STAGES}}
    assert all(row["whole_ms"]["p95"] >= row["whole_ms"]["median"] > 0 for row in result["rows"])
    assert result["rows"][0]["detections_per_image"] == 100


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--batch", "0"], "--batch [0]"),
        (["--warm-up", "0"], "--warm-up 0"),
        (["--repeats", "0"], "--repeats 0"),
        (["--weights", "a.pth"], "1 --weights for 0 --config-file"),
        (["--image", "absent.png", "--image-size", "8", "8"], "beside --image"),
        (["--image", "absent.png"], "absent.png"),
        (["--config-file", "absent.yaml"], "absent.yaml"),
        (["--config-file", CONFIG, "--weights", "absent.pth"], "absent.pth"),
        (["--device", "abacus"], "abacus"),
    ],
)
def test_benchmark_speed_bad_input_ends_with_code_2(
    words: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["speed", *words, "--json"]) == 2
    captured = capsys.readouterr()
    assert text in captured.err
    assert text in json.loads(captured.out.splitlines()[-1])["error"]


def test_benchmark_speed_without_any_precision_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projects.speed, "can_compute", lambda name, device: f"no {name} here")
    assert command.main(["speed", "--config-file", CONFIG, "--precision", "fp16"]) == 2
    assert "no fp16 here" in capsys.readouterr().err
