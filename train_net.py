"""Train, resume or evaluate any method: `python train_net.py --config-file configs/polarmask_R50.yaml --num-gpus 8`."""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
from collections.abc import Mapping

from detectron2.modeling import build_model
from detectron2.utils import comm

from projects import METHODS, get_cfg
from segzoo.engine.arguments import build_argument_parser
from segzoo.engine.evaluate import evaluate_datasets, folder_of_weights
from segzoo.engine.launch import launch, print_error
from segzoo.engine.setup import build_config, setup
from segzoo.engine.trainer import Trainer
from segzoo.engine.weights import load_weights
from segzoo.errors import SegZooError

logger = logging.getLogger("segzoo.train_net")


def main(args: argparse.Namespace) -> None:
    """One process of the run."""
    cfg = setup(get_cfg(), args, loggers=[method.__name__ for method in METHODS])
    if args.eval_only:
        model = build_model(cfg)
        load_weights(model, cfg.MODEL.WEIGHTS, args.allow_head_mismatch)
        results = evaluate_datasets(cfg, model, folder_of_weights(cfg.MODEL.WEIGHTS))
        if comm.is_main_process():
            print(as_json(results))
        return
    trainer = Trainer(cfg, resume=args.resume, force=args.force, allow_head_mismatch=args.allow_head_mismatch)
    trainer.train()


def as_json(results: dict[str, Mapping[str, Mapping[str, float]]]) -> str:
    """One line of strict JSON: what does not exist (the AP of a class without objects) is null."""
    plain = {
        name: {
            task: {key: value if math.isfinite(value) else None for key, value in metrics.items()}
            for task, metrics in tasks.items()
        }
        for name, tasks in results.items()
    }
    return json.dumps(plain)


def run(argv: list[str] | None = None) -> int:
    """Parses the command line, starts the processes and returns the exit code."""
    args = build_argument_parser().parse_intermixed_args(argv)
    try:
        # Errors of the config show here once, before any process is started.
        device = build_config(get_cfg(), args).MODEL.DEVICE
    except SegZooError as error:
        print_error(error)
        return error.exit_code
    return launch(main, args, device)


if __name__ == "__main__":
    sys.exit(run())
