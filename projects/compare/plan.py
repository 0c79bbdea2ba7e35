"""What is compared, under which budget, and the trainings that this means."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from projects import get_cfg
from projects.catalog import CONFIGS, MAIN_CONFIGS, ROOT
from projects.runs import DATA_FLAGS, Record, Run, check_record, execute, read_record, recorded
from segzoo.config import merge_config
from segzoo.engine.schedule import scaled_schedule
from segzoo.engine.setup import prepare_output_dir
from segzoo.errors import ConfigError

METHODS = ("polarmask", "centermask", "orienmask", "fcosis", "mask_rcnn")
TITLES = {
    "polarmask": "PolarMask",
    "centermask": "CenterMask",
    "orienmask": "OrienMask",
    "fcosis": "FCOSIS",
    "mask_rcnn": "Mask R-CNN",
}
# Name -> a config of each method. Those of "small" and "scenes" share one backbone, pretrained on ImageNet; those of
# "papers" are the papers' own recipes.
SUITES: dict[str, dict[str, str]] = {
    "small": {name: f"{name}_EffLite0.yaml" for name in METHODS},
    "scenes": {name: f"quick/{name}_scenes.yaml" for name in METHODS}
    | {"centermask": "quick/centermask_EffLite0_scenes.yaml"},
    "papers": dict(zip(METHODS, MAIN_CONFIGS, strict=True)),
}
# What a suite changes in its models, so that they see the same pixels with the same optimiser: the input of the two
# methods that need one size, and of Mask R-CNN's recipe the others' optimiser.
ADAMW = (
    *("SOLVER.OPTIMIZER", "ADAMW", "SOLVER.BASE_LR", "0.001", "SOLVER.BACKBONE_LR_FACTOR", "0.3"),
    *("SOLVER.WEIGHT_DECAY", "0.05", "SOLVER.WEIGHT_DECAY_BIAS", "0.0", "SOLVER.WEIGHT_DECAY_NORM", "0.0"),
    *("SOLVER.WARMUP_ITERS", "50", "SOLVER.WARMUP_FACTOR", "0.1"),
)
SUITE_OPTIONS: dict[str, tuple[str, ...]] = {
    "small": ("INPUT.RESIZE", "fixed", "INPUT.FIXED_SIZE", "(320, 320)", *ADAMW),
    "scenes": ("INPUT.RESIZE", "fixed", "INPUT.FIXED_SIZE", "(256, 256)"),
    "papers": (),
}
# Iterations that tell how long one takes; the first of them, while caches are cold, do not count.
CALIBRATION_ITERATIONS = 14
CALIBRATION_WARM_UP = 4
CALIBRATION_FOLDER = "calibration"


@dataclass(frozen=True)
class Entry:
    """A model to compare: its name in folders, its title on the page, the path of its config, KEY VALUE words."""

    name: str
    title: str
    config: str
    options: tuple[str, ...] = ()

    @property
    def short_config(self) -> str:
        """The path of a shipped config within this repository, any other as it was given."""
        path = Path(self.config)
        return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else self.config


@dataclass(frozen=True)
class Budget:
    """What every training may use: minutes of training, or iterations of batches of equal size.

    minutes: of the iterations; 0 where iterations are given. max_iter: 0 where minutes are given. batch: images an
    iteration, 0 = each config's own. seeds: one training each. evaluations: of each training, the last one included.
    """

    minutes: float = 0.0
    max_iter: int = 0
    batch: int = 0
    seeds: tuple[int, ...] = (1,)
    evaluations: int = 1

    def text(self) -> str:
        """The budget in words, for captions."""
        seeds = "one seed" if len(self.seeds) == 1 else f"{len(self.seeds)} seeds"
        if self.minutes:
            return f"{self.minutes:g} minutes of training a model, {seeds}"
        return f"{self.max_iter} iterations a model, {seeds}"


@dataclass(frozen=True)
class Settings:
    """What all trainings share.

    output: folder of everything. data_words: --train-json and the like; without them the configs' own data.
    process_words: --num-gpus and the like. options: KEY VALUE words for every model.
    """

    output: str
    data_words: tuple[str, ...] = ()
    process_words: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


def choose_entries(suite: str, methods: Sequence[str], config_files: Sequence[str]) -> list[Entry]:
    """The models to compare.

    Args:
        suite: a key of SUITES.
        methods: of the suite; none = all of them, unless config files are given.
        config_files: further models; NAME=FILE gives one a name of its own.

    Raises:
        ConfigError: an unknown method, or two models of one name.
    """
    unknown = [name for name in methods if name not in METHODS]
    if unknown:
        raise ConfigError(f"unknown method {unknown[0]!r}", f"use {', '.join(METHODS)}, or --config-file")
    chosen = methods or (() if config_files else METHODS)
    entries = [Entry(name, TITLES[name], str(CONFIGS / SUITES[suite][name]), SUITE_OPTIONS[suite]) for name in chosen]
    for words in config_files:
        name, _, file = words.rpartition("=")
        entries.append(Entry(name or Path(file).stem, name or Path(file).stem, file))
    names = [entry.name for entry in entries]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise ConfigError(f"two models are named {doubled[0]!r}", "name one of them: --config-file NAME=FILE")
    return entries


def check_plan(entries: Sequence[Entry], budget: Budget, settings: Settings) -> None:
    """Refuses what could not be compared, before anything is trained.

    Raises:
        ConfigError: iterations of unequal batches, by which one model would see more images than another; data that is
            absent, differs, or is scored by LVIS's rule; an output folder that cannot be written, or that holds other
            trainings; what `merge_config` refuses.
    """
    configs = {entry.name: read_entry(entry, budget, settings) for entry in entries}
    batches = {name: cfg.SOLVER.IMS_PER_BATCH for name, cfg in configs.items()}
    if budget.max_iter and len(set(batches.values())) > 1:
        listed = ", ".join(f"{name} {batch}" for name, batch in batches.items())
        raise ConfigError(f"the configs have batches of different sizes: {listed}", "give --batch, or --minutes")
    _check_data(configs, settings)
    prepare_output_dir(settings.output, must_be_new=False)
    for run in known_runs(entries, budget, settings):
        check_record(run, settings.output)


def _check_data(configs: Mapping[str, CfgNode], settings: Settings) -> None:
    given = set(settings.data_words[::2])
    wanted = {f"--{flag.replace('_', '-')}" for flag in DATA_FLAGS}
    if given and given != wanted:
        raise ConfigError(f"{', '.join(sorted(wanted - given))} is missing", f"give all of {', '.join(sorted(wanted))}")
    formats = {cfg.DATASETS.VAL_FORMAT for cfg in configs.values()}
    if formats != {"coco"}:
        raise ConfigError(f"DATASETS.VAL_FORMAT {', '.join(sorted(formats))}", "only COCO's rule can be compared by")
    if given:
        return
    data = {name: (tuple(cfg.DATASETS.TRAIN), tuple(cfg.DATASETS.TEST)) for name, cfg in configs.items()}
    if len(set(data.values())) > 1:
        listed = "; ".join(f"{name} {train} and {test}" for name, (train, test) in data.items())
        raise ConfigError(f"the configs have different data: {listed}", "give --train-json and its relatives for all")
    train, test = next(iter(data.values()))
    if not train or len(test) != 1 or test[0].startswith("lvis"):
        raise ConfigError(
            f"DATASETS.TRAIN is {train}, DATASETS.TEST is {test}", "give --train-json, --train-images, --val-json and "
            "--val-images, or one test set of COCO's rule"
        )  # fmt: skip


def known_runs(entries: Sequence[Entry], budget: Budget, settings: Settings) -> Iterator[Run]:
    """The trainings whose number of iterations is known without timing any."""
    for entry in entries:
        iterations = budget.max_iter
        if not iterations:
            calibration = read_record(os.path.join(settings.output, CALIBRATION_FOLDER, f"{entry.name}.json"))
            if calibration is None or calibration.state != "done":
                continue
            iterations = iterations_of(entry, budget, settings, do=recorded)
        for seed in budget.seeds:
            yield training_run(entry, seed, iterations, budget, settings)


def read_entry(entry: Entry, budget: Budget, settings: Settings) -> CfgNode:
    """The config of a model with the options of the comparison, without a schedule."""
    return merge_config(get_cfg(), entry.config, [*entry.options, *_shared_options(budget), *settings.options])


def training_run(entry: Entry, seed: int, iterations: int, budget: Budget, settings: Settings) -> Run:
    """One training: the schedule of the config, scaled to the iterations.

    Raises:
        ConfigError: what `merge_config` refuses.
    """
    cfg = read_entry(entry, budget, settings)
    schedule = scaled_schedule(cfg, iterations)
    if budget.evaluations > 1:
        schedule["TEST.EVAL_PERIOD"] = -(-iterations // budget.evaluations)
    return Run(f"{entry.name}_{seed}", _words(entry, budget, settings, {**schedule, "SEED": seed}))


def calibration_run(entry: Entry, budget: Budget, settings: Settings) -> Run:
    """A few iterations, to be timed; nothing is evaluated."""
    keys: dict[str, Any] = {
        "SOLVER.MAX_ITER": CALIBRATION_ITERATIONS,
        "SOLVER.STEPS": (),
        "SOLVER.WARMUP_ITERS": 0,
        "SOLVER.LOG_PERIOD": 1,
        "SOLVER.CHECKPOINT_PERIOD": 0,
        "DATASETS.TEST": (),
        "SEED": 1,
    }
    pairs = zip(settings.data_words[::2], settings.data_words[1::2], strict=True)
    training_data = tuple(word for pair in pairs if pair[0].startswith("--train") for word in pair)
    words = _words(entry, budget, replace(settings, data_words=training_data), keys)
    return Run(entry.name, (*words, "--skip-audit"))


def _words(entry: Entry, budget: Budget, settings: Settings, keys: dict[str, Any]) -> tuple[str, ...]:
    own = [str(word) for pair in keys.items() for word in pair]
    flags = ("--config-file", entry.config, *settings.data_words, *settings.process_words)
    return (*flags, *entry.options, *_shared_options(budget), *settings.options, *own)


def _shared_options(budget: Budget) -> list[str]:
    words = ["TEST.BOUNDARY_AP", "True"]
    if budget.batch:
        # The rate follows the batch, as each recipe was made for its own.
        words += ["SOLVER.IMS_PER_BATCH", str(budget.batch), "SOLVER.AUTO_SCALE_LR", "True"]
    return words


def iterations_of(
    entry: Entry, budget: Budget, settings: Settings, *, do: Callable[[Run, str], Record] = execute
) -> int:
    """Iterations of a training within the budget; of minutes, by timing a few.

    Raises:
        ConfigError: the few could not be run, or not one fits into the minutes.
    """
    if budget.max_iter:
        return budget.max_iter
    folder = os.path.join(settings.output, CALIBRATION_FOLDER)
    run = calibration_run(entry, budget, settings)
    record = do(run, folder)
    if record.state != "done":
        raise ConfigError(record.error, f"see {os.path.join(folder, run.name)}.log; the same command tries it again")
    seconds = seconds_per_iteration(os.path.join(folder, run.name, "metrics.json"))
    iterations = int(budget.minutes * 60 / seconds)
    if iterations < 1:
        raise ConfigError(
            f"{entry.name}: an iteration takes {seconds:.1f} s", f"give more than {budget.minutes:g} minutes"
        )
    return iterations


def seconds_per_iteration(path: str) -> float:
    """Median of those of a calibration, from its metrics.json."""
    with open(path, encoding="utf-8") as stream:
        lines = [json.loads(line) for line in stream]
    times = [line["time"] for line in lines if "time" in line and line["iteration"] >= CALIBRATION_WARM_UP]
    if not times:
        raise ConfigError(f"{path}: no times of iterations", "remove the folder; the same command makes it anew")
    return statistics.median(times)
