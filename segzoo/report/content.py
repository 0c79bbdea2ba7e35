"""What a comparison of models has found: plain values, to be written as json, Markdown or a page.

Whoever measures fills these; `segzoo.report.page` and `segzoo.report.markdown` only show them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

# Task -> metric -> percent; None where there is nothing to measure (a class or a size that does not occur).
Metrics = Mapping[str, Mapping[str, float | None]]


@dataclass
class TrainingCurve:
    """A training, as it was logged.

    iterations: that a line was written after. minutes: of training up to there, evaluations left out. losses: name ->
    value at each of `iterations`; "total_loss" is their sum. evaluations: (iteration, "segm/AP" -> percent).
    """

    iterations: list[int] = field(default_factory=list)
    minutes: list[float] = field(default_factory=list)
    losses: dict[str, list[float]] = field(default_factory=dict)
    evaluations: list[tuple[int, dict[str, float]]] = field(default_factory=list)


@dataclass
class TrainedRun:
    """One training and its evaluation.

    iterations, batch: of the schedule; their product is the number of images seen. minutes: of everything; None where
    unknown. training_minutes: of the iterations alone. commit: of the program. error: why there are no results, or "".
    """

    seed: int
    iterations: int
    batch: int
    minutes: float | None = None
    training_minutes: float | None = None
    commit: str = ""
    results: Metrics = field(default_factory=dict)
    curve: TrainingCurve = field(default_factory=TrainingCurve)
    error: str = ""


@dataclass
class Speed:
    """Times in ms an image, see `segzoo.evaluation.speed.SpeedRow`.

    whole_ms, stages_ms: "median" and "p95". detections: found an image. peak_mib: the model's values and what a batch
    adds at its peak.
    """

    precision: str
    batch: int
    whole_ms: dict[str, float]
    stages_ms: dict[str, dict[str, float]]
    detections: float
    peak_mib: float


@dataclass
class Cost:
    """Size and multiply-accumulates for one image of `image_size` (height, width).

    object_unit, object_gmac: what is done once more for every further object or group of them; "" and 0 without such.
    """

    image_size: tuple[int, int]
    parameters: int
    trainable_parameters: int
    gmac: float
    object_unit: str = ""
    object_gmac: float = 0.0
    notes: list[str] = field(default_factory=list)


@dataclass
class Curve:
    """Precision over recall, the mean over classes, of one run (the first seed's).

    task: "bbox" or "segm". iou: the threshold, 0 for the mean of 0.50 .. 0.95. recall, precision: 0 .. 1.
    """

    task: str
    iou: float
    recall: list[float]
    precision: list[float]


@dataclass
class Failure:
    """An object that a model finds badly.

    image: file name. annotation_id: as in the json. ious: of every model, by name, with the best detection of the
    object's class, 0 without any. loss: the best of them less this model's. picture: (name of a panel, JPEG bytes): the
    object, and what this model and the best one have found there.
    """

    image: str
    annotation_id: int
    class_name: str
    area_px: float
    ious: dict[str, float]
    loss: float
    pictures: list[tuple[str, bytes]] = field(default_factory=list)


@dataclass
class Model:
    """A model of the comparison with all that was measured of it.

    name: such as "polarmask". config: the file. mean_iou: of all objects with the best detection of their class above
    `score_threshold`. failures: with the largest loss of IoU first. notes: what a reader must know. recipe: optimiser
    and input in words. score_threshold, best_f1: the score above which precision and recall at IoU 0.5 balance best,
    and their harmonic mean there (0..1), None where nothing is right; pictures show the detections above it.
    """

    name: str
    title: str
    config: str
    runs: list[TrainedRun] = field(default_factory=list)
    cost: Cost | None = None
    speeds: list[Speed] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    mean_iou: float | None = None
    failures: list[Failure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    recipe: str = ""
    score_threshold: float = 0.0
    best_f1: float | None = None

    def values(self, task: str, metric: str) -> list[float]:
        """The metric of all runs that have it, percent."""
        found = [run.results.get(task, {}).get(metric) for run in self.runs]
        return [value for value in found if value is not None and math.isfinite(value)]

    def mean(self, task: str, metric: str) -> float | None:
        """Mean over seeds, percent; None where no run has the metric."""
        values = self.values(task, metric)
        return statistics.fmean(values) if values else None

    def spread(self, task: str, metric: str) -> float | None:
        """Standard deviation over seeds, percent; None of fewer than two."""
        values = self.values(task, metric)
        return statistics.stdev(values) if len(values) > 1 else None


@dataclass
class GalleryRow:
    """An image through one model: (title, JPEG bytes) of what it found and of the maps that its masks come from."""

    model: str
    panels: list[tuple[str, bytes]]


@dataclass
class GalleryImage:
    """One image through every model; `truth` are JPEG bytes of the image with its annotations drawn."""

    image: str
    truth: bytes
    rows: list[GalleryRow] = field(default_factory=list)


@dataclass
class Comparison:
    """All that a report shows.

    title: of the page. conditions: (what, value) that all figures belong to: data, budget, device, versions, date.
    speed_conditions: one sentence for the speed table. tasks: measured ones in their order, of segm, boundary, bbox.
    class_counts: class -> annotated objects of the evaluated set, without crowds.
    """

    title: str
    conditions: list[tuple[str, str]]
    models: list[Model]
    class_counts: dict[str, int]
    tasks: list[str]
    speed_conditions: str = ""
    gallery: list[GalleryImage] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for json, without the pictures."""
        values = asdict(self)
        del values["gallery"]
        for model in values["models"]:
            for failure in model["failures"]:
                del failure["pictures"]
        return values


def main_task(tasks: Sequence[str]) -> str:
    """The task that models are ranked by: masks where they are measured."""
    return "segm" if "segm" in tasks else "bbox"
