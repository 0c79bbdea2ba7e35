"""Parameter groups, learning-rate schedule and gradient clipping."""

from __future__ import annotations

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.solver import build_lr_scheduler
from torch import nn

from segzoo.config import get_segzoo_cfg
from segzoo.engine.optimizer import build_optimizer, build_parameter_groups, clip_gradients
from segzoo.errors import ConfigError


class GroupedNet(nn.Module):
    """One parameter of each kind, and a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1))
        self.head = nn.Sequential(nn.Conv2d(2, 2, 1), nn.GroupNorm(1, 2))
        self.backbone[2].requires_grad_(False)


def solver_config(**changes: object) -> CfgNode:
    cfg = get_segzoo_cfg()
    cfg.SOLVER.BASE_LR = 0.1
    cfg.SOLVER.WEIGHT_DECAY = 0.01
    for key, value in changes.items():
        cfg.merge_from_list(["SOLVER." + key.replace("__", "."), value])
    return cfg


def test_parameter_groups_follow_kind_and_place() -> None:
    cfg = solver_config(BIAS_LR_FACTOR=2.0, WEIGHT_DECAY_BIAS=0.0, WEIGHT_DECAY_NORM=0.005, BACKBONE_LR_FACTOR=0.1)
    model = GroupedNet()
    rate_and_decay = {
        id(parameter): (pytest.approx(group["lr"]), pytest.approx(group["weight_decay"]))
        for group in build_parameter_groups(cfg, model)
        for parameter in group["params"]
    }
    expected = {
        model.backbone[0].weight: (0.01, 0.01),
        model.backbone[0].bias: (0.02, 0.0),
        model.backbone[1].weight: (0.01, 0.005),
        model.backbone[1].bias: (0.01, 0.005),
        model.head[0].weight: (0.1, 0.01),
        model.head[0].bias: (0.2, 0.0),
        model.head[1].weight: (0.1, 0.005),
        model.head[1].bias: (0.1, 0.005),
    }
    assert len(rate_and_decay) == len(expected), "frozen parameters get no group"
    for parameter, values in expected.items():
        assert values == rate_and_decay[id(parameter)]


def test_single_numbers_do_not_decay() -> None:
    """A factor that decays drifts to 0, whatever the losses say."""
    model = nn.Module()
    model.weight, model.factor = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(()))
    groups = {group["weight_decay"]: group["params"] for group in build_parameter_groups(get_segzoo_cfg(), model)}
    assert groups[0.0] == [model.factor]
    assert len(groups) == 2


def test_parameter_groups_without_bias_decay_use_weight_decay_for_biases() -> None:
    groups = build_parameter_groups(solver_config(WEIGHT_DECAY_NORM=0.01), GroupedNet())
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(0.1, 0.01)]


@pytest.mark.parametrize(
    ("name", "expected"), [("SGD", torch.optim.SGD), ("ADAM", torch.optim.Adam), ("AdamW", torch.optim.AdamW)]
)
def test_build_optimizer_builds_each_kind(name: str, expected: type) -> None:
    assert type(build_optimizer(solver_config(OPTIMIZER=name), GroupedNet())) is expected


def test_build_optimizer_of_a_frozen_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="no trainable parameter"):
        build_optimizer(solver_config(), GroupedNet().requires_grad_(False))


def test_schedule_warms_up_linearly_and_drops_at_the_steps() -> None:
    cfg = solver_config(MAX_ITER=20, STEPS=(10, 15), WARMUP_ITERS=4, WARMUP_FACTOR=0.2, BIAS_LR_FACTOR=2.0)
    optimizer = build_optimizer(cfg, GroupedNet())
    scheduler = build_lr_scheduler(cfg, optimizer)
    rates = []
    for _ in range(20):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    weights = [max(0.2, 0.0) * 0.1, 0.04, 0.06, 0.08] + [0.1] * 6 + [0.01] * 5 + [0.001] * 5
    lowest = [min(row) for row in rates]
    assert lowest == pytest.approx(weights)
    assert [max(row) for row in rates] == pytest.approx([2 * rate for rate in weights])


def parameters_with_gradients() -> list[nn.Parameter]:
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(3))]
    parameters[0].grad = torch.tensor([3.0, 0.0])
    parameters[1].grad = torch.tensor([-4.0])
    return parameters


def test_clip_gradients_by_norm_bounds_all_together() -> None:
    parameters = parameters_with_gradients()
    cfg = solver_config(CLIP_GRADIENTS__ENABLED=True, CLIP_GRADIENTS__CLIP_TYPE="norm")
    assert clip_gradients(cfg, parameters).item() == pytest.approx(5.0)
    assert parameters[0].grad.tolist() == pytest.approx([0.6, 0.0])
    assert parameters[1].grad.tolist() == pytest.approx([-0.8])


def test_clip_gradients_by_value_bounds_each() -> None:
    parameters = parameters_with_gradients()
    cfg = solver_config(CLIP_GRADIENTS__ENABLED=True, CLIP_GRADIENTS__CLIP_VALUE=3.5)
    assert clip_gradients(cfg, parameters).item() == pytest.approx(5.0)
    assert parameters[0].grad.tolist() == [3.0, 0.0]
    assert parameters[1].grad.tolist() == [-3.5]


def test_clip_gradients_off_only_measures() -> None:
    parameters = parameters_with_gradients()
    assert clip_gradients(solver_config(), parameters).item() == pytest.approx(5.0)
    assert parameters[1].grad.tolist() == [-4.0]
