"""Running a model over a data set and measuring what it gives."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import nn

from segzoo.data.loader import build_test_loader, naming_lost_workers
from segzoo.data.registration import load_metadata
from segzoo.evaluation.coco import CocoEvaluator
from segzoo.evaluation.lvis import LvisEvaluator
from segzoo.modeling.window import restore_originals

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.json"
_SECONDS_BETWEEN_LOGS = 10.0
# Batches left out of the times: the first ones start workers and warm caches up.
_WARM_UP_BATCHES = 3


def evaluate(
    cfg: CfgNode,
    model: nn.Module,
    dataset_name: str,
    output_dir: str | None = None,
    data_loader: Iterable[list[dict]] | None = None,
) -> dict[str, dict[str, float]]:
    """Predicts a whole data set, each rank its share, and measures it.

    Args:
        cfg: see TEST.COCO_ENGINE, TEST.BOUNDARY_AP, TEST.MASK_BUDGET_MB, TEST.IMS_PER_BATCH.
        model: run in eval mode without gradients; afterwards every module is in its former mode again.
        dataset_name: a registered data set.
        output_dir: gets metrics.json and coco_instances_results.json; None = nothing is written.
        data_loader: batches of the mapper's dicts; None = `build_test_loader(cfg, dataset_name)`.

    Returns:
        {"bbox": {"AP": percent, ...}, "segm": {...}} on rank 0; {} on other ranks and for a json without annotations.

    Raises:
        ConfigError, DatasetError: see `build_evaluator`.
    """
    if data_loader is None:
        data_loader = build_test_loader(cfg, dataset_name)
    evaluator = build_evaluator(cfg, dataset_name, output_dir)
    # Distributed wrappers synchronise buffers in forward, which hangs when ranks have unequal numbers of batches.
    network = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    with _eval_mode(network), torch.no_grad(), naming_lost_workers():
        speed = _predict(network, data_loader, evaluator, dataset_name)
    comm.synchronize()
    results = evaluator.evaluate()
    if comm.is_main_process():
        log_results(results, dataset_name)
        if output_dir:
            _write_metrics(os.path.join(output_dir, METRICS_FILE), dataset_name, results, speed)
    return results


def build_evaluator(cfg: CfgNode, dataset_name: str, output_dir: str | None = None) -> DatasetEvaluator:
    """The evaluator of a registered data set: LVIS's rule for LVIS's files, COCO's for all others.

    Raises:
        ConfigError: the package lvis is needed and not installed.
        DatasetError: the set cannot be read.
    """
    if load_metadata(dataset_name).get("evaluator_type") == "lvis":
        return LvisEvaluator(dataset_name, cfg, output_dir)
    return CocoEvaluator(dataset_name, cfg, output_dir)


@contextlib.contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    # Each module its own mode: `model.train()` afterwards would also wake up what was frozen.
    was_training = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in was_training:
            module.training = mode


def _predict(
    model: nn.Module, data_loader: Iterable[list[dict]], evaluator: DatasetEvaluator, dataset_name: str
) -> dict[str, Any]:
    """Runs all batches through the model into the evaluator; gives the seconds an image by stage."""
    total = len(data_loader) if isinstance(data_loader, Sized) else "?"
    seconds = {"data": 0.0, "model": 0.0, "encode": 0.0}
    num_images = num_timed = num_batches = 0
    mark = last_log = time.perf_counter()
    for inputs in data_loader:
        loaded = time.perf_counter()
        outputs = restore_originals(inputs, model(inputs))
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        predicted = time.perf_counter()
        evaluator.process(inputs, outputs)
        encoded = time.perf_counter()
        num_batches, num_images = num_batches + 1, num_images + len(inputs)
        if num_batches > _WARM_UP_BATCHES:
            num_timed += len(inputs)
            for stage, spent in zip(seconds, (loaded - mark, predicted - loaded, encoded - predicted), strict=True):
                seconds[stage] += spent
        if encoded - last_log > _SECONDS_BETWEEN_LOGS:
            last_log = encoded
            logger.info("%s: batch %d/%s, %s", dataset_name, num_batches, total, _speed_text(seconds, num_timed))
        mark = time.perf_counter()
    logger.info("%s: %d images predicted, %s", dataset_name, num_images, _speed_text(seconds, num_timed))
    per_image = {stage: spent / num_timed for stage, spent in seconds.items()} if num_timed else None
    return {"images_this_rank": num_images, "seconds_per_image": per_image}


def _speed_text(seconds: dict[str, float], num_timed: int) -> str:
    if not num_timed:
        return "too few for times"
    return "ms an image: " + ", ".join(f"{stage} {1000 * spent / num_timed:.1f}" for stage, spent in seconds.items())


def log_results(results: dict[str, dict[str, float]], dataset_name: str) -> None:
    """Logs the metrics, one line a task and one for its classes, where they are measured one by one."""
    for task, metrics in results.items():
        classes = {key: value for key, value in metrics.items() if key.startswith("AP-")}
        summary = ", ".join(f"{key} {value:.2f}" for key, value in metrics.items() if key not in classes)
        logger.info("%s %s: %s", dataset_name, task, summary)
        if classes:
            by_class = ", ".join(f"{key} {value:.2f}" for key, value in classes.items())
            logger.info("%s %s: %s", dataset_name, task, by_class)


def _write_metrics(path: str, dataset_name: str, results: dict[str, dict[str, float]], speed: dict[str, Any]) -> None:
    # NaN is no json; null says "nothing to measure" to every reader.
    strict = {
        task: {key: None if math.isnan(value) else value for key, value in metrics.items()}
        for task, metrics in results.items()
    }
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    partial = path + ".partial"
    with open(partial, "w", encoding="utf-8") as handle:
        json.dump({"dataset": dataset_name, "results": strict, **speed}, handle, indent=2, allow_nan=False)
        handle.write("\n")
    os.replace(partial, path)
