"""Weights into a model: SegZoo's checkpoints, Detectron2's model zoo and ImageNet files; never by running a pickle."""

from __future__ import annotations

import io
import logging
import os
import pickle
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathManager
from torch import nn

from segzoo.engine.checkpoint import read_checkpoint
from segzoo.engine.darknet_weights import is_darknet_file
from segzoo.engine.torchvision_weights import absent_entries, is_torchvision_resnet, rename_resnet, resnet_prefix
from segzoo.errors import CheckpointError

logger = logging.getLogger(__name__)

ZOO_URL = "https://dl.fbaipublicfiles.com/detectron2/"
SHOWN_KEYS = 8
# Everything that a pickle of numpy arrays needs, under numpy 1's and numpy 2's module names.
ALLOWED_GLOBALS = {
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
}
NUMPY_CORE = "numpy._core" if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else "numpy.core"


class _ArrayUnpickler(pickle.Unpickler):
    """Reads arrays, numbers, strings and containers; any other global is refused before it could be called."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED_GLOBALS:
            raise CheckpointError(
                f"refused: the file asks for {module}.{name}, and may hold only numpy arrays",
                "a pickle can run code; convert it with the program that wrote it, if you trust it",
            )
        for core in ("numpy.core", "numpy._core"):
            module = module.replace(core + ".", NUMPY_CORE + ".")
        return super().find_class(module, name)


def read_zoo_pickle(path: str) -> dict[str, Any]:
    """A Detectron, Detectron2 or converted torchvision .pkl file of arrays.

    Raises:
        CheckpointError: the file holds anything else, or is damaged.
    """
    try:
        with open(path, "rb") as stream:
            loaded = _ArrayUnpickler(io.BytesIO(stream.read()), encoding="latin1").load()
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error.message}", error.remedy) from error
    except (pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path}: not a readable pickle of arrays: {error}", "download it again") from error
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path}: holds a {type(loaded).__name__}, not a dictionary of weights")
    return loaded


class _ZooCheckpointer(DetectionCheckpointer):
    """Detectron2's name-matching machinery behind the two safe readers."""

    def _load_file(self, filename: str) -> dict[str, Any]:
        if not filename.endswith(".pkl"):
            return self._read_pth(filename)
        content = read_zoo_pickle(filename)
        if "model" in content and "__author__" in content:
            return content
        blobs = content.get("blobs", content)
        arrays = {key: value for key, value in blobs.items() if not key.endswith("_momentum")}
        return {"model": arrays, "__author__": "Caffe2", "matching_heuristics": True}

    def _read_pth(self, filename: str) -> dict[str, Any]:
        """{"model": weights}, and under "part" what stands before their names where they fill a part of the model.

        A converted file says itself that it is one; any other is whole, or damaged.
        """
        if is_darknet_file(filename):
            raise CheckpointError(
                f"{filename}: Darknet's own format, not to be loaded as it is",
                f"python tools/convert_weights.py --input {filename} --output darknet.pth; MODEL.WEIGHTS darknet.pth",
            )
        checkpoint = read_checkpoint(filename)
        weights = _state_dict_of(checkpoint)
        if not is_torchvision_resnet(weights):
            return {"model": weights, "part": _part_of(checkpoint, filename)}
        prefix = resnet_prefix(self.model, filename)
        return {
            "model": rename_resnet(weights, self.model, prefix, filename),
            "part": (prefix,),
            "keys": "MODEL.RESNETS (DEPTH, NUM_GROUPS, WIDTH_PER_GROUP)",
        }


def load_weights(model: nn.Module, path: str, allow_head_mismatch: bool = False) -> None:
    """Loads `path` (MODEL.WEIGHTS) into `model` (not wrapped in DDP), in place; "" loads nothing.

    A checkpoint with an EMA gives its averaged weights. ImageNet files of Detectron2 (.pkl) fill the backbone by
    matching names; those of torchvision's ResNets and ResNeXts (.pth) fill Detectron2's ResNet key by key; converted
    files of a backbone or a detector fill that part key by key; all other files must fit the whole model key by key.

    Args:
        path: a file, or a URL that Detectron2's PathManager knows (detectron2://, https://).
        allow_head_mismatch: load what fits and log the rest instead of raising.

    Raises:
        CheckpointError: not to be had, unreadable, unsafe, or not fitting (missing, unexpected, other shape).
    """
    if not path:
        return
    local_path = resolve_path(path)
    checkpointer = _ZooCheckpointer(model, save_to_disk=False)
    content = checkpointer._load_file(local_path)
    is_heuristic, part = bool(content.get("matching_heuristics", False)), content.get("part", ())
    _check_values(content["model"], path)
    before = len(content["model"])
    absent = absent_entries(model, part, content["model"]) if part else []
    left_out = [key for key in model.state_dict() if part and not key.startswith(part) and not _is_counter(key)]
    incompatible = checkpointer._load_model(content)
    num_loaded = len(model.state_dict()) - len(incompatible.missing_keys)
    reshaped = {key for key, _, _ in incompatible.incorrect_shapes}
    report = mismatch_report(
        # A counter that old files lack starts from 0 without harm.
        absent if part else [k for k in incompatible.missing_keys if k not in reshaped and not _is_counter(k)],
        list(incompatible.unexpected_keys),
        [f"{key} {tuple(theirs)} -> {tuple(ours)}" for key, theirs, ours in incompatible.incorrect_shapes],
    )
    # torch fills in the counters that a file of an old norm lacks, and does not call them missing.
    if not any(key not in incompatible.missing_keys and not _is_counter(key) for key in model.state_dict()):
        raise CheckpointError(f"{path}: none of its {before} entries fits the model{report}", "check MODEL.WEIGHTS")
    if report and not is_heuristic:
        _refuse_or_warn(path, report, content.get("keys", "the class count"), allow_head_mismatch)
    elif left_out:
        logger.info(
            "%s: %d of the model's entries filled; not in such files, as initialised: %s",
            *(path, num_loaded, count_by_part(left_out)),
        )
    elif is_heuristic:
        logger.info("%s: %d of the model's entries filled, the rest is new", path, num_loaded)
    else:
        logger.info("%s: all %d entries of the model loaded", path, num_loaded)


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def count_by_part(names: Iterable[str]) -> str:
    """Entries of a model by what stands before their first dot: "neck (85), orien_head (60)"."""
    counts = Counter(name.split(".")[0] for name in names)
    return ", ".join(f"{part} ({count})" for part, count in counts.items())


def _refuse_or_warn(path: str, report: str, keys: str, is_allowed: bool) -> None:
    if is_allowed:
        logger.warning("%s: loaded but for these (--allow-head-mismatch)%s", path, report)
        return
    raise CheckpointError(
        f"{path}: does not fit the model{report}",
        f"check MODEL.WEIGHTS and {keys}, or give --allow-head-mismatch to load the rest",
    )


def mismatch_report(missing: list[str], unexpected: list[str], shapes: list[str]) -> str:
    """One line a non-empty group with its count and first entries; "" when all three are empty."""
    groups = (
        ("missing in the file", missing),
        ("unexpected in the file", unexpected),
        ("wrong shape (file -> model)", shapes),
    )
    lines = [
        f"\n    {title} ({len(keys)}): {', '.join(keys[:SHOWN_KEYS])}{', ...' if len(keys) > SHOWN_KEYS else ''}"
        for title, keys in groups
        if keys
    ]
    return "".join(lines)


def resolve_path(path: str) -> str:
    """The local file of a path or URL, downloaded if need be.

    Raises:
        CheckpointError: says where the file can be had and how to do without it.
    """
    if os.path.isfile(path):
        return path
    if "://" not in path:
        raise CheckpointError(f"MODEL.WEIGHTS {path!r} does not exist", "give a file, a URL, or '' for random weights")
    try:
        local_path: str = PathManager.get_local_path(path)
    except Exception as error:
        # Each of iopath's handlers fails in its own way without a network.
        source = path.replace("detectron2://", ZOO_URL)
        raise CheckpointError(
            f"MODEL.WEIGHTS {path!r} cannot be downloaded: {error}",
            f"fetch {source} where there is a network and give MODEL.WEIGHTS <file>; or train from scratch with "
            "MODEL.WEIGHTS '' and MODEL.RESNETS.NORM BN MODEL.BACKBONE.FREEZE_AT 0 (frozen random norms diverge); "
            "or take a config with a timm backbone",
        ) from error
    return local_path


def _state_dict_of(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The weights to use of a .pth: "model" with its EMA written over it, or the dictionary itself."""
    weights = dict(checkpoint.get("model", checkpoint))
    average = checkpoint.get("ema")
    if isinstance(average, dict):
        for name, tensor in average["shadow"].items():
            weights[name] = tensor.to(weights[name].dtype) if name in weights else tensor
    return weights


def _part_of(checkpoint: dict[str, Any], path: str) -> tuple[str, ...]:
    part = checkpoint.get("part", []) if "model" in checkpoint else []
    if not isinstance(part, list) or not all(isinstance(prefix, str) and prefix for prefix in part):
        raise CheckpointError(f"{path}: its 'part' is {part!r}, not a list of names", "convert the original again")
    return tuple(part)


def _check_values(weights: Any, path: str) -> None:
    if not isinstance(weights, dict):
        raise CheckpointError(f"{path}: 'model' is a {type(weights).__name__}, not a dictionary of weights")
    for key, value in weights.items():
        if not isinstance(value, torch.Tensor | np.ndarray):
            raise CheckpointError(
                f"{path}: entry {key!r} is a {type(value).__name__}, not a tensor",
                "give a file of weights; those of a paper's authors go through tools/convert_weights.py",
            )
