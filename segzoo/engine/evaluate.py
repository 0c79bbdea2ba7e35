"""Evaluation of a model on every test set of a config."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm


def evaluate_datasets(cfg: CfgNode, model: torch.nn.Module) -> dict[str, Mapping[str, Mapping[str, float]]]:
    """{data set: {"bbox": {...}, "segm": {...}}} over DATASETS.TEST; called on all ranks, {} on other ranks than 0.

    Args:
        cfg: the config; results and predictions go to OUTPUT_DIR/inference/<data set>.
        model: the bare model; its modules' modes stay as they are.
    """
    from segzoo.evaluation import evaluate

    results_per_dataset: dict[str, Mapping[str, Mapping[str, float]]] = {}
    for name in cfg.DATASETS.TEST:
        folder = os.path.join(cfg.OUTPUT_DIR, "inference", name)
        results = evaluate(cfg, model, name, folder)
        if comm.is_main_process():
            results_per_dataset[name] = results
    return results_per_dataset
