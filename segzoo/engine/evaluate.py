"""Evaluation of a model on every test set of a config."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm

logger = logging.getLogger(__name__)


def evaluate_datasets(cfg: CfgNode, model: torch.nn.Module) -> dict[str, Mapping[str, Mapping[str, float]]]:
    """{data set: {"bbox": {...}, "segm": {...}}} over DATASETS.TEST; called on all ranks, {} on other ranks than 0.

    Args:
        cfg: the config; results and predictions go to OUTPUT_DIR/inference/<data set>.
        model: the bare model; left in evaluation mode.
    """
    from segzoo.evaluation import evaluate

    results_per_dataset: dict[str, Mapping[str, Mapping[str, float]]] = {}
    model.eval()
    for name in cfg.DATASETS.TEST:
        folder = os.path.join(cfg.OUTPUT_DIR, "inference", name)
        results = evaluate(cfg, model, name, folder)
        if comm.is_main_process():
            results_per_dataset[name] = results
            for task, metrics in results.items():
                shown = ", ".join(f"{key} {value:.3f}" for key, value in metrics.items() if "-" not in key)
                logger.info("%s %s: %s", name, task, shown)
    return results_per_dataset
