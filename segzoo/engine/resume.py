"""Going on from the last checkpoint: the same one on every rank, and what of it counts when the config has changed."""

from __future__ import annotations

import logging
import socket
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn

from segzoo.engine.checkpoint import config_difference, last_checkpoint, read_checkpoint
from segzoo.engine.distributed import on_main_process
from segzoo.engine.optimizer import build_parameter_groups
from segzoo.errors import CheckpointError

logger = logging.getLogger(__name__)


def read_last_checkpoint(folder: str, mmap: bool = False) -> dict[str, Any] | None:
    """The training state that rank 0's `last_checkpoint` names, None where there is none; called on all ranks.

    Args:
        folder: OUTPUT_DIR; machines with several of them must share it.
        mmap: leave the tensors in the file, to look at the rest.

    Raises:
        CheckpointError: on every rank, when any of them cannot read it, or has another file of that name.
    """
    path = on_main_process(lambda: last_checkpoint(folder))
    if not path:
        return None
    checkpoint: dict[str, Any] = {}
    failure = None
    try:
        checkpoint = _read_training_state(path, mmap)
    except CheckpointError as error:
        failure = error
    state = (checkpoint.get("iteration"), checkpoint.get("config"))
    outcomes = comm.all_gather((failure, state, socket.gethostname()))
    first_failure, first_state, _ = outcomes[0]
    if first_failure is not None:
        raise first_failure
    for rank, (problem, found, host) in enumerate(outcomes):
        if problem is None and found == first_state:
            continue
        reason = problem.message if problem is not None else f"{path}: not the file that rank 0 has"
        raise CheckpointError(f"rank {rank} on {host}: {reason}", "give an OUTPUT_DIR that all machines share")
    return checkpoint


def restore_optimizer(
    cfg: CfgNode,
    checkpoint: dict[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
) -> None:
    """Restores optimiser and schedule; where the config has changed, rates, decays and momentum are the new ones.

    Raises:
        ValueError: the state does not fit the model's parameters.
    """
    if not config_difference(checkpoint["config"], cfg):
        optimizer.load_state_dict(checkpoint["optimizer"])
        scheduler.load_state_dict(checkpoint["scheduler"])
        return
    saved_cfg = CfgNode.load_cfg(checkpoint["config"])
    if saved_cfg.SOLVER.OPTIMIZER.upper() == cfg.SOLVER.OPTIMIZER.upper():
        _load_moments(saved_cfg, checkpoint["optimizer"], model, optimizer)
    else:
        logger.warning("%s starts without the moments of %s", cfg.SOLVER.OPTIMIZER, saved_cfg.SOLVER.OPTIMIZER)
    # The factors come from the new config at the old position.
    scheduler.last_epoch = checkpoint["scheduler"]["last_epoch"]
    rates: list[float | torch.Tensor] = [float(rate) for rate in scheduler.get_lr()]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = rates


def _load_moments(
    saved_cfg: CfgNode, saved: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    # The state goes by position in the saved groups, and other factors may group the parameters otherwise.
    saved_order = [parameter for group in build_parameter_groups(saved_cfg, model) for parameter in group["params"]]
    num_saved = sum(len(group["params"]) for group in saved["param_groups"])
    if len(saved_order) != num_saved:
        raise ValueError(f"it trained {num_saved} parameters, the model has {len(saved_order)}")
    for index, state in saved["state"].items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.dim() > 0 and value.shape != saved_order[index].shape:
                raise ValueError(
                    f"{name} has shape {tuple(value.shape)}, its parameter {tuple(saved_order[index].shape)}"
                )
    index_of = {parameter: index for index, parameter in enumerate(saved_order)}
    groups = [
        {**group, "params": [index_of[parameter] for parameter in group["params"]]} for group in optimizer.param_groups
    ]
    optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})


def _read_training_state(path: str, mmap: bool) -> dict[str, Any]:
    checkpoint = read_checkpoint(path, mmap)
    if "num_micro_batches" not in checkpoint:
        raise CheckpointError(f"{path}: holds weights but no training state", "give it as MODEL.WEIGHTS instead")
    return checkpoint
