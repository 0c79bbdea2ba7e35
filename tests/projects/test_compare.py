"""Comparisons: which trainings they are, what is gathered from them, and the command from end to end."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from projects.compare.plan import (
    CALIBRATION_ITERATIONS,
    CALIBRATION_WARM_UP,
    METHODS,
    SUITES,
    Budget,
    Entry,
    Settings,
    calibration_run,
    check_plan,
    choose_entries,
    iterations_of,
    read_entry,
    training_run,
)
from projects.compare.result import ReportSettings, compare
from projects.compare.study import read_curve, train_all
from projects.runs import Record, Run
from segzoo.data.scenes import generate_scenes
from segzoo.engine.stop import TrainingStopped
from segzoo.errors import ConfigError
from segzoo.report.content import Comparison
from tests.contract.toys import toy_config

NUM_IMAGES = 3


def words_of(run: Run) -> dict[str, str]:
    """Flags and keys of a run's command line -> their values."""
    words = [word for word in run.words if word != "--skip-audit"]
    return dict(zip(words[::2], words[1::2], strict=True))


@pytest.mark.parametrize("suite", list(SUITES))
def test_every_suite_has_a_config_of_every_method_whose_batch_may_be_set(suite: str) -> None:
    entries = choose_entries(suite, [], [])
    assert [entry.name for entry in entries] == list(METHODS)
    for entry in entries:
        cfg = read_entry(entry, Budget(max_iter=10, batch=3), Settings("o"))
        assert cfg.SOLVER.IMS_PER_BATCH == 3
        assert cfg.TEST.BOUNDARY_AP
        assert entry.short_config.startswith("configs/")


@pytest.mark.parametrize("suite", ["small", "scenes"])
def test_suites_for_small_machines_share_one_backbone(suite: str) -> None:
    configs = [read_entry(entry, Budget(max_iter=1), Settings("o")) for entry in choose_entries(suite, [], [])]
    assert {(cfg.MODEL.TIMM.NAME, cfg.MODEL.TIMM.WEIGHTS) for cfg in configs} == {("efficientnet_lite0", "package")}
    assert all("timm" in cfg.MODEL.BACKBONE.NAME for cfg in configs)


def test_choose_entries_takes_methods_and_own_configs() -> None:
    entries = choose_entries("small", ["orienmask"], ["mine=a/b.yaml", "c/other.yaml"])
    assert [(entry.name, Path(entry.config).name) for entry in entries] == [
        ("orienmask", "orienmask_EffLite0.yaml"),
        ("mine", "b.yaml"),
        ("other", "other.yaml"),
    ]
    assert [entry.name for entry in choose_entries("small", [], ["a.yaml"])] == ["a"]
    with pytest.raises(ConfigError, match="two models are named 'polarmask'"):
        choose_entries("small", ["polarmask"], ["polarmask=b.yaml"])
    with pytest.raises(ConfigError, match="unknown method 'yolact'"):
        choose_entries("small", ["yolact"], [])


def test_equal_iterations_of_unequal_batches_are_refused(tmp_path: Path) -> None:
    entries = choose_entries("scenes", ["polarmask", "fcosis"], [])
    settings = Settings(str(tmp_path))
    with pytest.raises(ConfigError, match="polarmask 8, fcosis 4"):
        check_plan(entries, Budget(max_iter=100), settings)
    check_plan(entries, Budget(max_iter=100, batch=4), settings)
    check_plan(entries, Budget(minutes=1), settings)


@pytest.mark.parametrize(
    ("suite", "words", "options", "message"),
    [
        ("small", (), (), "DATASETS.TRAIN is ()"),
        ("small", ("--train-json", "a.json", "--train-images", "a"), (), "--val-images, --val-json is missing"),
        ("scenes", (), ("DATASETS.VAL_FORMAT", "lvis"), "DATASETS.VAL_FORMAT lvis"),
        ("scenes", (), ("DATASETS.TEST", "('a', 'b')"), "DATASETS.TEST is ('a', 'b')"),
    ],
)
def test_data_that_cannot_be_compared_on_is_refused_before_any_training(
    tmp_path: Path, suite: str, words: tuple[str, ...], options: tuple[str, ...], message: str
) -> None:
    settings = Settings(str(tmp_path), words, (), options)
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_plan(choose_entries(suite, [], []), Budget(minutes=1), settings)


def test_models_of_different_data_are_refused(tmp_path: Path, repository: Path) -> None:
    own = str(repository / "configs" / "quick" / "polarmask_scenes.yaml")
    entries = choose_entries("papers", ["mask_rcnn"], [f"mine={own}"])
    with pytest.raises(ConfigError, match=r"different data: mask_rcnn .*; mine \('scenes-v1_train',\)"):
        check_plan(entries, Budget(minutes=1), Settings(str(tmp_path)))


def test_a_folder_of_other_trainings_or_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    entries, budget = choose_entries("scenes", ["polarmask"], []), Budget(max_iter=10)
    (tmp_path / "polarmask_1.json").write_text(json.dumps({"words": ["--config-file", "b.yaml"], "state": "done"}))
    with pytest.raises(ConfigError, match=r"holds another run: --config-file b\.yaml"):
        check_plan(entries, budget, Settings(str(tmp_path)))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        check_plan(entries, budget, Settings(str(tmp_path / "file")))


def test_suites_show_all_models_the_same_pixels(repository: Path) -> None:
    for suite in ("small", "scenes"):
        configs = [read_entry(entry, Budget(max_iter=1), Settings("o")) for entry in choose_entries(suite, [], [])]
        assert len({(cfg.INPUT.RESIZE, tuple(cfg.INPUT.FIXED_SIZE)) for cfg in configs}) == 1
        solvers = {(cfg.SOLVER.OPTIMIZER, cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY) for cfg in configs}
        assert len(solvers) == 1
    assert {cfg.SOLVER.IMS_PER_BATCH for cfg in map(_small, choose_entries("small", [], []))} == {8}


def _small(entry: Entry) -> CfgNode:
    return read_entry(entry, Budget(max_iter=1), Settings("o"))


def test_an_interruption_ends_the_comparison_and_a_failure_does_not(tmp_path: Path) -> None:
    entries, budget = choose_entries("scenes", ["polarmask", "orienmask"], []), Budget(max_iter=10)

    def interrupt(run: Run, output: str) -> Record:
        raise TrainingStopped("was interrupted")

    with pytest.raises(TrainingStopped):
        train_all(entries, budget, Settings(str(tmp_path)), do=interrupt, say=lambda _: None)

    def fail(run: Run, output: str) -> Record:
        raise ConfigError("is being worked on")

    trained = train_all(entries, budget, Settings(str(tmp_path)), do=fail, say=lambda _: None)
    assert [one.model.runs[0].error for one in trained] == ["is being worked on"] * 2


def test_report_only_without_trainings_writes_nothing(tmp_path: Path) -> None:
    entries = choose_entries("scenes", ["polarmask"], [])
    arguments = (entries, Budget(max_iter=10), Settings(str(tmp_path)), ReportSettings())
    with pytest.raises(ConfigError, match="no finished training"):
        compare(*arguments, trains=False, say=lambda _: None)
    with pytest.raises(ConfigError, match="--speed-batch 9 with --images 6"):
        compare(*arguments[:3], ReportSettings(speed_batches=(1, 9)), trains=False, say=lambda _: None)


def test_a_training_has_the_recipes_schedule_scaled_to_the_budget() -> None:
    (entry,) = choose_entries("scenes", ["polarmask"], [])
    settings = Settings("o", ("--train-json", "a.json"), ("--num-gpus", "2"), ("MODEL.FCOS.NUM_CONVS", "1"))
    run = training_run(entry, 7, 170, Budget(max_iter=170, batch=4, evaluations=3), settings)
    words = words_of(run)
    assert run.name == "polarmask_7"
    assert (words["SOLVER.MAX_ITER"], words["SOLVER.STEPS"], words["SEED"]) == ("170", "(120, 154)", "7")
    assert (words["SOLVER.IMS_PER_BATCH"], words["SOLVER.AUTO_SCALE_LR"]) == ("4", "True")
    assert words["TEST.EVAL_PERIOD"] == "57"
    assert words["TEST.BOUNDARY_AP"] == "True"
    assert (words["--train-json"], words["--num-gpus"], words["MODEL.FCOS.NUM_CONVS"]) == ("a.json", "2", "1")
    assert words_of(training_run(entry, 7, 170, Budget(max_iter=170), settings))["TEST.EVAL_PERIOD"] == "0"


def test_a_calibration_evaluates_nothing() -> None:
    (entry,) = choose_entries("scenes", ["polarmask"], [])
    data = ("--train-json", "a.json", "--train-images", "a", "--val-json", "b.json", "--val-images", "b")
    run = calibration_run(entry, Budget(minutes=1), Settings("o", data))
    words = words_of(run)
    assert "--skip-audit" in run.words
    assert (words["--train-json"], words["DATASETS.TEST"]) == ("a.json", "()")
    assert "--val-json" not in words


def write_metrics(folder: Path, lines: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_iterations_of_minutes_are_as_many_as_fit(tmp_path: Path) -> None:
    (entry,) = choose_entries("scenes", ["polarmask"], [])

    def calibrate(run: Run, output: str) -> Record:
        slow = [{"iteration": number, "time": 90.0} for number in range(1, CALIBRATION_WARM_UP)]
        usual = [
            {"iteration": number, "time": 0.5} for number in range(CALIBRATION_WARM_UP, CALIBRATION_ITERATIONS - 1)
        ]
        write_metrics(Path(output) / run.name, [*slow, *usual, {"iteration": CALIBRATION_ITERATIONS - 1, "time": 9.0}])
        return Record(state="done")

    assert iterations_of(entry, Budget(minutes=2), Settings(str(tmp_path)), do=calibrate) == 240
    assert iterations_of(entry, Budget(max_iter=33), Settings(str(tmp_path)), do=calibrate) == 33
    with pytest.raises(ConfigError, match=r"an iteration takes 0\.5 s"):
        iterations_of(entry, Budget(minutes=0.001), Settings(str(tmp_path)), do=calibrate)


def test_read_curve_adds_up_the_time_and_keeps_the_evaluations(tmp_path: Path) -> None:
    lines = [
        {"iteration": 0, "total_loss": 3.0, "loss_cls": 2.0, "loss_mask": 1.0, "lr": 0.1},
        {"iteration": 19, "total_loss": 2.0, "loss_cls": 1.5, "loss_mask": 0.5, "train_time": 60.0, "data_time": 9.0},
        {"iteration": 20, "segm/AP": 11.0, "bbox/AP": 12.0, "total_loss": 7.0, "train_time": 63.0},
        # Resumed: the time of this process begins at 0.
        {"iteration": 39, "total_loss": 1.0, "loss_cls": 0.75, "loss_mask": 0.25, "train_time": 57.0},
        {"iteration": 40, "segm/AP": 21.0, "bbox/AP": 22.0},
    ]
    write_metrics(tmp_path, lines)
    curve = read_curve(str(tmp_path / "metrics.json"))
    assert curve.iterations == [1, 20, 21, 40]
    assert curve.minutes == pytest.approx([0.0, 1.0, 1.05, 2.0])
    assert curve.losses["total_loss"] == [3.0, 2.0, 7.0, 1.0]
    assert curve.losses["loss_mask"] == [1.0, 0.5, 0.25]
    assert curve.evaluations == [(20, {"segm/AP": 11.0, "bbox/AP": 12.0}), (40, {"segm/AP": 21.0, "bbox/AP": 22.0})]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    for split, seed in (("train", 1), ("val", 2)):
        generate_scenes(str(folder), num_images=NUM_IMAGES, seed=seed, split=split)
    return folder


class FakeTrainings:
    """Leaves what a training would: a model at toy size with random weights, and detections made from the truth.

    shifts: name of a run -> pixels by which its detections are beside the objects; "fails" where it fails.
    """

    def __init__(self, scenes: Path, shifts: dict[str, int | str]) -> None:
        self.scenes, self.shifts = scenes, shifts

    def __call__(self, run: Run, output: str) -> Record:
        shift = self.shifts[run.name]
        if shift == "fails":
            return Record(list(run.words), "failed", error="exit code 3: loss_mask is nan")
        folder = Path(output) / run.name
        write_metrics(folder, [{"iteration": 19, "total_loss": 2.0, "loss_cls": 2.0, "train_time": 30.0}])
        name = "MaskRCNN" if "mask_rcnn" in run.name else "PolarMask"
        data = ["DATASETS.VAL_JSON", str(self.scenes / "val.json"), "DATASETS.VAL_IMAGES", str(self.scenes / "val")]
        cfg = toy_config(name, *data, "DATASETS.TEST", "('val_json',)", "SOLVER.IMS_PER_BATCH", "2")
        (folder / "config.yaml").write_text(cfg.dump())
        torch.save({"model": build_model(cfg).state_dict()}, folder / "model_final.pth")
        inference = folder / "inference" / "val_json"
        inference.mkdir(parents=True)
        results = {"segm": {"AP": 10.0 - int(shift), "AP50": None}, "bbox": {"AP": 20.0}}
        (inference / "metrics.json").write_text(json.dumps({"dataset": "val_json", "results": results}))
        (inference / "coco_instances_results.json").write_text(json.dumps(self.detections(int(shift))))
        return Record(list(run.words), "done", "abc", minutes=2.0)

    def detections(self, shift: int) -> list[dict[str, Any]]:
        from pycocotools import mask as coco_mask

        from segzoo.evaluation.ground_truth import load_ground_truth

        detections = []
        for number, annotation in enumerate(load_ground_truth(str(self.scenes / "val.json")).annotations):
            moved = np.roll(coco_mask.decode(annotation["segmentation"]), shift, axis=1)
            rle = coco_mask.encode(np.asfortranarray(moved))
            kept = {key: annotation[key] for key in ("image_id", "category_id", "bbox")}
            detections.append(
                {
                    **kept,
                    "score": 0.9 - 0.01 * number,
                    "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                }
            )
        return detections


ENTRIES = [
    Entry("polarmask", "PolarMask", "a.yaml"),
    Entry("mask_rcnn", "Mask R-CNN", "b.yaml"),
    Entry("other", "Other", "c.yaml"),
]


@pytest.fixture(scope="module")
def comparison(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    monkeypatch = pytest.MonkeyPatch()
    shifts: dict[str, int | str] = {"polarmask_1": 0, "mask_rcnn_1": 3, "other_1": "fails"}
    shifts |= {"polarmask_2": 1, "mask_rcnn_2": "fails", "other_2": "fails"}
    fake = FakeTrainings(scenes, shifts)
    monkeypatch.setattr("projects.compare.result.execute", fake)
    monkeypatch.setattr("projects.compare.study.training_run", lambda entry, seed, *_: Run(f"{entry.name}_{seed}", ()))
    monkeypatch.setattr("projects.compare.result.check_plan", lambda *_: None)
    try:
        return compare(
            ENTRIES,
            Budget(max_iter=20, batch=2, seeds=(1, 2)),
            Settings(str(tmp_path_factory.mktemp("output"))),
            ReportSettings(num_images=2, num_failures=4, speed_repeats=1, speed_batches=(1, 2)),
            say=lambda _: None,
        )
    finally:
        monkeypatch.undo()


def test_compare_keeps_failed_trainings_with_their_reason(comparison: Comparison) -> None:
    errors = {model.name: [run.error for run in model.runs] for model in comparison.models}
    assert [bool(error) for error in errors["mask_rcnn"]] == [False, True]
    assert all("loss_mask is nan" in error for error in errors["other"])
    assert errors["polarmask"] == ["", ""]
    polarmask, mask_rcnn, other = comparison.models
    assert (polarmask.mean("segm", "AP"), polarmask.spread("segm", "AP")) == (9.5, pytest.approx(0.5**0.5))
    assert (mask_rcnn.mean("segm", "AP"), mask_rcnn.spread("segm", "AP")) == (7.0, None)
    assert (other.mean("segm", "AP"), other.cost, other.speeds, other.curves) == (None, None, [], [])
    assert polarmask.runs[0].batch == 2
    assert polarmask.runs[0].commit == "abc"


def test_compare_measures_objects_curves_costs_and_speed_of_the_first_training(comparison: Comparison) -> None:
    polarmask, mask_rcnn, _ = comparison.models
    assert polarmask.mean_iou == 1.0
    assert polarmask.best_f1 == 1.0
    assert 0.5 < (mask_rcnn.mean_iou or 0) < 1
    curve = next(curve for curve in polarmask.curves if (curve.task, curve.iou) == ("segm", 0.0))
    assert np.mean(curve.precision) == pytest.approx(1.0)
    assert {curve.task for curve in polarmask.curves} == {"segm", "bbox"}
    assert polarmask.cost is not None
    assert polarmask.cost.parameters > 1e6
    assert mask_rcnn.cost is not None
    assert mask_rcnn.cost.image_size != polarmask.cost.image_size
    # A batch of two of two images is the one pair.
    assert [(speed.precision, speed.batch) for speed in polarmask.speeds] == [("fp32", 1), ("fp32", 2)]
    assert all(speed.whole_ms["median"] > 0 for speed in mask_rcnn.speeds)
    assert comparison.tasks == ["segm", "bbox"]
    num_objects = sum(comparison.class_counts.values())
    assert num_objects > NUM_IMAGES
    assert f"{NUM_IMAGES} images, {num_objects} objects" in dict(comparison.conditions)["size of it"]


def test_compare_shows_failures_by_their_loss(comparison: Comparison) -> None:
    polarmask, mask_rcnn, _ = comparison.models
    assert polarmask.failures == []
    assert len(mask_rcnn.failures) == 4
    losses = [failure.loss for failure in mask_rcnn.failures]
    assert losses == sorted(losses, reverse=True)
    worst = mask_rcnn.failures[0]
    assert worst.ious["polarmask"] == 1.0
    assert worst.loss == pytest.approx(1.0 - worst.ious["mask_rcnn"])
    assert [title.split(",")[0] for title, _ in worst.pictures] == ["object", "Mask R-CNN", "PolarMask"]
    assert all(picture[:2] == b"\xff\xd8" for _, picture in worst.pictures)


def test_compare_draws_the_same_images_through_every_finished_model(comparison: Comparison) -> None:
    assert len(comparison.gallery) == 2
    for image in comparison.gallery:
        assert image.truth[:2] == b"\xff\xd8"
        assert [row.model for row in image.rows] == ["polarmask", "mask_rcnn"]
        assert all(row.panels[0][0] == "found" for row in image.rows)


def test_compare_names_its_conditions(comparison: Comparison) -> None:
    conditions = dict(comparison.conditions)
    assert conditions["evaluated on"] == "val.json"
    assert conditions["budget"] == "20 iterations a model, 2 seeds"
    assert conditions["commit"] == "abc"
    # The trainings' own, which stand-ins have not written.
    assert conditions["device"] == "unknown device"
    assert "2 images of val_json, 1 turns" in comparison.speed_conditions
