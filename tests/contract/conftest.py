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


# Cells.
UNTRAINED_SIZE = 6.0


def give_extent(model: torch.nn.Module) -> torch.nn.Module:
    """The same model; sizes that are predicted as such (CenterMask's) are not negative before any training."""
    for name, parameter in model.named_parameters():
        if name.endswith(".size.2.bias"):
            torch.nn.init.constant_(parameter, UNTRAINED_SIZE)
    return model


@pytest.fixture
def build(model_name: str) -> Callable[..., torch.nn.Module]:
    """Builds the model of the test with given config changes, always from the same random weights."""

    def build_toy(*options: Any) -> torch.nn.Module:
        torch.manual_seed(1)
        return give_extent(build_model(toy_config(model_name, *options)))

    return build_toy
