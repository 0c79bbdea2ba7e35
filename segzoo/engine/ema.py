"""Exponential moving average of a model's weights, with its own update counter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from segzoo.engine.checkpoint import persistent_buffers


class ModelEma:
    """Averages the trained parameters and the floating-point buffers of a model in fp32.

    The decay of update u is min(decay, (1 + u) / (ramp + u)), so that the random start is forgotten quickly. Integer
    buffers (counters) have no meaningful average; the model's own are used.

    Args:
        model: the model itself (not wrapped in DDP); its present weights are the first average.
        decay: upper limit of the decay, in [0, 1).
        ramp: the larger, the slower the decay grows; >= 1.
    """

    def __init__(self, model: nn.Module, decay: float, ramp: float) -> None:
        self.decay = decay
        self.ramp = ramp
        self.updates = 0
        self._tracked = _tracked_tensors(model)
        self.shadow = {name: tensor.detach().float().clone() for name, tensor in self._tracked.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Moves the average towards the model's present weights; call it once after each optimiser step."""
        decay = min(self.decay, (1 + self.updates) / (self.ramp + self.updates))
        self.updates += 1
        present = [tensor.detach().float() for tensor in self._tracked.values()]
        torch._foreach_lerp_(list(self.shadow.values()), present, 1.0 - decay)

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Within the context the model holds the average; its own weights come back bit for bit afterwards."""
        own = {name: tensor.detach().clone() for name, tensor in self._tracked.items()}
        self._write(self.shadow)
        try:
            yield
        finally:
            self._write(own)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "shadow": self.shadow}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores average and counter; a name that one side lacks raises KeyError."""
        if set(state["shadow"]) != set(self.shadow):
            raise KeyError(f"EMA tracks other tensors: {sorted(set(state['shadow']) ^ set(self.shadow))[:5]}")
        self.updates = int(state["updates"])
        for name, tensor in self.shadow.items():
            tensor.copy_(state["shadow"][name])

    @torch.no_grad()
    def _write(self, values: dict[str, torch.Tensor]) -> None:
        for name, tensor in self._tracked.items():
            tensor.copy_(values[name])


def _tracked_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The trained parameters and floating-point persistent buffers by their state-dict names."""
    tracked: dict[str, torch.Tensor] = {
        name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    for name, buffer in persistent_buffers(model).items():
        if buffer.is_floating_point():
            tracked[name] = buffer
    return tracked
