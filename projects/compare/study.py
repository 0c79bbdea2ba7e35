"""Trains every model under the budget and gathers what the trainings left: results, curves, objects, costs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from detectron2.config import CfgNode

from projects import get_cfg
from projects.compare.plan import Budget, Entry, Settings, iterations_of, training_run
from projects.costs import count_config
from projects.runs import Record, Run, data_texts, execute, read_metrics
from segzoo.config import merge_config
from segzoo.data.coco_json import lossless_int
from segzoo.data.registration import load_metadata
from segzoo.engine.checkpoint import FINAL_NAME
from segzoo.engine.environment import environment_text, read_environment
from segzoo.engine.setup import CONFIG_NAME, register_datasets
from segzoo.engine.stop import TrainingStopped
from segzoo.errors import ConfigError, SegZooError
from segzoo.evaluation.coco import RESULTS_FILE, box_detection, mask_detection
from segzoo.evaluation.curves import precision_curves
from segzoo.evaluation.ground_truth import GroundTruth, load_ground_truth
from segzoo.evaluation.objects import FoundObjects, best_threshold, find_objects
from segzoo.report.content import Cost, Curve, Model, TrainedRun, TrainingCurve

# Tasks in the order in which they are shown.
TASKS = ("segm", "boundary", "bbox")


@dataclass
class Trained:
    """A model with its trainings; `found` and `cfg` are those of the first seed that came to an end.

    folder: of that training, "" without one. detections: COCO results with ids as whole numbers.
    """

    entry: Entry
    model: Model
    folder: str = ""
    cfg: CfgNode | None = None
    detections: list[dict[str, Any]] = field(default_factory=list)
    found: FoundObjects | None = None

    @property
    def iou_type(self) -> str:
        """What its objects are compared by: masks where they were measured, else boxes."""
        return "segm" if any("segm" in run.results for run in self.model.runs) else "bbox"


def train_all(
    entries: Sequence[Entry],
    budget: Budget,
    settings: Settings,
    *,
    do: Callable[[Run, str], Record] = execute,
    say: Callable[[str], None] = print,
) -> list[Trained]:
    """All trainings, seed by seed, so that the models are comparable at any time; a failed one stops no other.

    Args:
        entries, budget, settings: what is compared.
        do: does a run.
        say: is told how it goes, a line a training.
    """
    trained = {entry.name: Trained(entry, Model(entry.name, entry.title, entry.short_config)) for entry in entries}
    for seed in budget.seeds:
        for entry in entries:
            own = trained[entry.name]
            say(f"{entry.title}, seed {seed}: log in {os.path.join(settings.output, f'{entry.name}_{seed}')}.log")
            run = _train(entry, seed, budget, settings, do)
            own.model.runs.append(run)
            ap = run.results.get("segm", run.results.get("bbox", {})).get("AP")
            ending = run.error or f"AP {'-' if ap is None else f'{ap:.1f}'}, {run.minutes:.1f} minutes"
            say(f"{entry.title}, seed {seed}: {run.iterations} iterations of {run.batch}: {ending}")
            if not run.error and not own.folder:
                own.folder = os.path.join(settings.output, f"{entry.name}_{seed}")
                own.cfg = _read_config(own.folder)
    return list(trained.values())


def _train(entry: Entry, seed: int, budget: Budget, settings: Settings, do: Callable[[Run, str], Record]) -> TrainedRun:
    run = TrainedRun(seed, budget.max_iter, budget.batch)
    try:
        run.iterations = iterations_of(entry, budget, settings, do=do)
        training = training_run(entry, seed, run.iterations, budget, settings)
        record, folder = do(training, settings.output), os.path.join(settings.output, training.name)
        run.minutes, run.commit = record.minutes, record.commit
        if record.state != "done":
            raise ConfigError(record.error, f"see {folder}.log; the same command tries it again")
        run.batch = int(_read_config(folder).SOLVER.IMS_PER_BATCH)
        run.results = read_metrics(folder)["results"]
        run.curve = read_curve(os.path.join(folder, "metrics.json"))
        run.training_minutes = run.curve.minutes[-1] if run.curve.minutes else None
    except TrainingStopped:
        # Whoever asked for the end means all of it.
        raise
    except SegZooError as error:
        run.error = error.message
    return run


def _read_config(folder: str) -> CfgNode:
    return merge_config(get_cfg(), os.path.join(folder, CONFIG_NAME))


def read_curve(path: str) -> TrainingCurve:
    """What a training wrote down: losses and times of every logged iteration, and evaluations.

    Args:
        path: metrics.json of the training; its "train_time" begins anew where the training was resumed.
    """
    curve, seconds, last, last_time = TrainingCurve(), 0.0, -1, 0.0
    with open(path, encoding="utf-8") as stream:
        lines = [json.loads(line) for line in stream]
    for line in lines:
        metrics = {key: value for key, value in line.items() if "/" in key and key.split("/")[0] in TASKS}
        if metrics:
            curve.evaluations.append((int(line["iteration"]), metrics))
        if "total_loss" not in line or int(line["iteration"]) <= last:
            continue
        own_time = line.get("train_time", last_time)
        seconds += own_time - last_time if own_time >= last_time else own_time
        last, last_time = int(line["iteration"]), own_time
        curve.iterations.append(last + 1)
        curve.minutes.append(seconds / 60)
        for key, value in line.items():
            if key == "total_loss" or key.startswith("loss_"):
                curve.losses.setdefault(key, []).append(value)
    return curve


def load_truth(cfg: CfgNode) -> GroundTruth:
    """The annotations of the set that a training was evaluated on."""
    register_datasets(cfg)
    metadata = load_metadata(cfg.DATASETS.TEST[0])
    return load_ground_truth(metadata.json_file, metadata.get("image_root") or "")


def add_measurements(trained: Trained, truth: GroundTruth) -> None:
    """Reads the detections of the first training; fills curves, objects, threshold and costs of the model.

    Args:
        trained: with a folder.
        truth: see `load_truth`.
    """
    model, cfg = trained.model, trained.cfg
    assert cfg is not None
    trained.detections = read_detections(os.path.join(trained.folder, "inference", cfg.DATASETS.TEST[0], RESULTS_FILE))
    for task in ("segm", "bbox"):
        if task == "segm" and trained.iou_type != "segm":
            continue
        as_measured = mask_detection if task == "segm" else box_detection
        detections = [as_measured(one) for one in trained.detections]
        curves = precision_curves(truth, detections, task, cfg.TEST.COCO_ENGINE)
        model.curves += [Curve(task, iou, recall.tolist(), values.tolist()) for iou, (recall, values) in curves.items()]
    usable = [one for one in trained.detections if trained.iou_type == "bbox" or "segmentation" in one]
    model.score_threshold, best_f1 = best_threshold(find_objects(truth, usable, trained.iou_type))
    model.best_f1 = best_f1 or None
    # Only what is worth showing: a method that gives out a hundred guesses an image finds everything somehow.
    trained.detections = [one for one in usable if one["score"] >= model.score_threshold]
    trained.found = find_objects(truth, trained.detections, trained.iou_type)
    model.mean_iou = _mean(list(trained.found.ious.values()))
    model.cost = cost_of(cfg, median_size(truth))
    model.recipe = recipe_of(cfg)


def read_detections(path: str) -> list[dict[str, Any]]:
    """COCO results with ids as whole numbers."""
    with open(path, encoding="utf-8") as stream:
        results = json.load(stream)
    for one in results:
        one["image_id"] = lossless_int(one["image_id"], "image_id")
        one["category_id"] = lossless_int(one["category_id"], "category_id")
    return results


def cost_of(cfg: CfgNode, image_size: tuple[int, int]) -> Cost:
    """Parameters and GMAC for an image of (height, width) px, resized as in the evaluation."""
    counted = count_config(cfg, image_size)
    cost = Cost(
        counted.image_size, counted.parameters, counted.trainable_parameters, counted.gmac, notes=list(counted.notes)
    )
    if counted.object_cost is not None:
        cost.object_unit, cost.object_gmac = counted.object_cost.unit, counted.object_cost.macs / 1e9
    return cost


def median_size(truth: GroundTruth) -> tuple[int, int]:
    """(height, width) px of the image in the middle by area."""
    sizes = sorted(
        (image["height"] * image["width"], image["height"], image["width"]) for image in truth.images.values()
    )
    _, height, width = sizes[len(sizes) // 2]
    return height, width


def class_counts(truth: GroundTruth) -> dict[str, int]:
    """Class -> annotated objects without crowds, in the json's order."""
    counts = dict.fromkeys(truth.categories.values(), 0)
    for annotation in truth.annotations:
        if not annotation["iscrowd"]:
            counts[truth.categories[annotation["category_id"]]] += 1
    return counts


def measured_tasks(models: Sequence[Model]) -> list[str]:
    """Those of TASKS that any training has results of."""
    found: set[str] = {task for model in models for run in model.runs for task in run.results}
    return [task for task in TASKS if task in found]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def kinds_apart(trained: Sequence[Trained]) -> list[str]:
    """A note, where some models have masks and others boxes alone: their IoU are no common scale."""
    boxes = [one.entry.title for one in trained if one.iou_type == "bbox"]
    if not boxes or len(boxes) == len(trained):
        return []
    return [f"Without masks, and so without failures beside the others: {', '.join(boxes)}"]


def recipe_of(cfg: CfgNode) -> str:
    """Optimiser, rate and input of a training in words."""
    solver, inputs = cfg.SOLVER, cfg.INPUT
    size = f"{' to '.join(map(str, inputs.MIN_SIZE_TRAIN))} px on the short side, {inputs.MAX_SIZE_TRAIN} at most"
    if inputs.RESIZE in ("fixed", "letterbox"):
        size = f"{inputs.RESIZE} {inputs.FIXED_SIZE[0]} x {inputs.FIXED_SIZE[1]} px"
    return f"{solver.OPTIMIZER} {solver.BASE_LR:g}, {size}"


def conditions_of(
    trained: Sequence[Trained], budget: Budget, truth: GroundTruth | None, date: str
) -> list[tuple[str, str]]:
    """(what, value) that all figures of a comparison belong to.

    Args:
        trained: all models.
        budget: of each.
        truth: of the evaluated set; None where nothing came to an end.
        date: of the report.
    """
    finished = [one for one in trained if one.cfg is not None]
    rows: list[tuple[str, str]] = []
    if finished:
        train, test = data_texts(finished[0].cfg)
        rows += [("training data", train), ("evaluated on", test)]
    if truth is not None:
        objects = f"{sum(class_counts(truth).values())} objects of {len(truth.categories)} classes"
        rows.append(("size of it", f"{len(truth.images)} images, {objects}"))
    environments = [read_environment(one.folder) for one in finished]
    devices = dict.fromkeys(environment_text(own) for own in environments)
    versions = dict.fromkeys(
        ", ".join([f"Python {own['python']}", *(f"{name} {number}" for name, number in own["versions"].items())])
        for own in environments
        if own is not None
    )
    commits = sorted({run.commit for one in trained for run in one.model.runs if run.commit})
    rows += [
        ("budget", budget.text()),
        ("device", " / ".join(devices)),
        ("versions", " / ".join(versions)),
        ("commit", ", ".join(commits)),
        ("date", date),
    ]
    return [(what, value) for what, value in rows if value]


def final_weights(trained: Trained) -> str:
    """The weights at the end of the first training, averaged where the recipe averages; chosen by the budget alone."""
    return os.path.join(trained.folder, FINAL_NAME)
