"""Fixtures of the 52 cases of bad input and faults: every registered model, or the five methods through train_net."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch

from tests.acceptance.runs import METHODS, SMALL_BACKBONE
from tests.contract.toys import MODELS, build_toy
from tests.data.conftest import CocoFolder, cfg, folder, make_folder

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
