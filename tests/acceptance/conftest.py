"""Fixtures of the 52 cases of bad input and faults: every registered model, or the five methods through train_net."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.acceptance.runs import METHODS, SMALL_BACKBONE, run_method
from tests.contract.toys import MODELS, build_toy
from tests.data.conftest import CocoFolder, cfg, folder, make_folder

Refuse = Callable[..., str]
Runs = Callable[..., str]
# Fixtures that are imported, so that they are not defined twice.
__all__ = ["CocoFolder", "build", "cfg", "folder", "make_folder", "method", "model_name"]


@pytest.fixture(params=sorted(MODELS))
def model_name(request: pytest.FixtureRequest) -> str:
    """Each registered model in turn, the variants of methods included: for what a network must do."""
    return request.param


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    """Each method in turn: for what the engine does with its config."""
    return request.param


@pytest.fixture
def build(model_name: str) -> Callable[..., torch.nn.Module]:
    """Builds the model of the test on a tiny backbone, always from the same random weights."""
    return partial(build_toy, model_name, *SMALL_BACKBONE)


@pytest.fixture
def filled(folder: CocoFolder) -> CocoFolder:
    """Four images with a square each, of the first of two classes."""
    for number in range(4):
        folder.add_image()
        folder.add_annotation(image_id=number + 1, category_id=1 + number % 2)
    return folder


@pytest.fixture
def refuse(method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refuse:
    """Runs the training of a method, which must end with exit code 2; gives what it says, with no traceback."""

    def run(data: list[str], *flags: str, **changes: object) -> str:
        assert run_method(method, data, tmp_path / "out", *flags, **changes) == 2
        printed = capsys.readouterr().err
        assert "Traceback" not in printed
        assert printed.startswith(("DatasetError: ", "ConfigError: "))
        assert "\n  -> " in printed, "a remedy"
        assert not (tmp_path / "out" / "metrics.json").exists(), "nothing was trained"
        return printed

    return run


@pytest.fixture
def trains(method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Runs:
    """Trains a method for one iteration, which must succeed; gives the log."""

    def run(data: list[str], **changes: object) -> str:
        options = {"SOLVER__MAX_ITER": 1, "SOLVER__IMS_PER_BATCH": 2, "SOLVER__WARMUP_ITERS": 0}
        assert run_method(method, data, tmp_path / "out", **options | changes) == 0
        capsys.readouterr()
        return (tmp_path / "out" / "log.txt").read_text()

    return run
