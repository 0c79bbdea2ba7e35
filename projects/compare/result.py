"""From a list of models to everything that a report shows."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode

from projects.compare.pictures import add_failures, draw_gallery, gallery_records
from projects.compare.plan import Budget, Entry, Settings, check_plan
from projects.compare.study import (
    Trained,
    add_measurements,
    class_counts,
    conditions_of,
    final_weights,
    kinds_apart,
    load_truth,
    measured_tasks,
    train_all,
)
from projects.compare.timing import measure_speed
from projects.runs import execute, recorded
from projects.speed import usable_precisions
from segzoo.data.image_io import read_image
from segzoo.engine.environment import environment_of, environment_text
from segzoo.engine.predictor import Predictor
from segzoo.errors import ConfigError, SegZooError
from segzoo.evaluation.ground_truth import GroundTruth
from segzoo.report.content import Comparison


@dataclass(frozen=True)
class ReportSettings:
    """What is measured and shown beside the trainings.

    num_images: of the gallery. num_failures: of each model. speed_repeats: turns, 0 measures no speed. speed_batches:
    images at a time. precisions: of the speed, none = all that a GPU has, fp32 on a CPU.
    """

    title: str = ""
    num_images: int = 6
    num_failures: int = 8
    speed_repeats: int = 5
    speed_batches: tuple[int, ...] = (1,)
    precisions: tuple[str, ...] = ()


def compare(
    entries: Sequence[Entry],
    budget: Budget,
    settings: Settings,
    report: ReportSettings,
    *,
    trains: bool = True,
    say: Callable[[str], None] = print,
) -> Comparison:
    """Trains the models, unless it was done before, and measures them.

    Args:
        entries, budget, settings: what is compared.
        report: what is shown.
        trains: False takes the trainings that are there.
        say: is told how it goes.

    Raises:
        ConfigError: see `check_plan`; nothing was trained and nothing shall be.
        TrainingStopped: a training was interrupted; the same call goes on with it.
    """
    check_plan(entries, budget, settings)
    _check_report(report)
    trained = train_all(entries, budget, settings, do=execute if trains else recorded, say=say)
    models = [one.model for one in trained]
    finished = [one for one in trained if one.folder]
    if not trains and not finished:
        raise ConfigError(f"{settings.output} has no finished training of these", "leave --report-only out")
    truth = None
    comparison = Comparison(report.title or _title(finished), [], models, {}, measured_tasks(models))
    if finished:
        cfg = finished[0].cfg
        assert cfg is not None
        truth = load_truth(cfg)
        _measure(comparison, finished, truth, report, cfg, say)
    comparison.notes += kinds_apart(finished)
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    comparison.conditions = conditions_of(trained, budget, truth, date)
    return comparison


def _title(finished: Sequence[Trained]) -> str:
    names = [name for one in finished[:1] if one.cfg is not None for name in one.cfg.DATASETS.TEST]
    return f"Instance segmentation on {', '.join(names)}" if names else "Instance segmentation"


def _check_report(report: ReportSettings) -> None:
    """Refuses what would fail after hours of training."""
    too_large = [batch for batch in report.speed_batches if batch > report.num_images]
    if report.speed_repeats and too_large:
        raise ConfigError(
            f"--speed-batch {too_large[0]} with --images {report.num_images}",
            "speed is measured on the gallery's images: give as many at least",
        )
    if report.speed_repeats and report.precisions:
        usable_precisions(report.precisions, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def _measure(
    comparison: Comparison,
    finished: Sequence[Trained],
    truth: GroundTruth,
    report: ReportSettings,
    cfg: CfgNode,
    say: Callable[[str], None],
) -> None:
    """Fills everything but the trainings' own results; a part that fails leaves a note instead."""
    for one in finished:
        say(f"{one.entry.title}: curves, objects and costs")
        add_measurements(one, truth)
    comparison.class_counts = class_counts(truth)
    dataset = cfg.DATASETS.TEST[0]
    records = gallery_records(truth, dataset, report.num_images)
    predictors = {one.entry.name: _predictor(one) for one in finished}
    if report.speed_repeats and records:
        say("speed of all models in turns")
        with _noting(comparison, "speed"):
            _measure_speed(comparison, predictors, records, report, dataset)
    say("pictures")
    with _noting(comparison, "gallery"):
        comparison.gallery = draw_gallery(finished, predictors, truth, dataset, records)
    with _noting(comparison, "failures"):
        add_failures(finished, truth, dataset, report.num_failures)


@contextmanager
def _noting(comparison: Comparison, part: str) -> Iterator[None]:
    """An image that cannot be read, or memory that is not enough, must not cost a report of hours."""
    try:
        yield
    except (SegZooError, OSError, RuntimeError, ValueError) as error:
        text = error.message if isinstance(error, SegZooError) else f"{type(error).__name__}: {error}"
        comparison.notes.append(f"The {part} could not be made: {text}")


def _measure_speed(
    comparison: Comparison,
    predictors: Mapping[str, Predictor],
    records: Sequence[Mapping[str, Any]],
    report: ReportSettings,
    dataset: str,
) -> None:
    device = torch.device(next(iter(predictors.values())).cfg.MODEL.DEVICE)
    images = [read_image(record["file_name"], "BGR") for record in records]
    precisions, skipped = usable_precisions(report.precisions, device)
    batches = [batch for batch in report.speed_batches if batch <= len(images)]
    comparison.notes += skipped + [
        f"No speed of batches of {batch}: the set has {len(images)} images with objects"
        for batch in report.speed_batches
        if batch > len(images)
    ]
    comparison.notes += measure_speed(
        comparison.models,
        predictors,
        images,
        device=device,
        batches=batches,
        precisions=precisions,
        repeats=report.speed_repeats,
    )
    environment = environment_of(device)
    comparison.speed_conditions = (
        f"{len(images)} images of {dataset}, {report.speed_repeats} turns of all models, from the decoded image to run "
        f"lengths on the host; weights at the end of the first training; {environment_text(environment)}"
    )
    if environment["tf32"] and environment["tf32"]["convolutions"]:
        comparison.speed_conditions += "; fp32 with convolutions in TF32"


def _predictor(trained: Trained) -> Predictor:
    assert trained.cfg is not None
    cfg = trained.cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = final_weights(trained)
    return Predictor(cfg)
