"""Segments images with a trained model: pictures with the instances drawn, and results as COCO json.

    python demo/demo.py --input photo.jpg folder 'scans/*.png' --output pictures --results results.json \\
        --config-file output/config.yaml --opts MODEL.WEIGHTS output/model_best.pth

Exit codes: 0 done; 1 some inputs could not be read (they are listed, the rest is done); 2 config or weights are at
fault, or nothing can be written; 130 Ctrl-C (what was finished is kept).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.structures import Instances
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from demo.inputs import find_images, overlay_names
from projects import get_cfg
from segzoo.config import merge_config
from segzoo.data.image_io import read_image
from segzoo.data.registration import load_metadata
from segzoo.data.scenes import CLASS_NAMES, SCENES_V1_NAMES
from segzoo.engine.evaluate import trained_weights
from segzoo.engine.predictor import Predictor
from segzoo.engine.setup import choose_device, register_datasets, write_num_classes
from segzoo.errors import ConfigError, SegZooError
from segzoo.visualization import draw_instances, draw_rays, save_image, side_by_side

PANELS_IN_A_ROW = 3


@dataclass
class Outcome:
    """What became of the images: COCO results, and (file, reason) of those that could not be read."""

    num_images: int = 0
    seconds: float = 0.0
    results: list[dict[str, Any]] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    interrupted: bool = False

    @property
    def exit_code(self) -> int:
        if self.interrupted:
            return 130
        return 1 if self.failed else 0


@dataclass(frozen=True)
class ClassTable:
    """Names and COCO category ids by class index; an index beyond both is "class k" and k + 1."""

    names: Sequence[str] = ()
    category_ids: Sequence[int] = ()

    def category_id(self, class_index: int) -> int:
        return self.category_ids[class_index] if class_index < len(self.category_ids) else class_index + 1


def build_parser() -> argparse.ArgumentParser:
    """The options of the demo."""
    usage, _, example = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=usage, epilog=example, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", nargs="+", required=True, metavar="PATH", help="images, folders, glob patterns")
    parser.add_argument("--output", default="", metavar="DIR", help="folder of the pictures (PNG)")
    parser.add_argument("--results", default="", metavar="FILE", help="detections as COCO results")
    parser.add_argument("--config-file", default="", metavar="F", help="such as a run's config.yaml; else the one "
                        "beside MODEL.WEIGHTS")  # fmt: skip
    parser.add_argument("--threshold", type=float, default=0.3, help="detections with a lower score are left out "
                        "(default 0.3; PolarMask's scores reach 1.5)")  # fmt: skip
    parser.add_argument("--rays", action="store_true", help="draw PolarMask's centres and rays beside the instances")
    parser.add_argument("--maps", action="store_true", help="draw the maps behind the best instances")
    parser.add_argument("--class-names", nargs="+", default=None, metavar="NAME", help="else those of the data set")
    parser.add_argument("--json", action="store_true", help="print a summary as one JSON object in the last line")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config keys, last")
    return parser


def build_cfg(args: argparse.Namespace) -> CfgNode:
    """The config to predict with, its device settled.

    Raises:
        ConfigError: unknown keys; no trained weights; no config; a GPU that is not there.
    """
    cfg = merge_config(get_cfg(), args.config_file, args.opts)
    weights = trained_weights(cfg.MODEL.WEIGHTS)
    if not args.config_file:
        beside = os.path.join(os.path.dirname(weights), "config.yaml")
        if not os.path.isfile(beside):
            raise ConfigError(f"no --config-file, and no {beside}", "give the config of the weights' training")
        cfg = merge_config(get_cfg(), beside, args.opts)
    cfg.MODEL.DEVICE = choose_device(cfg.MODEL.DEVICE, num_gpus=1)
    return cfg


def find_classes(cfg: CfgNode, class_names: Sequence[str] | None) -> ClassTable:
    """Names given, else those of the config's data sets as far as they are at hand; generates and downloads nothing."""
    register_datasets(cfg)
    if class_names is not None:
        return ClassTable(class_names)
    for name in [*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN]:
        if name in SCENES_V1_NAMES:
            return ClassTable(CLASS_NAMES)
        metadata = MetadataCatalog.get(name)
        if not metadata.get("thing_classes"):
            try:
                metadata = load_metadata(name)
            except SegZooError:
                continue  # weights travel without their data; the names are then not known
        of_category = metadata.get("thing_dataset_id_to_contiguous_id") or {}
        return ClassTable(metadata.thing_classes, sorted(of_category, key=of_category.__getitem__))
    return ClassTable()


def set_num_classes(cfg: CfgNode, classes: ClassTable) -> None:
    """Writes the class count into a config that leaves it to the data (MODEL.NUM_CLASSES 0)."""
    if cfg.MODEL.NUM_CLASSES == 0 and classes.names:
        write_num_classes(cfg, len(classes.names))


def to_results(
    instances: Instances, image_id: int, path: str, threshold: float, classes: ClassTable
) -> list[dict[str, Any]]:
    """COCO results (with the file's name beside COCO's own fields) of the detections that reach the threshold."""
    instances = instances[instances.scores >= threshold]
    boxes = instances.pred_boxes.tensor.double().clone()
    boxes[:, 2:] -= boxes[:, :2]
    results = []
    for index, class_index in enumerate(instances.pred_classes.tolist()):
        result = {
            "image_id": image_id,
            "file_name": path,
            "category_id": classes.category_id(class_index),
            "bbox": boxes[index].tolist(),
            "score": float(instances.scores[index]),
        }
        if instances.has("pred_masks"):
            rle = instances.pred_masks.rles[index]
            result["segmentation"] = {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}
        results.append(result)
    return results


def process_images(
    images: Sequence[str], predictor: Predictor, args: argparse.Namespace, classes: ClassTable
) -> Outcome:
    """Predicts, draws and collects one image after the other; goes on where one cannot be read.

    Raises:
        SegZooError: a picture cannot be written, or would replace an input.
    """
    outcome = Outcome()
    names = overlay_names(images)
    replaced = {os.path.realpath(path) for path in images} & {
        os.path.realpath(os.path.join(args.output, name)) for name in names if args.output
    }
    if replaced:
        raise ConfigError(f"the pictures would replace the input {min(replaced)}", "give --output another folder")
    try:
        for image_id, (path, name) in enumerate(zip(tqdm(images, unit="image", disable=None), names, strict=True), 1):
            try:
                image = read_image(path)
                started = time.perf_counter()
                instances = predictor(image)
            except SegZooError as error:
                outcome.failed.append((path, error.message))
                continue
            outcome.seconds += time.perf_counter() - started
            outcome.num_images += 1
            outcome.results.extend(to_results(instances, image_id, path, args.threshold, classes))
            if args.output:
                maps = predictor.map_pictures(image) if args.maps else {}
                save_image(os.path.join(args.output, name), draw(image, instances, classes.names, args, maps))
    except KeyboardInterrupt:
        outcome.interrupted = True
    return outcome


def draw(
    image: np.ndarray,
    instances: Instances,
    class_names: Sequence[str],
    args: argparse.Namespace,
    maps: Mapping[str, np.ndarray],
) -> np.ndarray:
    """The picture of one image's instances; beside it, with --rays, their centres and rays, and maps by title."""
    panels = {"instances": draw_instances(image, instances, class_names, args.threshold)}
    if args.rays:
        if not instances.has("pred_contours"):
            raise ConfigError("--rays: this method predicts no rays", "leave the option out, or use PolarMask")
        shown = instances[instances.scores >= args.threshold]
        panels["centres and rays"] = draw_rays(image, shown.pred_centers.numpy(), shown.pred_contours.numpy())
    panels.update(maps)
    if len(panels) == 1:
        return panels["instances"]
    return side_by_side(list(panels.values()), list(panels), columns=min(len(panels), PANELS_IN_A_ROW))


def write_results(path: str, results: list[dict[str, Any]]) -> None:
    """Writes COCO results. Raises SegZooError when the file cannot be written."""
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with open(path, "w", encoding="utf-8") as stream:
            json.dump(results, stream, ensure_ascii=False)
    except OSError as error:
        raise SegZooError(f"cannot write {path}: {error}", "choose a writable folder") from error


def report(outcome: Outcome, args: argparse.Namespace) -> None:
    """Prints what was done, what failed and why, and with --json the summary as the last line."""
    seconds = outcome.seconds / max(1, outcome.num_images)
    print(f"{outcome.num_images} images, {len(outcome.results)} instances, {seconds:.3f} s an image")
    if outcome.failed:
        print(f"{len(outcome.failed)} could not be used:", file=sys.stderr)
        for path, reason in outcome.failed:
            print(f"  {path}: {reason}", file=sys.stderr)
    if outcome.interrupted:
        print("stopped by Ctrl-C; what was finished is kept", file=sys.stderr)
    if args.json:
        summary = {
            "images": outcome.num_images,
            "instances": len(outcome.results),
            "seconds_per_image": seconds,
            "failed": [{"file": path, "reason": reason} for path, reason in outcome.failed],
            "output": args.output,
            "results": args.results,
        }
        print(json.dumps(summary))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the demo and returns the exit code."""
    parser = build_parser()
    args = parser.parse_args(arguments)
    if not (args.output or args.results):
        parser.error("give --output DIR for pictures, --results FILE for detections, or both")
    images, refused = find_images(args.input)
    try:
        outcome = Outcome()
        if images:
            cfg = build_cfg(args)
            classes = find_classes(cfg, args.class_names)
            set_num_classes(cfg, classes)
            outcome = process_images(images, Predictor(cfg), args, classes)
        outcome.failed[:0] = refused
        if args.results:
            write_results(args.results, outcome.results)
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        return 130
    except SegZooError as error:
        print(f"error: {error}", file=sys.stderr)
        if args.json:
            print(json.dumps({"error": error.message}))
        return error.exit_code
    report(outcome, args)
    return outcome.exit_code


if __name__ == "__main__":
    sys.exit(main())
