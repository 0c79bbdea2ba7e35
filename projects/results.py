"""What was measured here: projects/results.yaml, read strictly."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from projects.catalog import ROOT, config_names
from segzoo.engine.ablations import kind_of
from segzoo.errors import ConfigError

RESULTS_FILE = ROOT / "projects" / "results.yaml"
# Key -> its types.
REQUIRED: dict[str, tuple[type, ...]] = {
    "config": (str,),
    "dataset": (str,),
    "commit": (str,),
    "machine": (str,),
    "iterations": (int,),
    "minutes": (int, float),
    "metrics": (dict,),
}
OPTIONAL: dict[str, tuple[type, ...]] = {"options": (dict,), "note": (str,)}


@dataclass(frozen=True)
class Result:
    """A training that was measured.

    config: below configs/. dataset: that it was tested on, a key of the file's `datasets`. commit: of this repository.
    iterations: of the training. minutes: that it took on `machine`. metrics: name, as TEST.BEST_METRIC has it, ->
    percent. options: config keys that were changed.
    """

    config: str
    dataset: str
    commit: str
    machine: str
    iterations: int
    minutes: float
    metrics: Mapping[str, float]
    options: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


def read_results(path: Path = RESULTS_FILE) -> tuple[dict[str, str], list[Result]]:
    """What the data sets are, by name, and all results in the file's order.

    Raises:
        ConfigError: not readable, not yaml, or an entry that is not as REQUIRED and OPTIONAL have it; names the entry.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    if not isinstance(content, dict) or set(content) != {"datasets", "results"}:
        raise ConfigError(f"{path}: must have datasets and results, and nothing else")
    datasets, known = content["datasets"], set(config_names())
    results = []
    for number, entry in enumerate(content["results"], start=1):
        where = f"{path}, result {number}"
        _check_keys(entry, where)
        _check_values(entry, known, datasets, where)
        results.append(Result(**entry))
    return datasets, results


def _check_keys(entry: Any, where: str) -> None:
    if not isinstance(entry, dict):
        raise ConfigError(f"{where}: is {entry!r}", f"give {', '.join(REQUIRED)}")
    types = REQUIRED | OPTIONAL
    for key, value in entry.items():
        if key not in types:
            raise ConfigError(f"{where}: unknown key {key!r}", f"known are {', '.join(types)}")
        if isinstance(value, bool) or not isinstance(value, types[key]):
            raise ConfigError(f"{where}: {key} is {value!r}", f"it must be {types[key][-1].__name__}")
    for key in REQUIRED:
        if key not in entry:
            raise ConfigError(f"{where}: {key} is missing")


def _check_values(entry: Mapping[str, Any], configs: set[str], datasets: Mapping[str, str], where: str) -> None:
    if entry["config"] not in configs:
        raise ConfigError(f"{where}: {entry['config']!r} is no config", "name a file below configs/")
    if entry["dataset"] not in datasets:
        raise ConfigError(f"{where}: data set {entry['dataset']!r} is not described", "add it to datasets")
    if not re.fullmatch("[0-9a-f]{7,40}", entry["commit"]):
        raise ConfigError(
            f"{where}: commit is {entry['commit']!r}", "give 7 to 40 hexadecimal digits, in quotes if need be"
        )
    if entry["iterations"] < 1 or not entry["minutes"] > 0:
        raise ConfigError(f"{where}: {entry['iterations']} iterations in {entry['minutes']} minutes")
    for name, value in entry["metrics"].items():
        is_percent = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if kind_of(name) != "train" or not (is_percent and 0 <= value <= 100):
            raise ConfigError(f"{where}: metric {name!r} is {value!r}", "give names such as segm/AP, and percent")
    if not entry["metrics"]:
        raise ConfigError(f"{where}: no metrics")
