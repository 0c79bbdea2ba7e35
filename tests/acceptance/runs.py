"""Command lines of train_net.py for each method at toy size, run in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode

import train_net
from segzoo.data.mapper import DatasetMapper
from segzoo.data.registration import load_dataset
from tests.contract.toys import CONFIGS, MODELS, toy_config
from tests.data.conftest import CocoFolder
from tests.engine.tiny_run import tiny_options

# The four papers' methods and the baseline; their variants share the engine with them.
METHODS = ("PolarMask", "CenterMask", "OrienMask", "FCOSIS", "MaskRCNN")
# A ninth of EfficientNet-Lite0's parameters.
SMALL_BACKBONE = ("MODEL.TIMM.NAME", "test_efficientnet")


def method_words(method: str, output_dir: Path, **changes: object) -> list[str]:
    """The words of a short run of a method on small images, after the data set's flags.

    Args:
        method: a name of MODELS.
        output_dir: OUTPUT_DIR.
        changes: further keys, SOLVER__MAX_ITER=3 for "SOLVER.MAX_ITER 3".
    """
    config_file, model_words = MODELS[method]
    fixed = {
        "MODEL__META_ARCHITECTURE": method,
        "INPUT__MIN_SIZE_TEST": 40,
        "INPUT__FIXED_SIZE": "(64, 96)",
        "SOLVER__RECIPE_IMS_PER_BATCH": 0,
    }
    options = tiny_options(output_dir, **fixed | changes)
    return ["--config-file", str(CONFIGS / config_file), *model_words, *SMALL_BACKBONE, *options]


def run_method(method: str, data: list[str], output_dir: Path, *flags: str, **changes: object) -> int:
    """The exit code of train_net.py with `flags` and `data` (the data set's flags) for a method."""
    return train_net.run([*flags, *data, *method_words(method, output_dir, **changes)])


def plain_config(method: str, *options: object) -> CfgNode:
    """The config of a method at toy size whose training samples are the images as they are, unless `options` say so."""
    plain = {
        "INPUT.RESIZE": "shortest_edge",
        "INPUT.RESIZE_TRAIN": "",
        "INPUT.MIN_SIZE_TRAIN": "(0,)",
        "INPUT.RANDOM_FLIP": "none",
        "INPUT.RANDOM_CROP.PROB": "0.0",
        "DATASETS.TRAIN": "('test_set',)",
        "DATALOADER.NUM_WORKERS": "0",
        "SEED": "7",
        **{f"INPUT.COLOR_JITTER.{kind}": "0.0" for kind in ("BRIGHTNESS", "CONTRAST", "SATURATION", "HUE")},
    }
    return toy_config(method, *SMALL_BACKBONE, *(word for pair in plain.items() for word in pair), *options)


def sample_of(method: str, folder: CocoFolder, *options: object, index: int = 0) -> dict[str, Any]:
    """The training sample that a method gets of an image of a folder; see `plain_config`."""
    mapper = DatasetMapper(plain_config(method, *options), is_train=True)
    return mapper(load_dataset(folder.register())[index], np.random.default_rng(0))


def flags_of(folder: CocoFolder, split: str = "train") -> list[str]:
    """The flags of train_net.py for a folder as it is now."""
    return [f"--{split}-json", folder.write(), f"--{split}-images", str(folder.root)]
