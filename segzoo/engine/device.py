"""Which device a run uses, and in which precision."""

from __future__ import annotations

import logging

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm

from segzoo.errors import ConfigError

logger = logging.getLogger(__name__)


def choose_device(wanted: str, num_gpus: int) -> str:
    """`wanted` (MODEL.DEVICE), or "cpu" where "cuda" (the default) is wanted but absent, or num_gpus is 0.

    Raises:
        ConfigError: a GPU named by number that this machine does not have, or no device at all.
    """
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise ConfigError(f"MODEL.DEVICE {wanted!r} is no device", "use cuda, cuda:0 or cpu") from error
    if device.type != "cuda":
        return wanted
    if device.index is not None and device.index >= torch.cuda.device_count():
        raise ConfigError(f"MODEL.DEVICE {wanted!r}: this machine has {torch.cuda.device_count()} GPU(s)", "use cpu")
    return wanted if torch.cuda.is_available() and num_gpus != 0 else "cpu"


def device_text(device: torch.device) -> str:
    """For the log: the device with its name or threads, and the number of processes."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)}), {comm.get_world_size()} process(es)"
    return f"{device}, {torch.get_num_threads()} thread(s), {comm.get_world_size()} process(es)"


def autocast_dtype(cfg: CfgNode, device: torch.device) -> torch.dtype | None:
    """SOLVER.AMP's type, None when it is off; float16, which has no gradients on a CPU, becomes bfloat16 there."""
    if not cfg.SOLVER.AMP.ENABLED:
        return None
    if cfg.SOLVER.AMP.DTYPE == "float16" and device.type == "cuda":
        return torch.float16
    if cfg.SOLVER.AMP.DTYPE == "float16":
        logger.warning("SOLVER.AMP.DTYPE float16 needs CUDA; bfloat16 is used on %s", device)
    return torch.bfloat16
