"""Evaluation of a model on every test set of a config, and which weights are worth one."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm

from segzoo.engine.checkpoint import BEST_NAME, FINAL_NAME
from segzoo.errors import ConfigError

logger = logging.getLogger(__name__)

# Where training starts from, in the configs of the papers: a backbone alone, from Detectron2's zoo or torchvision's.
IMAGENET_WEIGHTS = ("ImageNetPretrained", "download.pytorch.org/models")
# Below OUTPUT_DIR, of the evaluations during training.
INFERENCE_FOLDER = "inference"


def trained_weights(weights: str, run_folder: str = "") -> str:
    """`weights` if they are a detector's, else the best or final ones of the run in `run_folder`.

    Args:
        weights: MODEL.WEIGHTS.
        run_folder: OUTPUT_DIR of a training; "" looks nowhere else.

    Raises:
        ConfigError: neither; the model would find nothing, and its AP of 0 would look like a result.
    """
    if weights and not any(place in weights for place in IMAGENET_WEIGHTS):
        return weights
    for name in (BEST_NAME, FINAL_NAME):
        path = os.path.join(run_folder, name)
        if run_folder and os.path.isfile(path):
            logger.info("MODEL.WEIGHTS is %r: taking %s", weights, path)
            return path
    elsewhere = f", and {run_folder} has no {BEST_NAME}" if run_folder else ""
    raise ConfigError(
        f"MODEL.WEIGHTS is {weights!r}: not a trained model, it would find nothing{elsewhere}",
        "give MODEL.WEIGHTS <checkpoint>",
    )


def folder_of_weights(weights: str) -> str:
    """The folder below OUTPUT_DIR for an evaluation of this file, apart from those of the training."""
    return f"{INFERENCE_FOLDER}_{os.path.splitext(os.path.basename(weights))[0]}"


def evaluate_datasets(
    cfg: CfgNode, model: torch.nn.Module, folder: str = INFERENCE_FOLDER
) -> dict[str, Mapping[str, Mapping[str, float]]]:
    """{data set: {"bbox": {...}, "segm": {...}}} over DATASETS.TEST; called on all ranks, {} on other ranks than 0.

    Args:
        cfg: the config.
        model: the bare model; its modules' modes stay as they are.
        folder: results and predictions go to OUTPUT_DIR/<folder>/<data set>.
    """
    from segzoo.evaluation import evaluate

    results_per_dataset: dict[str, Mapping[str, Mapping[str, float]]] = {}
    for name in cfg.DATASETS.TEST:
        results = evaluate(cfg, model, name, os.path.join(cfg.OUTPUT_DIR, folder, name))
        if comm.is_main_process():
            results_per_dataset[name] = results
    return results_per_dataset
