"""Comparisons of models that do not exist, with all that a report can show, or with little of it."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from segzoo.evaluation.stages import STAGES
from segzoo.report.content import (
    Comparison,
    Cost,
    Curve,
    Failure,
    GalleryImage,
    GalleryRow,
    Model,
    Speed,
    TrainedRun,
    TrainingCurve,
)

NAMES = {"polarmask": "PolarMask", "fcosis": "FCOSIS", "mask_rcnn": "Mask R-CNN"}
CLASSES = ("leaf", "star", "crescent")
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def picture(value: int) -> bytes:
    """JPEG bytes of a grey image."""
    return cv2.imencode(".jpg", np.full((24, 36, 3), value, dtype=np.uint8))[1].tobytes()


def results(ap: float, classes: Sequence[str], tasks: Sequence[str]) -> dict[str, dict[str, float | None]]:
    """Metrics around an AP; large objects are not there."""
    metrics = {name: ap + place for place, name in enumerate(METRICS)}
    by_class = {f"AP-{name}": ap + 10 * place for place, name in enumerate(classes)}
    return {task: {**metrics, **by_class, "APl": None, "ARl": None} for task in tasks}


def run(seed: int, ap: float, classes: Sequence[str] = CLASSES, tasks: Sequence[str] = ("segm", "bbox")) -> TrainedRun:
    """A training of 100 iterations of 8 with an evaluation in between."""
    losses = {"total_loss": [3.0, 2.0, 1.0], "loss_cls": [1.0, 0.5, 0.0], "loss_mask": [2.0, 1.5, 1.0]}
    evaluations = [(50, {f"{tasks[0]}/AP": ap / 2}), (100, {f"{tasks[0]}/AP": ap})]
    curve = TrainingCurve([1, 50, 100], [0.0, 1.0, 2.0], losses, evaluations)
    return TrainedRun(seed, 100, 8, 3.25, 2.0, "abc1234", results(ap, classes, tasks), curve)


def model(name: str, title: str, aps: Sequence[float], milliseconds: float, classes: Sequence[str] = CLASSES) -> Model:
    """A model with a training for each AP."""
    stages = {stage: {"median": milliseconds / len(STAGES), "p95": milliseconds} for stage in STAGES}
    speeds = [
        Speed("fp32", batch, {"median": milliseconds, "p95": milliseconds + 9}, stages, 12.5, 321.0) for batch in (1, 4)
    ]
    recall = np.linspace(0, 1, 101).tolist()
    curves = [Curve("segm", iou, recall, [0.9 - 0.5 * value for value in recall]) for iou in (0.5, 0.75, 0.0)]
    unit = "colour group" if name == "fcosis" else ""
    ious = {other: 0.9 - 0.3 * (other == name) for other in NAMES}
    failure = Failure(
        "7.png", 4711, "star", 1234.0, ious, 0.3, [("object", picture(9)), ("PolarMask, IoU", picture(8))]
    )
    return Model(
        name,
        title,
        f"configs/{name}.yaml",
        [run(seed, ap, classes) for seed, ap in enumerate(aps, start=1)],
        Cost((256, 320), 12_340_000, 12_000_000, 5.678, unit, 1.25 if unit else 0.0),
        speeds,
        curves,
        0.654,
        0.25,
        0.777,
        [failure],
    )


def comparison(classes: Sequence[str] = CLASSES) -> Comparison:
    """Three models, two seeds; a training of the last has failed."""
    models = [
        model("polarmask", "PolarMask", (30.0, 32.0), 50.0, classes),
        model("fcosis", "FCOSIS", (40.0, 41.0), 100.0, classes),
        model("mask_rcnn", "Mask R-CNN", (35.0,), 200.0, classes),
    ]
    models[2].runs.append(TrainedRun(2, 0, 0, error="exit code 3: loss_mask is not finite"))
    rows = [GalleryRow(one.name, [("found", picture(1)), ("map", picture(2))]) for one in models]
    return Comparison(
        "Instance segmentation on made-up",
        [("evaluated on", "made-up"), ("budget", "100 iterations a model, 2 seeds"), ("device", "cpu, 1 thread(s)")],
        models,
        {name: 10 + place for place, name in enumerate(classes)},
        ["segm", "bbox"],
        "6 images, 5 turns",
        [GalleryImage("3.png", picture(3), rows)],
        ["the machine was not even"],
    )


def bare(*errors: str) -> Comparison:
    """Models of which nothing is known but that their trainings failed."""
    models = [
        Model(f"m{place}", f"Model {place}", "c.yaml", [TrainedRun(1, 0, 0, error=error)])
        for place, error in enumerate(errors)
    ]
    return Comparison("Nothing", [("budget", "1 minutes of training a model, one seed")], models, {}, [])
