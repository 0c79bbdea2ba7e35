"""Trains a small model on generated scenes, measures it on scenes it has not seen, and draws what it finds.

    python tools/demo_run.py --method polarmask

Needs no download, no GPU and no data; takes about ten minutes on two cores. The last line is `segm AP <number>`
(`bbox AP <number>` for a method without masks), or one JSON object with --json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from detectron2.utils.logger import setup_logger  # noqa: E402

import train_net  # noqa: E402
from projects import get_cfg  # noqa: E402
from segzoo.config import merge_config  # noqa: E402
from segzoo.data.image_io import read_image  # noqa: E402
from segzoo.data.registration import load_dataset, load_metadata  # noqa: E402
from segzoo.engine.predictor import Predictor  # noqa: E402
from segzoo.errors import ConfigError, SegZooError  # noqa: E402
from segzoo.visualization import draw_instances, save_image, side_by_side  # noqa: E402

CONFIG_FOLDER = ROOT / "configs" / "quick"
NUM_PICTURES = 8
MIN_SCORE = 0.3


def main(argv: list[str] | None = None) -> int:
    """Runs the demo; returns the exit code."""
    args = _parse(argv)
    setup_logger(name="segzoo")
    try:
        return _run(args)
    except SegZooError as error:
        print(f"error: {error}", file=sys.stderr)
        if args.json:
            print(json.dumps({"error": error.message}))
        return error.exit_code


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="polarmask", help="the scenes config of configs/quick to train")
    parser.add_argument("--output", default="output", metavar="DIR", help="where demo_<method> is made")
    parser.add_argument("--json", action="store_true", help="end with one JSON object instead")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys")
    return parser.parse_args(argv)


def _run(args: argparse.Namespace) -> int:
    config = CONFIG_FOLDER / f"{args.method}_scenes.yaml"
    if not config.is_file():
        known = sorted(path.name.removesuffix("_scenes.yaml") for path in CONFIG_FOLDER.glob("[!B]*_scenes.yaml"))
        raise ConfigError(f"no demo for method {args.method!r}", f"use one of {', '.join(known)}")
    folder = _free_folder(Path(args.output), f"demo_{args.method}")
    start = time.perf_counter()
    options = [*args.opts, "OUTPUT_DIR", str(folder)]
    code = train_net.run(["--config-file", str(config), "--num-gpus", str(_num_gpus()), *options])
    if code:
        return code
    minutes = (time.perf_counter() - start) / 60
    pictures = _draw_pictures(str(folder))
    metric, value = _final_metric(folder / "metrics.json")
    print(f"pictures: {pictures}")
    print(f"time: {minutes:.1f} minutes for data, training and evaluation")
    if args.json:
        print(json.dumps({"method": args.method, metric: value, "minutes": minutes, "pictures": pictures}))
    else:
        print(f"{metric} {value:.1f}")
    return 0


def _free_folder(parent: Path, name: str) -> Path:
    """parent/name, or the first of parent/name_2, ... that does not exist: no demo overwrites another."""
    folder, number = parent / name, 1
    while folder.exists():
        number += 1
        folder = parent / f"{name}_{number}"
    return folder


def _num_gpus() -> int:
    import torch

    return min(1, torch.cuda.device_count())


def _final_metric(metrics_file: Path) -> tuple[str, float]:
    """("segm AP", value), or ("bbox AP", value) where no masks are predicted, of the last evaluation."""
    last: dict[str, float] = {}
    for line in metrics_file.read_text().splitlines():
        entries: Mapping[str, float] = json.loads(line)
        last.update({key: value for key, value in entries.items() if key.endswith("/AP")})
    key = "segm/AP" if "segm/AP" in last else "bbox/AP"
    return key.replace("/", " "), last[key]


def _draw_pictures(folder: str) -> str:
    """The first val scenes beside what was found in them; returns the folder of the pictures."""
    cfg = merge_config(get_cfg(), os.path.join(folder, "config.yaml"))
    cfg.MODEL.WEIGHTS = os.path.join(folder, "model_best.pth")
    predictor = Predictor(cfg)
    names = load_metadata(cfg.DATASETS.TEST[0]).thing_classes
    pictures = os.path.join(folder, "pictures")
    os.makedirs(pictures, exist_ok=True)
    for record in load_dataset(cfg.DATASETS.TEST[0])[:NUM_PICTURES]:
        image = read_image(record["file_name"], "BGR")
        found = draw_instances(image, predictor(record["file_name"]), names, MIN_SCORE)
        name = f"{Path(record['file_name']).stem}.png"
        save_image(os.path.join(pictures, name), side_by_side([image, found], ["image", "predicted"]))
    return pictures


if __name__ == "__main__":
    sys.exit(main())
