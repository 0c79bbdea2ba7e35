"""Fixtures that run a test over every registered model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from detectron2.modeling import build_model

from tests.contract.toys import MODELS, toy_config


@pytest.fixture(params=sorted(MODELS))
def model_name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def build(model_name: str) -> Callable[..., torch.nn.Module]:
    """Builds the model of the test with given config changes, always from the same random weights."""

    def build_toy(*options: Any) -> torch.nn.Module:
        torch.manual_seed(1)
        return build_model(toy_config(model_name, *options))

    return build_toy
