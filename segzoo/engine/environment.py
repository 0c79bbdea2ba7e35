"""What a run's figures belong to: the device, the processor and the versions, written down beside its config."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from segzoo.engine.checkpoint import write_atomically
from segzoo.engine.device import device_text

ENVIRONMENT_NAME = "environment.json"


def environment_of(device: torch.device) -> dict[str, Any]:
    """What figures belong to: device, processor, threads and versions; plain values for json."""
    packages = {}
    for package in ("torch", "torchvision", "detectron2", "sal-detectron2", "pycocotools"):
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "device": device_text(device),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        # Products of ten bits in what is called fp32.
        "tf32": _tf32() if device.type == "cuda" else None,
        "versions": packages,
    }


def _tf32() -> dict[str, bool]:
    return {
        "matrix products": torch.backends.cuda.matmul.allow_tf32,
        "convolutions": torch.backends.cudnn.allow_tf32,
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def write_environment(folder: str, device: torch.device) -> None:
    """Writes `environment_of` of a run into its folder; a resumed run's replaces that of its start."""
    write_atomically(os.path.join(folder, ENVIRONMENT_NAME), json.dumps(environment_of(device), indent=1) + "\n")


def read_environment(folder: str) -> dict[str, Any] | None:
    """What a run has written into its folder; None where it has not."""
    try:
        with open(os.path.join(folder, ENVIRONMENT_NAME), encoding="utf-8") as stream:
            content = json.load(stream)
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def environment_text(environment: Mapping[str, Any] | None) -> str:
    """Device and processor in words, for captions."""
    if environment is None:
        return "unknown device"
    return f"{environment['device']}, {environment['processor']}"
