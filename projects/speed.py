"""What `tools/benchmark.py speed` measures: every method from the decoded image to run lengths on the host.

Shape shorthand: N images of a batch, H, W size of an image in pixels.
"""

from __future__ import annotations

import argparse
import contextlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycocotools.mask
import torch
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d
from detectron2.structures import Instances
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from centermask.assembly import assemble_masks
from centermask.centermask import CenterMask
from centermask.centermask_fcos import CenterMaskFCOS
from centermask.heads import CenterHead
from fcosis.box_masks import BoxMaskHead
from fcosis.fcosis import FCOSIS
from fcosis.masks import cut_masks
from orienmask.decode import orientation_masks
from polarmask.decode import contour_rles
from polarmask.polar_head import PolarHead
from projects import get_cfg
from projects.catalog import CONFIGS, MAIN_CONFIGS
from segzoo.config import merge_config
from segzoo.data.image_io import read_image
from segzoo.engine.environment import environment_of
from segzoo.engine.predictor import Predictor
from segzoo.errors import ConfigError
from segzoo.evaluation.speed import (
    PRECISIONS,
    SpeedRow,
    Subject,
    can_compute,
    measure_in_turns,
    speed_table,
    warnings_of,
)
from segzoo.evaluation.stages import REST, Function, StageClock
from segzoo.geometry.paste import paste_as_rle
from segzoo.geometry.rle import encode_edges, encode_masks
from segzoo.modeling.fcos.head import FCOSHead
from segzoo.modeling.window import restore_originals

# Stage -> parts of the models, of which each has some; of nested ones the innermost counts.
MODULES = {
    "preprocess": ("preprocessor",),
    "neck": ("neck", "fusion"),
    "heads": (
        *("head", "heads", "box_head", "orien_head", "saliency"),
        *("proposal_generator.rpn_head", "roi_heads.box_pooler", "roi_heads.box_head", "roi_heads.box_predictor"),
    ),
    "masks": ("segmentation", "roi_heads.mask_pooler", "roi_heads.mask_head"),
}
# Stage -> functions. The segmentation of FCOSIS, the shapes of CenterMask and the second stage of MaskFCOS depend on
# what was detected: masks.
FUNCTIONS: dict[str, tuple[Function, ...]] = {
    "masks": (
        *(contour_rles, orientation_masks, assemble_masks, cut_masks, paste_as_rle, restore_originals),
        *(CenterMask.shapes_of, CenterMaskFCOS.shapes_of, FCOSIS.segment, BoxMaskHead.masks),
    ),
    "to host": ((Tensor, "cpu"),),
    "RLE": (encode_edges, encode_masks, pycocotools.mask.frPyObjects, pycocotools.mask.encode),
}
# Side of what an untrained head sees in every place, px: that of COCO's objects in images of 800 px, about.
UNTRAINED_SIDE_PX = 96.0
DEFAULT_IMAGE_SIZE = (480, 640)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `tools/benchmark.py speed`."""
    parser.add_argument(
        "--config-file",
        action="append",
        metavar="FILE",
        help=f"may be given again; default: {', '.join(MAIN_CONFIGS)}",
    )
    parser.add_argument(
        "--weights",
        action="append",
        metavar="FILE",
        default=[],
        help="trained weights, one for each --config-file in their order; without: random ones",
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4], metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--precision", nargs="+", choices=list(PRECISIONS), help="default: all of them on a GPU, fp32 on a CPU"
    )
    parser.add_argument("--image", default="", metavar="FILE", help="default: generated images of --image-size")
    parser.add_argument(
        "--image-size", type=int, nargs=2, metavar=("H", "W"), help=f"px (default: {DEFAULT_IMAGE_SIZE})"
    )
    parser.add_argument(
        "--fill",
        action="store_true",
        help="lower each model's score threshold until its images are full of detections (TEST.DETECTIONS_PER_IMAGE)",
    )
    parser.add_argument("--warm-up", type=int, default=2, metavar="N", help="turns before (default: %(default)s)")
    parser.add_argument("--markdown", action="store_true", help="the table in Markdown")
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="config keys to change, of all")


def run(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Measures, prints the table, and gives the values for json.

    Raises:
        ConfigError: options that cannot work, or no precision that this device has.
    """
    _check(args)
    precisions, skipped = usable_precisions(args.precision, device)
    for reason in skipped:
        print(f"skipped: {reason}", flush=True)
    files = args.config_file or [str(CONFIGS / name) for name in MAIN_CONFIGS]
    images = _images(args.image, args.image_size or DEFAULT_IMAGE_SIZE, max(args.batch))
    subjects, notes = [], []
    for file, weights in zip(files, args.weights or [""] * len(files), strict=True):
        predictor = build_predictor(merge_config(get_cfg(), file, args.opts), weights, device)
        if not weights:
            prepare_untrained(predictor, images[0])
        if args.fill:
            threshold = fill_with_detections(predictor, images)
            notes.append(f"{Path(file).name}: score threshold {threshold:.4g}")
        for batch in args.batch:
            for precision in precisions:
                subjects.append(make_subject(Path(file).name, predictor, images[:batch], precision))
    rows = measure_in_turns(subjects, device=device, repeats=args.repeats, warm_up=args.warm_up)
    values = _conditions(args, device, images) | {"skipped": skipped, "notes": notes + warnings_of(rows)}
    _print(rows, values, markdown=args.markdown)
    return {**values, "rows": [row.as_dict() for row in rows]}


def _check(args: argparse.Namespace) -> None:
    if min(*args.batch, args.warm_up) < 1:
        raise ConfigError(f"--batch {args.batch}, --warm-up {args.warm_up} must be at least 1")
    if args.weights and len(args.weights) != len(args.config_file or []):
        raise ConfigError(
            f"{len(args.weights)} --weights for {len(args.config_file or [])} --config-file", "give one for each"
        )
    if args.image_size and (args.image or min(args.image_size) < 1):
        raise ConfigError(
            f"--image-size {args.image_size} beside --image {args.image!r}"
            if args.image
            else "--image-size below 1 px",
            "give one of them, in pixels",
        )


def usable_precisions(wanted: Sequence[str] | None, device: torch.device) -> tuple[list[str], list[str]]:
    """Those that torch has on the device, and why it lacks the others."""
    wanted = wanted or (list(PRECISIONS) if device.type == "cuda" else ["fp32"])
    reasons = {precision: can_compute(precision, device) for precision in dict.fromkeys(wanted)}
    usable = [precision for precision, reason in reasons.items() if not reason]
    skipped = [reason for reason in reasons.values() if reason]
    if not usable:
        raise ConfigError("; ".join(skipped), "use --precision fp32")
    return usable, skipped


def _images(path: str, size: Sequence[int], count: int) -> list[np.ndarray]:
    """N times (H, W, 3) uint8 BGR: a file's, or generated ones, each another."""
    if path:
        return [read_image(path, "BGR")] * count
    images = []
    for seed in range(count):
        coarse = np.random.default_rng(seed).integers(0, 256, (size[0] // 32 + 2, size[1] // 32 + 2, 3), dtype=np.uint8)
        images.append(cv2.resize(coarse, (size[1], size[0]), interpolation=cv2.INTER_CUBIC))
    return images


def build_predictor(cfg: CfgNode, weights: str, device: torch.device) -> Predictor:
    """A predictor with these weights; with "" its model is random, and nothing is downloaded.

    Raises:
        ConfigError, CheckpointError: see `Predictor`.
    """
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = str(device), weights
    if not weights:
        cfg.MODEL.TIMM.WEIGHTS = ""
    return Predictor(cfg)


@torch.no_grad()
def prepare_untrained(predictor: Predictor, image: np.ndarray) -> None:
    """Gives random weights the scales of trained ones, so that nothing overflows in any precision.

    Norms take the statistics of one image. Heads that regress sizes begin with UNTRAINED_SIDE_PX, without which there
    would be no area to make masks of.
    """
    model = predictor.model
    for module in model.modules():
        if isinstance(module, PolarHead):
            _set_bias(module.ray_pred, math.log(UNTRAINED_SIDE_PX / 2))
        if isinstance(module, FCOSHead | PolarHead) and hasattr(module, "box_pred"):
            _set_bias(module.box_pred, math.log(UNTRAINED_SIDE_PX / 2))
        if isinstance(module, CenterHead):
            # In cells of stride 4.
            _set_bias(module.size[2], UNTRAINED_SIDE_PX / 4)
    with contextlib.ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, FrozenBatchNorm2d | _BatchNorm):
                stack.callback(module.register_forward_pre_hook(_take_statistics).remove)
        predictor(image)


def _set_bias(prediction: nn.Module, value: float) -> None:
    assert isinstance(prediction.bias, Tensor)
    nn.init.constant_(prediction.bias, value)


def _take_statistics(norm: Any, inputs: tuple[Tensor, ...]) -> None:
    variance, mean = torch.var_mean(inputs[0].float(), dim=(0, 2, 3), correction=0)
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)


def set_score_threshold(model: Any, threshold: float) -> None:
    """The score (or class probability) above which a candidate may become a detection."""
    if hasattr(model, "decode_rule"):
        model.decode_rule = model.decode_rule._replace(score_threshold=threshold)
    else:
        model.roi_heads.box_predictor.test_score_thresh = threshold


@torch.no_grad()
def fill_with_detections(predictor: Predictor, images: Sequence[np.ndarray]) -> float:
    """Lowers the score threshold as little as gives each image as many detections as the config allows.

    Among all candidates the best detections are found; a threshold just below the worst of them leaves the same ones,
    for what scores less suppresses none of them, and spares NMS the thousands below.

    Returns:
        The threshold; 0 where an image has fewer detections than allowed whatever the threshold.
    """
    model = predictor.model
    set_score_threshold(model, 0.0)
    found = [predictor(image) for image in images]
    threshold = 0.0
    if all(len(one) == predictor.cfg.TEST.DETECTIONS_PER_IMAGE for one in found):
        worst = min(float(one.scores.min()) for one in found)
        # PolarMask's scores reach 1.5 times the class probability that the threshold is about. The hundredth is for
        # other precisions.
        threshold = 0.99 * worst / (1 + max(0.0, getattr(model, "centerness_bias", 0.0)))
    set_score_threshold(model, threshold)
    return threshold


def make_subject(name: str, predictor: Predictor, images: Sequence[np.ndarray], precision: str) -> Subject:
    """A batch of images for a predictor, in one precision."""
    dtype, model = PRECISIONS[precision], predictor.model
    device_type = torch.device(predictor.cfg.MODEL.DEVICE).type

    @torch.no_grad()
    def predict(clock: StageClock) -> list[Instances]:
        with clock.stage("preprocess"):
            batch = [predictor.prepare(image) for image in images]
        with clock.stage(REST):
            with torch.autocast(device_type, dtype) if dtype is not None else contextlib.nullcontext():
                outputs = restore_originals(batch, model(batch))
        with clock.stage("to host"):
            return [output["instances"].to("cpu") for output in outputs]

    return Subject(name, len(images), precision, model, predict, modules_by_stage(model), FUNCTIONS)


def modules_by_stage(model: nn.Module) -> dict[str, list[nn.Module]]:
    """The parts of a model that do what a stage is about; what is in none belongs to the decoding."""
    present = dict(model.named_modules())
    found = {stage: [present[name] for name in names if name in present] for stage, names in MODULES.items()}
    # A list is never called, its entries are.
    found["heads"] = [part for head in found["heads"] for part in (head if type(head) is nn.ModuleList else [head])]
    has_pyramid = "backbone.bottom_up" in present
    found["backbone"] = [present["backbone.bottom_up" if has_pyramid else "backbone"]]
    if has_pyramid:
        found["neck"].append(present["backbone"])
    return found


def _conditions(args: argparse.Namespace, device: torch.device, images: Sequence[np.ndarray]) -> dict[str, Any]:
    settings: Mapping[str, Any] = {
        "image": args.image or "generated",
        "image_size": list(images[0].shape[:2]),
        "weights": args.weights or "random",
        "filled": args.fill,
        "repeats": args.repeats,
        "warm_up": args.warm_up,
        "options": args.opts,
    }
    return {"part": "speed", **settings, **environment_of(device)}


def _print(rows: Sequence[SpeedRow], values: Mapping[str, Any], *, markdown: bool) -> None:
    height, width = values["image_size"]
    print(speed_table(rows, markdown=markdown))
    for note in values["notes"]:
        print(f"note: {note}")
    versions = ", ".join(f"{name} {number}" for name, number in values["versions"].items())
    print(
        f"ms an image: medians of {values['repeats']} turns, p95 of the whole; image of {height} x {width} px, "
        f"weights {'random' if values['weights'] == 'random' else 'trained'}"
    )
    print(f"{values['device']}, {values['processor']}, Python {values['python']}, {versions}")
