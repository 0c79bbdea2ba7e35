"""Stages cover a call, each moment once, and leave everything as it was."""

from __future__ import annotations

import itertools
import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from segzoo.evaluation.stages import Function, StageClock, watched

CPU = torch.device("cpu")


def ticking() -> StageClock:
    """A clock whose every look is a second later."""
    return StageClock(CPU, now=itertools.count().__next__)


def test_clock_gives_each_moment_to_the_innermost_stage() -> None:
    clock = ticking()
    with clock.stage("heads"):  # 0
        with clock.stage("masks"):  # 1
            with clock.stage("RLE"):  # 2
                pass  # until 3
            with clock.stage("masks"):  # 4, until 5
                pass
        # masks until 6, heads until 7
    with clock.stage("to host"):  # from 8 to 9: between 7 and 8 nothing was open
        pass
    assert clock.milliseconds() == {"heads": 2000, "masks": 4000, "RLE": 1000, "to host": 1000}


def test_clock_stages_add_up_to_the_whole() -> None:
    clock = ticking()
    with clock.stage("decode"):
        for name in ("heads", "masks", "heads"):
            with clock.stage(name), clock.stage("RLE"):
                pass
    assert sum(clock.milliseconds().values()) == 1000 * (clock.marks[-1][1] - clock.marks[0][1])


def test_clock_closes_a_stage_that_fails() -> None:
    clock = ticking()
    with pytest.raises(KeyError), clock.stage("heads"):
        raise KeyError
    assert clock.open == []


class Doubling(nn.Module):
    def forward(self, value: Tensor) -> Tensor:
        return 2 * value

    def twice(self, value: Tensor) -> Tensor:
        return self(self(value))


class Failing(nn.Module):
    def forward(self, value: Tensor) -> Tensor:
        raise ValueError(f"{value} is refused")


def increase(value: Tensor) -> Tensor:
    return value + 1


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module that knows `increase` by another name."""
    module = ModuleType("elsewhere")
    module.grow = increase  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "elsewhere", module)
    # Under importlib mode a test file is no entry of its own.
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or module)
    return module


def test_watched_sees_modules_functions_and_methods_for_a_while(elsewhere: ModuleType) -> None:
    model, clock, value = Doubling(), ticking(), torch.ones(())
    functions: dict[str, list[Function]] = {"masks": [increase], "to host": [(Tensor, "cpu"), (Doubling, "twice")]}
    with watched(clock, {"heads": [model]}, functions), clock.stage("decode"):
        result = elsewhere.grow(model.twice(value)).cpu()
    assert result == 5
    spent = clock.milliseconds()
    assert set(spent) == {"decode", "heads", "masks", "to host"}
    # Two calls of the module within the method, each from one look at the clock to the next.
    assert spent["heads"] == 2000
    assert elsewhere.grow is increase
    assert "cpu" not in vars(Tensor)
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    seen = len(clock.marks)
    elsewhere.grow(model.twice(value)).cpu()
    assert len(clock.marks) == seen


def test_watched_restores_everything_after_an_error(elsewhere: ModuleType) -> None:
    model, clock = Failing(), ticking()
    with pytest.raises(ValueError, match="refused"):
        with watched(clock, {"heads": [model]}, {"masks": [increase]}):
            model(elsewhere.grow(torch.ones(())))
    assert clock.open == []
    assert elsewhere.grow is increase
    assert not model._forward_hooks
