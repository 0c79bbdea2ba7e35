"""Checkpoints: written atomically, read without running code, complete enough for an exact resume."""

from __future__ import annotations

import logging
import os
import pickle
import random
import re
import tempfile
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import yaml
from detectron2.config import CfgNode
from torch import nn

from segzoo.errors import CheckpointError, TrainingError

logger = logging.getLogger(__name__)

LAST_CHECKPOINT = "last_checkpoint"
FINAL_NAME = "model_final.pth"
BEST_NAME = "model_best.pth"
PERIODIC_PATTERN = re.compile(r"model_(\d{7,})\.pth")
# What `write_atomically` leaves when it is killed.
PART_PATTERN = re.compile(r"\..+\.\w{8}\.part")
# Keys that hold a path: two spellings of one are no difference.
PATH_KEYS = ("DATASETS.TRAIN_JSON", "DATASETS.TRAIN_IMAGES")
# Keys that may differ on resume: they do not touch the sequence of losses, or (OUTPUT_DIR) where it is written.
FREE_KEYS = (
    "OUTPUT_DIR",
    "VERSION",
    "VIS_PERIOD",
    "MODEL.WEIGHTS",
    "MODEL.DEVICE",
    "CUDNN_BENCHMARK",
    "TEST.",
    "DATASETS.TEST",
    "DATASETS.VAL_",
    "DATALOADER.NUM_WORKERS",
    "SOLVER.CHECKPOINT_",
    "SOLVER.LOG_PERIOD",
    "INPUT.MIN_SIZE_TEST",
    "INPUT.MAX_SIZE_TEST",
)


def periodic_name(iterations: int) -> str:
    """File name of the checkpoint after `iterations` finished iterations."""
    return f"model_{iterations:07d}.pth"


def write_atomically(path: str, payload: Any) -> None:
    """torch.save to a temporary file, fsync, rename: whoever reads `path` sees the old file or the whole new one.

    Raises:
        TrainingError: the file cannot be written (disk full, no permission); an earlier `path` stays as it was.
    """
    folder = os.path.dirname(path) or "."
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=f".{os.path.basename(path)}.", suffix=".part")
        with os.fdopen(descriptor, "wb") as stream:
            if isinstance(payload, str):
                stream.write(payload.encode())
            else:
                torch.save(payload, stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        _fsync_folder(folder)
    except (OSError, RuntimeError) as error:
        # torch.save wraps a full disk in a RuntimeError of its zip writer.
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
        raise TrainingError(
            f"{path}: cannot be written: {error}", "free space or fix permissions, then resume from the one before"
        ) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _fsync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _list(folder: str) -> list[str]:
    return os.listdir(folder) if os.path.isdir(folder) else []


def remove_stale_parts(folder: str) -> None:
    """Deletes the unfinished files of a killed run; call it where no other run can be writing into the folder."""
    for name in os.listdir(folder):
        if PART_PATTERN.fullmatch(name):
            logger.info("Removing %s, an unfinished file of a killed run", name)
            os.unlink(os.path.join(folder, name))


def save_checkpoint(folder: str, name: str, state: Mapping[str, Any], keep: int = 0) -> str:
    """Writes folder/name, points `last_checkpoint` to it and deletes all but the newest `keep` periodic ones (0: none).

    Returns:
        the path of the checkpoint.
    """
    path = os.path.join(folder, name)
    write_atomically(path, dict(state))
    write_atomically(os.path.join(folder, LAST_CHECKPOINT), name)
    logger.info("Checkpoint %s", path)
    if keep > 0:
        periodic = sorted(entry for entry in os.listdir(folder) if PERIODIC_PATTERN.fullmatch(entry))
        for stale in periodic[:-keep]:
            if stale != name:
                os.unlink(os.path.join(folder, stale))
    return path


def last_checkpoint(folder: str) -> str:
    """Path of the checkpoint that `last_checkpoint` names, "" if there is none.

    A run killed between its first checkpoint and the pointer has only the former, which is whole: renamed when done.

    Raises:
        CheckpointError: the pointer names a file that is not there.
    """
    pointer = os.path.join(folder, LAST_CHECKPOINT)
    if not os.path.isfile(pointer):
        periodic = [name for name in _list(folder) if PERIODIC_PATTERN.fullmatch(name)]
        return os.path.join(folder, max(periodic)) if periodic else ""
    with open(pointer, encoding="utf-8") as stream:
        path = os.path.join(folder, stream.read().strip())
    if not os.path.isfile(path):
        others = sorted(entry for entry in os.listdir(folder) if entry.endswith(".pth"))
        raise CheckpointError(
            f"{pointer} names {os.path.basename(path)!r}, which does not exist",
            f"write one of these into it: {', '.join(others) or 'none left, start anew in another OUTPUT_DIR'}",
        )
    return path


def read_checkpoint(path: str, mmap: bool = False) -> dict[str, Any]:
    """The content of a .pth file on the CPU, read with weights_only=True: no code of the file runs.

    Args:
        path: the file.
        mmap: tensors stay in the file until they are used.

    Raises:
        CheckpointError: missing, truncated, not a checkpoint, or holding anything but tensors and plain containers.
    """
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except FileNotFoundError as error:
        raise CheckpointError(f"checkpoint {path!r} does not exist", "check MODEL.WEIGHTS") from error
    except pickle.UnpicklingError as error:
        reason = str(error).split("\n")[0]
        if zipfile.is_zipfile(path) or "Unsupported global" in str(error):
            raise CheckpointError(
                f"{path}: refused, it holds more than tensors and plain values, which could run code: {reason}",
                "save only its state dict (tensors) with the program that wrote it",
            ) from error
        raise CheckpointError(f"{path}: not a checkpoint: {reason}", "give a .pth or .pkl file of weights") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path}: truncated or not a checkpoint: {str(error).splitlines()[0] if str(error) else error!r}",
            "copy it again, or take the one before",
        ) from error
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path}: holds a {type(loaded).__name__}, not a dictionary of weights")
    return loaded


def persistent_buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    """The buffers that a state dict holds, by their names there; others follow from the config, not from training."""
    saved = model.state_dict().keys()
    return {name: buffer for name, buffer in model.named_buffers() if name in saved}


def random_state() -> dict[str, Any]:
    """This process's random states (python, numpy, torch CPU and CUDA) in types that weights_only loading accepts."""
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() and torch.cuda.is_initialized() else None,
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Restores what `random_state` returned."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def config_difference(saved: str, cfg: CfgNode) -> list[str]:
    """One line "KEY: saved -> present" for each key whose change makes another run of a resumed one.

    Keys that only one side knows are left out: they come from another version of the program.
    """
    before, now = _flatten(yaml.safe_load(saved)), _flatten(yaml.safe_load(cfg.dump()))
    return [
        f"{key}: {before[key]!r} -> {now[key]!r}"
        for key in sorted(before.keys() & now.keys())
        if before[key] != now[key] and not key.startswith(FREE_KEYS)
    ]


def refuse_other_config(saved: str, cfg: CfgNode, force: bool) -> None:
    """Raises CheckpointError listing `config_difference`, or only logs it with `force`."""
    difference = config_difference(saved, cfg)
    if not difference:
        return
    listing = "\n    ".join(difference)
    if not force:
        raise CheckpointError(
            f"--resume with another config than the checkpoint's:\n    {listing}",
            "give the same config, another OUTPUT_DIR, or --force to resume all the same",
        )
    logger.warning("Resuming with another config (--force):\n    %s", listing)


def _flatten(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{prefix}{key}."))
        elif prefix + key in PATH_KEYS and value:
            flat[prefix + key] = os.path.abspath(value)
        else:
            flat[prefix + key] = value
    return flat
