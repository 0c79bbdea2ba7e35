"""From the command line to a checked, frozen config with its data sets, output folder, log and seeds."""

from __future__ import annotations

import argparse
import logging
import os
import random
import sys
import tempfile
from collections.abc import Sequence

import numpy as np
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from segzoo.config import merge_config
from segzoo.data.registration import (
    check_categories_agree,
    num_classes_of,
    register_builtin,
    register_json,
)
from segzoo.engine.checkpoint import (
    LAST_CHECKPOINT,
    PERIODIC_PATTERN,
    refuse_other_config,
    remove_stale_parts,
    write_atomically,
)
from segzoo.engine.device import choose_device, device_text
from segzoo.engine.distributed import on_main_process
from segzoo.engine.environment import write_environment
from segzoo.engine.evaluate import trained_weights
from segzoo.engine.resume import read_last_checkpoint
from segzoo.engine.validate import validate_batch, validate_config, walk
from segzoo.errors import ConfigError

logger = logging.getLogger(__name__)

CONFIG_NAME = "config.yaml"
LOGGERS = ("detectron2", "fvcore", "segzoo")
# Class counts of something else than the instances of the data set.
OTHER_CLASS_COUNTS = ("MODEL.SEM_SEG_HEAD.NUM_CLASSES",)


def build_config(cfg: CfgNode, args: argparse.Namespace) -> CfgNode:
    """Merges file, flags and KEY VALUE pairs into `cfg` and settles the device; touches no disk but the yaml file.

    Raises:
        ConfigError: see `merge_config`; a json flag without its images; a GPU that is not there.
    """
    merge_config(cfg, args.config_file, args.opts)
    for split, datasets_key in (("train", "TRAIN"), ("val", "TEST")):
        _take_json_flags(cfg, args, split, datasets_key)
    if args.train_json and not cfg.DATASETS.VAL_JSON and "DATASETS.TEST" not in args.opts[::2]:
        # Own data without a validation set: evaluating the config's own one would compare other classes.
        cfg.DATASETS.TEST = ()
    cfg.MODEL.DEVICE = choose_device(cfg.MODEL.DEVICE, args.num_gpus)
    validate_config(cfg)
    return cfg


def _take_json_flags(cfg: CfgNode, args: argparse.Namespace, split: str, datasets_key: str) -> None:
    json_file, images = getattr(args, f"{split}_json"), getattr(args, f"{split}_images")
    if bool(json_file) != bool(images):
        raise ConfigError(f"--{split}-json and --{split}-images go together", "give both or neither")
    if json_file:
        cfg.DATASETS[f"{split.upper()}_JSON"] = json_file
        cfg.DATASETS[f"{split.upper()}_IMAGES"] = images
    own_name = f"{split}_json"
    if f"DATASETS.{datasets_key}" in args.opts[::2]:
        # Named on the command line: that counts more than the json of a run's config.yaml.
        if json_file and own_name not in cfg.DATASETS[datasets_key]:
            raise ConfigError(
                f"--{split}-json {json_file}, but DATASETS.{datasets_key} is {cfg.DATASETS[datasets_key]}",
                f"give one of them, or name {own_name!r} in DATASETS.{datasets_key}",
            )
    elif cfg.DATASETS[f"{split.upper()}_JSON"]:
        cfg.DATASETS[datasets_key] = (own_name,)


def setup(cfg: CfgNode, args: argparse.Namespace, loggers: Sequence[str] = ()) -> CfgNode:
    """Prepares a run in this process; called on all ranks.

    Checks the output folder, starts the log, seeds, registers and audits the data sets, settles the class count and
    the learning rate, and writes OUTPUT_DIR/config.yaml.

    Args:
        cfg: all known keys with their defaults.
        args: of `build_argument_parser`.
        loggers: names of further packages whose log belongs to the run.

    Returns:
        the frozen config.

    Raises:
        ConfigError: an impossible value, or an output folder that is unusable or already taken.
        DatasetError: unusable data.
    """
    build_config(cfg, args)
    is_training = not args.eval_only
    on_main_process(lambda: prepare_output_dir(cfg.OUTPUT_DIR, is_training and not args.resume))
    _start_log(cfg.OUTPUT_DIR, [*LOGGERS, *loggers])
    logger.info("Device: %s", device_text(torch.device(cfg.MODEL.DEVICE)))
    if is_training:
        validate_batch(cfg, comm.get_world_size())
    else:
        cfg.MODEL.WEIGHTS = on_main_process(lambda: trained_weights(cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR))
    saved = read_last_checkpoint(cfg.OUTPUT_DIR, mmap=True) if is_training and args.resume else None
    saved_config = saved["config"] if saved is not None else ""
    cfg.SEED = _resolve_seed(cfg, args.resume, saved_config)
    seed_everything(cfg.SEED + comm.get_rank())
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    register_datasets(cfg)
    if is_training:
        if not cfg.DATASETS.TRAIN:
            raise ConfigError("DATASETS.TRAIN is empty", "give it, or --train-json and --train-images")
        if not args.skip_audit:
            _audit(cfg)
    elif not cfg.DATASETS.TEST:
        raise ConfigError("DATASETS.TEST is empty", "give it, or --val-json and --val-images")
    resolve_num_classes(cfg, is_training)
    scale_learning_rate(cfg)
    if is_training:
        # A refused resume leaves the run as it was, its config.yaml included.
        if saved_config and not args.force:
            refuse_other_config(saved_config, cfg, force=False)
        on_main_process(lambda: _begin_run(cfg))
    cfg.freeze()
    return cfg


def prepare_output_dir(folder: str, must_be_new: bool) -> None:
    """Makes the folder and proves that it can be written.

    Raises:
        ConfigError: it cannot, or it holds a run and `must_be_new`.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"OUTPUT_DIR {folder!r} cannot be written: {error}", "give OUTPUT_DIR <folder>") from error
    traces = [name for name in sorted(os.listdir(folder)) if _is_trace_of_run(name)]
    if must_be_new and traces:
        raise ConfigError(
            f"OUTPUT_DIR {folder!r} holds a run already ({', '.join(traces[:3])})",
            "give --resume to go on with it, or another OUTPUT_DIR",
        )


def register_datasets(cfg: CfgNode) -> None:
    """Builtin names, and "train_json" / "val_json" when DATASETS.TRAIN_JSON / VAL_JSON are set."""
    register_builtin()
    for split in ("train", "val"):
        json_file = cfg.DATASETS[f"{split.upper()}_JSON"]
        if json_file:
            file_format = cfg.DATASETS.VAL_FORMAT if split == "val" else "coco"
            register_json(f"{split}_json", json_file, cfg.DATASETS[f"{split.upper()}_IMAGES"], file_format)


def resolve_num_classes(cfg: CfgNode, is_training: bool = True) -> int:
    """Writes the class count of the data into MODEL.NUM_CLASSES and every method's NUM_CLASSES; returns it.

    An evaluation needs the test sets alone: the training data may be on another machine.

    Raises:
        ConfigError: MODEL.NUM_CLASSES is set (not 0) to another number than the data has, before any model is built.
        DatasetError: training and test sets disagree on the classes.
    """
    names = [*(cfg.DATASETS.TRAIN if is_training else ()), *cfg.DATASETS.TEST]
    if not names:
        return int(cfg.MODEL.NUM_CLASSES)
    num_classes = num_classes_of(names[0])
    for other in names[1:]:
        check_categories_agree(names[0], other)
    if cfg.MODEL.NUM_CLASSES not in (0, num_classes):
        raise ConfigError(
            f"MODEL.NUM_CLASSES is {cfg.MODEL.NUM_CLASSES}, but data set {names[0]!r} has {num_classes} classes",
            f"give MODEL.NUM_CLASSES {num_classes}, or 0 to take the number from the data",
        )
    write_num_classes(cfg, num_classes)
    return num_classes


def write_num_classes(cfg: CfgNode, num_classes: int) -> None:
    """Writes the class count into MODEL.NUM_CLASSES and every method's NUM_CLASSES."""
    for key, _ in list(walk(cfg.MODEL, "MODEL.")):
        if key.endswith(".NUM_CLASSES") and key not in OTHER_CLASS_COUNTS:
            cfg.merge_from_list([key, num_classes])


def scale_learning_rate(cfg: CfgNode) -> None:
    """Scales BASE_LR to the batch with SOLVER.AUTO_SCALE_LR, or logs a hint, when the batch is not the recipe's."""
    solver = cfg.SOLVER
    recipe, batch = solver.RECIPE_IMS_PER_BATCH, solver.IMS_PER_BATCH
    if recipe in (0, batch):
        return
    scaled = solver.BASE_LR * batch / recipe
    if not solver.AUTO_SCALE_LR:
        logger.warning(
            "SOLVER.BASE_LR %g is the recipe's for batches of %d; for %d, linear scaling suggests SOLVER.BASE_LR %g "
            "(and as many more iterations), or set SOLVER.AUTO_SCALE_LR True",
            *(solver.BASE_LR, recipe, batch, scaled),
        )
        return
    logger.info("SOLVER.BASE_LR %g -> %g for batches of %d instead of %d", solver.BASE_LR, scaled, batch, recipe)
    solver.BASE_LR = scaled
    # A dumped config must not be scaled once more when it is used again.
    solver.RECIPE_IMS_PER_BATCH = batch


def seed_everything(seed: int) -> None:
    """Seeds python, numpy and torch; the data pipeline has its own generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _audit(cfg: CfgNode) -> None:
    from segzoo.data.audit import audit_dataset

    for name in [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]:
        table = on_main_process(lambda name=name: audit_dataset(name, cfg).table())  # type: ignore[misc]
        logger.info("Audit of %s\n%s", name, table)


def _begin_run(cfg: CfgNode) -> None:
    remove_stale_parts(cfg.OUTPUT_DIR)
    write_atomically(os.path.join(cfg.OUTPUT_DIR, CONFIG_NAME), cfg.dump())
    write_environment(cfg.OUTPUT_DIR, torch.device(cfg.MODEL.DEVICE))


def _resolve_seed(cfg: CfgNode, resume: bool, saved_config: str) -> int:
    """cfg.SEED; when negative, that of the run to resume (killed before any checkpoint: of its config.yaml), or a new
    one that all ranks share."""
    if cfg.SEED >= 0:
        return int(cfg.SEED)
    if resume and not saved_config:
        saved_config = on_main_process(lambda: _read_config_file(cfg.OUTPUT_DIR))
    return int(yaml.safe_load(saved_config)["SEED"] if saved_config else comm.shared_random_seed())


def _read_config_file(folder: str) -> str:
    path = os.path.join(folder, CONFIG_NAME)
    if not os.path.isfile(path):
        return ""
    with open(path, encoding="utf-8") as stream:
        return stream.read()


def _start_log(output_dir: str, names: Sequence[str]) -> None:
    # Detectron2 remembers that a logger was set up; a second run of this process would have none.
    set_up = getattr(setup_logger, "__wrapped__", setup_logger)
    for name in names:
        for handler in list(logging.getLogger(name).handlers):
            logging.getLogger(name).removeHandler(handler)
        set_up(output_dir, comm.get_rank(), name=name, abbrev_name=name, color=sys.stdout.isatty())


def _is_trace_of_run(name: str) -> bool:
    return name in (LAST_CHECKPOINT, "metrics.json") or PERIODIC_PATTERN.fullmatch(name) is not None
