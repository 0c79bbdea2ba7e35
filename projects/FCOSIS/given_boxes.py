"""Compares attention by grouping with attention by boxes alone and with mu = 0 on masks in GIVEN ground-truth boxes.

    python -m projects.FCOSIS.given_boxes output/crossings/runs --json output/crossings/given_boxes.json

The folder holds one training a variant and seed, such as grouping_1 and box_1; README.md has their commands. Detection
has no part in the comparison: every object is segmented in its own box, of which the model gets box and class alone.
Level and centre of mass come from the location whose predicted box is closest to the given one.

Shape shorthand: S seeds.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode

from fcosis.fcosis import FCOSIS
from projects import get_cfg
from projects.FCOSIS.paired import paired_difference
from projects.FCOSIS.segment_given import Measured, measure
from segzoo.config import merge_config
from segzoo.engine.checkpoint import FINAL_NAME, write_atomically
from segzoo.engine.device import device_text
from segzoo.engine.predictor import Predictor
from segzoo.engine.setup import CONFIG_NAME, register_datasets
from segzoo.engine.validate import walk
from segzoo.errors import ConfigError, SegZooError

# Name, and before "_<seed>" that of a run's folder -> its keys of MODEL.FCOSIS.
VARIANTS: dict[str, dict[str, Any]] = {
    "grouping": {"ATTENTION": "grouping", "LEARN_MU": True},
    "zero_mu": {"ATTENTION": "grouping", "LEARN_MU": False},
    "box": {"ATTENTION": "box", "LEARN_MU": True},
}
REFERENCE = "grouping"
# In which the runs may differ; everything else is the budget.
FREE_KEYS = {"SEED", "OUTPUT_DIR", *(f"MODEL.FCOSIS.{key}" for key in VARIANTS[REFERENCE])}
# Name of a subset -> least IoU of an object's box with another's.
SUBSETS = {"all": 0.0, "box IoU >= 0.1": 0.1, "box IoU >= 0.3": 0.3, "box IoU >= 0.5": 0.5}
UNIT = (
    "mask IoU of an object, paired by object and seed; image_error: images drawn anew (clusters of objects, averaged "
    "over the seeds); seed_error: trainings drawn anew; error: both"
)


def find_runs(folder: str) -> dict[str, dict[int, str]]:
    """The trainings below a folder: variant -> seed -> path.

    Raises:
        ConfigError: a variant is missing, or lacks a seed that another one has.
    """
    runs: dict[str, dict[int, str]] = {name: {} for name in VARIANTS}
    for entry in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
        match = re.fullmatch(rf"({'|'.join(VARIANTS)})_(\d+)", entry)
        if match:
            runs[match[1]][int(match[2])] = os.path.join(folder, entry)
    seeds = sorted({seed for own in runs.values() for seed in own})
    absent = [f"{name}_{seed}" for name, own in runs.items() for seed in seeds if seed not in own]
    if absent or not seeds:
        raise ConfigError(
            f"{folder} lacks the runs {', '.join(absent) or ', '.join(f'{name}_<seed>' for name in VARIANTS)}",
            "train every variant with every seed, by the commands of projects/FCOSIS/README.md",
        )
    return runs


def read_configs(runs: Mapping[str, Mapping[int, str]]) -> dict[str, dict[int, CfgNode]]:
    """The runs' configs, which must be equal but for what the study varies.

    Raises:
        ConfigError: a run is none of FCOSIS, of another variant or seed, or had another budget.
    """
    configs: dict[str, dict[int, CfgNode]] = {name: {} for name in runs}
    reference: dict[str, Any] = {}
    for name, own in runs.items():
        for seed, folder in own.items():
            cfg = merge_config(get_cfg(), os.path.join(folder, CONFIG_NAME))
            found = {key: cfg.MODEL.FCOSIS[key] for key in VARIANTS[name]}
            if (cfg.MODEL.META_ARCHITECTURE, found, cfg.SEED) != ("FCOSIS", VARIANTS[name], seed):
                raise ConfigError(
                    f"{folder} is a run of {cfg.MODEL.META_ARCHITECTURE} with {found} and seed {cfg.SEED}",
                    f"{name}_{seed} needs FCOSIS with {VARIANTS[name]} and SEED {seed}",
                )
            values = {key: value for key, value in walk(cfg) if key not in FREE_KEYS}
            reference = reference or values
            changed = {key: value for key, value in values.items() if reference[key] != value}
            if changed:
                raise ConfigError(
                    f"{folder} has {changed}, other runs { ({key: reference[key] for key in changed}) }",
                    "train all runs with the same budget",
                )
            configs[name][seed] = cfg
    return configs


def load_model(cfg: CfgNode, folder: str) -> FCOSIS:
    """The model at the end of a training, in evaluation mode: chosen by the budget, not by its AP.

    Raises:
        ConfigError, CheckpointError: the training did not come to its end.
    """
    path = os.path.join(folder, FINAL_NAME)
    if not os.path.isfile(path):
        raise ConfigError(f"{folder} has no {FINAL_NAME}", "let the training come to its end (--resume)")
    cfg.MODEL.WEIGHTS = path
    model = Predictor(cfg).model
    assert isinstance(model, FCOSIS)
    return model


def compare(measured: Mapping[str, Sequence[Measured]]) -> dict[str, Any]:
    """Means of the variants and paired differences, for all objects and for those whose boxes overlap.

    Args:
        measured: by variant the S seeds' figures, of the same objects.

    Returns:
        subset -> {"objects", "images", "mean": variant -> IoU, "per_seed": variant -> S IoUs, "source_box_iou":
        variant -> mean, "differences": "grouping - variant" -> the fields of `Difference`}.
    """
    first = measured[REFERENCE][0]
    results = {}
    for subset, least in SUBSETS.items():
        is_in = first.overlaps >= least
        if not is_in.any():
            continue
        ious = {name: np.stack([one.ious[is_in] for one in own]) for name, own in measured.items()}
        sources = {name: np.stack([one.source_ious[is_in] for one in own]) for name, own in measured.items()}
        images = first.images[is_in]
        differences = {
            f"{REFERENCE} - {name}": paired_difference(ious[REFERENCE], ious[name], images)._asdict()
            for name in VARIANTS
            if name != REFERENCE
        }
        results[subset] = {
            "objects": int(is_in.sum()),
            "images": len(np.unique(images)),
            "mean": {name: float(own.mean()) for name, own in ious.items()},
            "per_seed": {name: own.mean(axis=1).tolist() for name, own in ious.items()},
            "source_box_iou": {name: float(own.mean()) for name, own in sources.items()},
            "differences": differences,
        }
    return results


def conditions_of(cfg: CfgNode, seeds: Sequence[int], device: torch.device) -> dict[str, Any]:
    """What the figures hold for."""
    return {
        "test_set": cfg.DATASETS.TEST[0],
        "json": os.path.basename(cfg.DATASETS.VAL_JSON),
        "seeds": list(seeds),
        "iterations": cfg.SOLVER.MAX_ITER,
        "images_per_batch": cfg.SOLVER.IMS_PER_BATCH,
        "weights": FINAL_NAME,
        "device": device_text(device),
        "torch": torch.__version__,
        "unit": UNIT,
    }


def table_of(results: Mapping[str, Any]) -> str:
    """The results of `compare` in percent, as Markdown."""
    lines = [
        f"| objects | number | {' | '.join(VARIANTS)} | difference | mean | error | of images | of seeds | each seed |",
        f"|{'---|' * (len(VARIANTS) + 8)}",
    ]
    for subset, result in results.items():
        means = " | ".join(f"{100 * result['mean'][name]:.2f}" for name in VARIANTS)
        for title, difference in result["differences"].items():
            mean, *errors = (difference[key] for key in ("mean", "error", "image_error", "seed_error"))
            figures = [f"{100 * mean:+.2f}", *("-" if math.isnan(error) else f"{100 * error:.2f}" for error in errors)]
            seeds = ", ".join(f"{100 * value:+.2f}" for value in difference["per_seed"])
            lines.append(f"| {subset} | {result['objects']} | {means} | {title} | {' | '.join(figures)} | {seeds} |")
    return "\n".join(lines)


def as_json(value: Any) -> Any:
    """What json can say: lists instead of arrays, null for what does not exist."""
    if isinstance(value, Mapping):
        return {key: as_json(one) for key, one in value.items()}
    if isinstance(value, np.ndarray | list):
        return [as_json(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def run(folder: str, device: str = "") -> dict[str, Any]:
    """Measures all runs below a folder and compares them.

    Args:
        folder: of the runs.
        device: instead of the runs' MODEL.DEVICE.

    Returns:
        {"conditions", "results"}: see `conditions_of` and `compare`.

    Raises:
        ConfigError, CheckpointError, DatasetError: see `find_runs`, `read_configs`, `load_model` and `measure`.
    """
    runs = find_runs(folder)
    configs = read_configs(runs)
    measured: dict[str, list[Measured]] = {name: [] for name in runs}
    for name, own in runs.items():
        for seed, path in own.items():
            cfg = configs[name][seed]
            cfg.MODEL.DEVICE = device or cfg.MODEL.DEVICE
            register_datasets(cfg)
            model = load_model(cfg, path)
            measured[name].append(measure(cfg, model))
            print(f"{os.path.basename(path)}: mean IoU {100 * measured[name][-1].ious.mean():.2f}", flush=True)
    return {"conditions": conditions_of(cfg, list(own), model.device), "results": compare(measured)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table, writes the json; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("runs", metavar="DIR", help=f"with the runs {', '.join(f'{name}_<seed>' for name in VARIANTS)}")
    parser.add_argument("--json", default="", metavar="FILE", help="gets conditions and results")
    parser.add_argument("--device", default="", help="instead of the runs' MODEL.DEVICE")
    args = parser.parse_args(arguments)
    try:
        report = run(args.runs, args.device)
        if args.json:
            write_atomically(args.json, json.dumps(as_json(report), indent=1) + "\n")
    except SegZooError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(table_of(report["results"]))
    print(f"In percent. {UNIT}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
