"""Time by stage of a program that knows nothing of it: modules get hooks, functions get wrapped, both for a while only.

A clock marks where a stage begins and where it ends; between two marks the time belongs to the innermost stage. So the
stages cover all of a call, each moment once. On a GPU the marks are CUDA events in the stream: nothing waits for them,
what a stage has queued counts for that stage, and work of the host counts where the GPU waits for it.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

# In the order in which an image goes through them.
STAGES = ("preprocess", "backbone", "neck", "heads", "decode", "masks", "to host", "RLE")
# What belongs to no other stage: candidates, their scores and boxes, NMS, Instances.
REST = "decode"
# A function, or a method as (class, name).
Function = Callable[..., Any] | tuple[type, str]


class StageClock:
    """Collects the times of the stages of one call.

    Args:
        device: where the call works.
        now: seconds of the host's clock; not used with CUDA.
    """

    def __init__(self, device: torch.device, now: Callable[[], float] = time.perf_counter) -> None:
        self.is_cuda = device.type == "cuda"
        self.now = now
        self.open: list[str] = []
        self.marks: list[tuple[str | None, Any]] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """What runs within belongs to this stage, but for what inner ones take."""
        self.enter(name)
        try:
            yield
        finally:
            self.leave()

    def enter(self, name: str) -> None:
        """Begins a stage inside the open ones."""
        self.open.append(name)
        self._mark(name)

    def leave(self) -> None:
        """Ends the innermost stage."""
        self.open.pop()
        self._mark(self.open[-1] if self.open else None)

    def _mark(self, following: str | None) -> None:
        if not self.is_cuda:
            self.marks.append((following, self.now()))
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self.marks.append((following, event))

    def milliseconds(self) -> dict[str, float]:
        """Time of every stage so far; waits for the GPU."""
        if self.is_cuda:
            torch.cuda.synchronize()
        spent: dict[str, float] = {}
        for (name, start), (_, end) in zip(self.marks, self.marks[1:], strict=False):
            if name is not None:
                took = start.elapsed_time(end) if self.is_cuda else (end - start) * 1000
                spent[name] = spent.get(name, 0.0) + took
        return spent


@contextmanager
def watched(
    clock: StageClock,
    modules: Mapping[str, Sequence[nn.Module]],
    functions: Mapping[str, Sequence[Function]],
) -> Iterator[None]:
    """Meanwhile `clock` sees the calls of these modules and functions; afterwards all is as before.

    Args:
        clock: of the call.
        modules: of the model, by stage.
        functions: of modules or of classes, by stage, wherever they were imported to; or (class, name of a method).
    """
    with ExitStack() as stack:
        for name, chosen in modules.items():
            for module in chosen:
                before = module.register_forward_pre_hook(lambda *_, name=name: clock.enter(name))
                after = module.register_forward_hook(lambda *_: clock.leave(), always_call=True)
                stack.callback(before.remove)
                stack.callback(after.remove)
        for name, wanted in functions.items():
            for function in wanted:
                for owner, attribute in _places(function):
                    _replace(stack, owner, attribute, _timed(getattr(owner, attribute), clock, name))
        yield


def _timed(function: Callable[..., Any], clock: StageClock, name: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def timed(*args: Any, **kwargs: Any) -> Any:
        with clock.stage(name):
            return function(*args, **kwargs)

    return timed


def _replace(stack: ExitStack, owner: Any, attribute: str, value: Any) -> None:
    """Sets an attribute until the stack closes."""
    if attribute in vars(owner):
        stack.callback(setattr, owner, attribute, vars(owner)[attribute])
    else:
        # Inherited, so that what is set here goes again.
        stack.callback(delattr, owner, attribute)
    setattr(owner, attribute, value)


def _places(function: Function) -> list[tuple[Any, str]]:
    """(module or class, attribute) of everywhere that a function is known by a name."""
    if isinstance(function, tuple):
        return [function]
    classes, _, name = function.__qualname__.rpartition(".")
    if classes:
        owner = sys.modules.get(function.__module__)
        for part in classes.split("."):
            owner = getattr(owner, part)
        return [(owner, name)]
    owners = [module for module in list(sys.modules.values()) if module is not None]
    return [
        (module, attribute)
        for module in owners
        for attribute, value in list(getattr(module, "__dict__", {}).items())
        if value is function
    ]
