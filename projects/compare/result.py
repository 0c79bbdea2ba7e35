"""From a list of models to everything that a report shows."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode

from projects.compare.pictures import add_failures, draw_gallery, gallery_records
from projects.compare.plan import Budget, Entry, Settings
from projects.compare.study import (
    Trained,
    add_measurements,
    class_counts,
    conditions_of,
    final_weights,
    load_truth,
    measured_tasks,
    train_all,
)
from projects.compare.timing import measure_speed
from projects.runs import Record, Run, execute, read_record
from projects.speed import usable_precisions
from segzoo.data.image_io import read_image
from segzoo.engine.predictor import Predictor
from segzoo.evaluation.ground_truth import GroundTruth
from segzoo.evaluation.speed import conditions
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
        TrainingError: a training was interrupted; the same call goes on with it.
    """
    trained = train_all(entries, budget, settings, do=execute if trains else recorded, say=say)
    models = [one.model for one in trained]
    finished = [one for one in trained if one.folder]
    truth = None
    comparison = Comparison(report.title or _title(finished), [], models, {}, measured_tasks(models))
    if finished:
        cfg = finished[0].cfg
        assert cfg is not None
        truth = load_truth(cfg)
        _measure(comparison, finished, truth, report, cfg, say)
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    comparison.conditions = conditions_of(trained, budget, truth, conditions(_device(finished)), date)
    return comparison


def recorded(run: Run, output: str) -> Record:
    """What became of a run, without doing it."""
    record = read_record(os.path.join(output, f"{run.name}.json")) or Record(state="failed", error="was not trained")
    if record.words and record.words != list(run.words):
        return Record(state="failed", error="was trained with other options")
    if record.state == "running":
        return Record(state="failed", error="did not come to its end")
    return record


def _title(finished: Sequence[Trained]) -> str:
    names = [name for one in finished[:1] if one.cfg is not None for name in one.cfg.DATASETS.TEST]
    return f"Instance segmentation on {', '.join(names)}" if names else "Instance segmentation"


def _device(finished: Sequence[Trained]) -> torch.device:
    cfg = finished[0].cfg if finished else None
    return torch.device(cfg.MODEL.DEVICE if cfg is not None else "cpu")


def _measure(
    comparison: Comparison,
    finished: Sequence[Trained],
    truth: GroundTruth,
    report: ReportSettings,
    cfg: CfgNode,
    say: Callable[[str], None],
) -> None:
    """Fills everything but the trainings' own results."""
    for one in finished:
        say(f"{one.entry.title}: curves, objects and costs")
        add_measurements(one, truth)
    comparison.class_counts = class_counts(truth)
    dataset = cfg.DATASETS.TEST[0]
    records = gallery_records(truth, dataset, report.num_images)
    device = _device(finished)
    predictors = {one.entry.name: _predictor(one) for one in finished}
    if report.speed_repeats and records:
        say("speed of all models in turns")
        images = [read_image(record["file_name"], "BGR") for record in records]
        precisions, skipped = usable_precisions(report.precisions, device)
        batches = [batch for batch in report.speed_batches if batch <= len(images)]
        comparison.notes += skipped + measure_speed(
            comparison.models,
            predictors,
            images,
            device=device,
            batches=batches,
            precisions=precisions,
            repeats=report.speed_repeats,
        )
        comparison.speed_conditions = (
            f"{len(images)} images of {dataset}, {report.speed_repeats} turns of all models, from the decoded image to "
            "run lengths on the host; weights at the end of the first training"
        )
    say("pictures")
    comparison.gallery = draw_gallery(finished, predictors, truth, records)
    add_failures(finished, truth, dataset, report.num_failures)


def _predictor(trained: Trained) -> Predictor:
    assert trained.cfg is not None
    cfg = trained.cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = final_weights(trained)
    return Predictor(cfg)
