"""The moving average against a slow oracle, its counter, and weights that come back."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn

from segzoo.engine.ema import ModelEma


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))


def test_update_follows_the_formula_with_its_ramp() -> None:
    model = net()
    ema = ModelEma(model, decay=0.5, ramp=10)
    expected = model[0].weight.detach().double().clone()
    for update in range(20):
        with torch.no_grad():
            model[0].weight.add_(torch.randn(2, 2))
            model[1].running_mean.add_(1.0)
        ema.update()
        decay = min(0.5, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * model[0].weight.detach().double()
    assert ema.updates == 20
    assert torch.allclose(ema.shadow["0.weight"].double(), expected, atol=1e-6)
    assert ema.shadow["1.running_mean"][0] < model[1].running_mean[0], "buffers are averaged too"
    assert "1.num_batches_tracked" not in ema.shadow


def test_averaged_weights_come_and_go_bit_for_bit() -> None:
    model = net()
    ema = ModelEma(model, decay=0.9, ramp=10)
    with torch.no_grad():
        model[0].weight.add_(1.0)
    own = model[0].weight.detach().clone()
    with contextlib.suppress(KeyError), ema.averaged_weights():
        assert torch.equal(model[0].weight, ema.shadow["0.weight"])
        raise KeyError("an evaluation that fails")
    assert torch.equal(model[0].weight, own)


def test_state_dict_restores_average_and_counter() -> None:
    model = net()
    ema = ModelEma(model, decay=0.9, ramp=10)
    with torch.no_grad():
        model[0].weight.mul_(3.0)
    ema.update()
    other = ModelEma(net(), decay=0.9, ramp=10)
    other.load_state_dict(ema.state_dict())
    assert other.updates == 1
    assert torch.equal(other.shadow["0.weight"], ema.shadow["0.weight"])
    with pytest.raises(KeyError, match="other tensors"):
        ModelEma(nn.Linear(2, 2), decay=0.9, ramp=10).load_state_dict(ema.state_dict())
