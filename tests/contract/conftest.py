"""Fixtures that run a test over every registered model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch

from tests.contract.toys import MODELS, build_toy


@pytest.fixture(params=sorted(MODELS))
def model_name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def build(model_name: str) -> Callable[..., torch.nn.Module]:
    """Builds the model of the test with given config changes, always from the same random weights."""
    return partial(build_toy, model_name)
