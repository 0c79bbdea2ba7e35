"""Command lines of train_net.py for each method at toy size, run in this process."""

from __future__ import annotations

from pathlib import Path

import train_net
from tests.contract.toys import CONFIGS, MODELS
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
