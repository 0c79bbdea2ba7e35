"""Toy models that find something, and their exports, made once for all tests of this folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from filelock import FileLock

from projects.speed import fill_with_detections, prepare_untrained
from segzoo.engine.predictor import Predictor
from tests.contract.toys import toy_config

# One of each decoder and of each kind of second graph; FCOS's network is also PolarMask's and FCOSIS's.
EXPORTED = ("PolarMask", "OrienMask", "CenterMask", "FCOSIS", pytest.param("FCOS", marks=pytest.mark.slow))
# Small enough for a test, large enough for several levels of a pyramid; shapes x saliency that reach the threshold.
OPTIONS = [
    *("INPUT.MIN_SIZE_TEST", 160, "INPUT.MAX_SIZE_TEST", 256, "TEST.DETECTIONS_PER_IMAGE", 25),
    *("MODEL.CENTERMASK.SALIENCY_PRIOR", 0.7, "MODEL.CENTERMASK.MASK_THRESH", 0.35),
    *("MODEL.CENTERMASK_FCOS.SALIENCY_PRIOR", 0.7, "MODEL.CENTERMASK_FCOS.MASK_THRESH", 0.35),
]
IMAGE_SIZES = [(150, 200), (90, 250), (301, 120)]


def make_image(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """(H, W, 3) uint8: soft patches of colour."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)


def build_toy(name: str, *options: object) -> Predictor:
    """A random model of tests/contract/toys.py whose images are full of detections."""
    torch.manual_seed(1)
    predictor = Predictor(toy_config(name, *OPTIONS, *options))
    images = [make_image(size, seed) for seed, size in enumerate(IMAGE_SIZES)]
    prepare_untrained(predictor, images[0])
    fill_with_detections(predictor, images)
    return predictor


@dataclass
class Toy:
    """A toy model and the file that it was exported to."""

    predictor: Predictor
    path: Path


@pytest.fixture(scope="session")
def export_toy(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Toy]:
    """The toy of a name with its export; skips without the packages of the extra "export"."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install '.[export]'")
    from segzoo.export.files import export_model

    made: dict[str, Toy] = {}
    # Processes of one run share their files: an export takes longer than all else, and toys are the same in each.
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder

    def export(name: str) -> Toy:
        if name not in made:
            predictor, path = build_toy(name), folder / f"{name}.onnx"
            with FileLock(folder / f"{name}.lock"):
                if not path.exists():
                    export_model(predictor.cfg, predictor.model, path, class_names=["car", "cat", "cup"])
            made[name] = Toy(predictor, path)
        return made[name]

    return export
