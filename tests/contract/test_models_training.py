"""What every model promises in training (ACCEPTANCE cases in the names)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from detectron2.modeling import META_ARCH_REGISTRY, build_model

import projects
from tests.contract.toys import (
    MODELS,
    ellipse,
    losses_and_gradients,
    make_input,
    toy_config,
)

SIZE = (64, 96)
Build = Callable[..., torch.nn.Module]
OWN_PACKAGES = {"segzoo", *(method.__name__ for method in projects.METHODS)}


def test_models_cover_the_registry() -> None:
    own = {name for name, cls in META_ARCH_REGISTRY if cls.__module__.split(".")[0] in OWN_PACKAGES}
    assert own == {name.split("-")[0] for name in MODELS}


def test_some_steps_on_one_image_lower_the_loss(model_name: str) -> None:
    torch.manual_seed(0)
    model = build_model(toy_config(model_name))
    batch = [make_input(SIZE, [ellipse(SIZE, (40, 30), (22, 17))], seed) for seed in (0, 1)]
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=2e-3)
    totals = []
    for _ in range(15):
        losses = losses_and_gradients(model, batch)
        optimizer.step()
        totals.append(sum(float(value) for value in losses.values()))
    assert min(totals[-3:]) < 0.8 * totals[0]
