"""Optimisers with parameter groups, and gradient clipping."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers.batch_norm import LayerNorm as ChannelLayerNorm
from torch import nn

from segzoo.errors import ConfigError

NORM_TYPES = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
    ChannelLayerNorm,
)
OPTIMIZERS = ("SGD", "ADAM", "ADAMW")
CLIP_TYPES = ("norm", "full_model", "value")


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """SOLVER.OPTIMIZER over the groups of `build_parameter_groups`.

    Raises:
        ConfigError: an unknown optimiser, or a model without any trainable parameter.
    """
    groups = build_parameter_groups(cfg, model)
    if not groups:
        raise ConfigError("the model has no trainable parameter", "lower MODEL.BACKBONE.FREEZE_AT")
    base_lr, decay = cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY
    name = cfg.SOLVER.OPTIMIZER.upper()
    if name == "SGD":
        return torch.optim.SGD(
            groups, lr=base_lr, momentum=cfg.SOLVER.MOMENTUM, nesterov=cfg.SOLVER.NESTEROV, weight_decay=decay
        )
    if name == "ADAM":
        return torch.optim.Adam(groups, lr=base_lr, betas=tuple(cfg.SOLVER.BETAS), weight_decay=decay)
    if name == "ADAMW":
        return torch.optim.AdamW(groups, lr=base_lr, betas=tuple(cfg.SOLVER.BETAS), weight_decay=decay)
    raise ConfigError(f"SOLVER.OPTIMIZER {cfg.SOLVER.OPTIMIZER!r} is unknown", f"use one of {', '.join(OPTIMIZERS)}")


def build_parameter_groups(cfg: CfgNode, model: nn.Module) -> list[dict[str, Any]]:
    """Trainable parameters grouped by equal learning rate and weight decay, in the model's order.

    Weights and biases of normalisation layers decay by WEIGHT_DECAY_NORM; biases of other layers learn at
    BIAS_LR_FACTOR and decay by WEIGHT_DECAY_BIAS (None: WEIGHT_DECAY); BACKBONE_LR_FACTOR multiplies on top. Single
    numbers (parameters without a dimension, such as FCOSIS's lambda and mu) do not decay: 0 is not neutral for them.
    """
    solver = cfg.SOLVER
    bias_decay = solver.WEIGHT_DECAY if solver.WEIGHT_DECAY_BIAS is None else solver.WEIGHT_DECAY_BIAS
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    seen: set[nn.Parameter] = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            learning_rate, decay = solver.BASE_LR, solver.WEIGHT_DECAY
            if isinstance(module, NORM_TYPES):
                decay = solver.WEIGHT_DECAY_NORM
            elif parameter.ndim == 0:
                decay = 0.0
            elif name == "bias":
                learning_rate, decay = learning_rate * solver.BIAS_LR_FACTOR, bias_decay
            if f"{module_name}.".startswith("backbone."):
                learning_rate *= solver.BACKBONE_LR_FACTOR
            groups.setdefault((learning_rate, decay), []).append(parameter)
    return [{"params": params, "lr": lr, "weight_decay": decay} for (lr, decay), params in groups.items()]


@torch.no_grad()
def clip_gradients(cfg: CfgNode, parameters: Iterable[nn.Parameter]) -> torch.Tensor:
    """Clips in place as SOLVER.CLIP_GRADIENTS says and returns the 2-norm (or NORM_TYPE) before clipping, a scalar.

    "norm" (and its alias "full_model") bounds the norm of all gradients together, unlike Detectron2's "norm", which
    bounds each parameter on its own; "value" bounds each element. Gradients must be unscaled and reduced over ranks.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    clip = cfg.SOLVER.CLIP_GRADIENTS
    total_norm = torch.nn.utils.get_total_norm(gradients, norm_type=float(clip.NORM_TYPE))
    if not clip.ENABLED:
        return total_norm
    if clip.CLIP_TYPE == "value":
        torch._foreach_clamp_min_(gradients, -clip.CLIP_VALUE)
        torch._foreach_clamp_max_(gradients, clip.CLIP_VALUE)
    else:
        factor = (clip.CLIP_VALUE / (total_norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(gradients, factor)
    return total_norm
