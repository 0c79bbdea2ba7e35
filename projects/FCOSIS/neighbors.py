"""How far the masks of a colour group move because its objects share one pass of the segmentation.

    python -m projects.FCOSIS.neighbors output/demo_fcosis --json neighbors.json

The boxes of a group do not overlap, but the segmentation sees beyond a box: some cells at stride 16, more in between.
The good detections of the run's first test set are segmented twice, with their groups as a forward makes them (with all
detections, good or not) and in a pass of their own, and both masks are compared, by how near the group's next box is.

Shape shorthand: M detections of a batch, G colour groups, O detections of the data set that share a group.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from pycocotools import mask as mask_api
from torch import Tensor

from fcosis.fcosis import FCOSIS
from fcosis.objects import Objects
from projects import get_cfg
from segzoo.config import merge_config
from segzoo.data.loader import build_test_loader
from segzoo.engine.checkpoint import write_atomically
from segzoo.engine.device import device_text
from segzoo.engine.evaluate import trained_weights
from segzoo.engine.predictor import Predictor
from segzoo.engine.setup import CONFIG_NAME, register_datasets
from segzoo.errors import ConfigError, SegZooError

# Upper ends in px of the gaps between a box and the next one of its group that the table tells apart.
GAPS_PX = (4.0, 16.0, 64.0, float("inf"))
# Detections below this score say nothing about masks that anybody looks at.
MIN_SCORE = 0.3


class Moved(NamedTuple):
    """Detections that share their group with another one.

    gaps_px: (O,) from a box to the next one of its group, in pixels of the network's input. ious: (O,) of the mask made
    with the group and the one made alone.
    """

    gaps_px: np.ndarray
    ious: np.ndarray


def box_gaps(boxes: Tensor, groups: Tensor) -> Tensor:
    """(M,) distance from each box to the nearest other one of its group; infinite where there is none."""
    apart = torch.maximum(boxes[:, None, :2] - boxes[None, :, 2:], boxes[None, :, :2] - boxes[:, None, 2:])
    distances = apart.clamp(min=0).norm(dim=2)
    is_other = (groups[:, None] == groups) & ~torch.eye(len(groups), dtype=torch.bool, device=groups.device)
    return torch.where(is_other, distances, float("inf")).amin(dim=1) if len(groups) else distances.sum(dim=1)


def alone(objects: Objects) -> Objects:
    """The same objects, each of a colour of its own: boxes that all overlap."""
    everywhere = objects.boxes_px.new_tensor([0.0, 0.0, 1.0, 1.0]).expand(len(objects.levels), 4)
    return objects._replace(apart_px=everywhere)


@torch.no_grad()
def compare_batch(model: FCOSIS, batched_inputs: Sequence[dict[str, Any]], min_score: float = MIN_SCORE) -> Moved:
    """Detects, and segments every detection with its colour group and alone.

    Args:
        model: with attention, in evaluation mode.
        batched_inputs: N entries of a forward.
        min_score: of the detections that are compared; all are in the groups.
    """
    maps, locations, image_sizes = model.look(list(batched_inputs))
    found = model.detect(maps, locations, image_sizes)
    objects = model.objects_of(found, maps, locations)
    together, groups = model.segment(maps, locations, objects)
    apart, own_groups = model.segment(maps, locations, alone(objects))
    is_good = torch.cat([one.scores >= min_score for one in found])
    gaps = box_gaps(objects.boxes_px, groups)
    compared = (is_good & gaps.isfinite()).nonzero().squeeze(1).tolist()
    ious = []
    for index in compared:
        size = image_sizes[int(objects.images[index])]
        own = slice(index, index + 1)
        pair = [
            model.cut(logits, channels[own], objects.boxes_px[own], input_size=size, output_size=size).rles[0]
            for logits, channels in ((together, groups), (apart, own_groups))
        ]
        # Two empty masks are equal.
        both_empty = not any(mask_api.area(rle) for rle in pair)
        ious.append(1.0 if both_empty else float(mask_api.iou(pair[:1], pair[1:], [0])[0, 0]))
    return Moved(gaps[compared].cpu().numpy(), np.array(ious))


def summarize(parts: Iterable[Moved]) -> list[dict[str, Any]]:
    """Number, mean IoU, and share of masks that stay at an IoU of 0.95 at least, by the gap."""
    collected = list(parts)
    gaps, ious = (np.concatenate([getattr(part, name) for part in collected]) for name in Moved._fields)
    rows, low = [], 0.0
    for high in GAPS_PX:
        is_in = (gaps >= low) & (gaps < high)
        own = ious[is_in]
        row = {"from_px": low, "to_px": high if np.isfinite(high) else None, "masks": len(own)}
        if len(own):
            row |= {"mean_iou": float(own.mean()), "least_iou": float(own.min()), "stay": float((own >= 0.95).mean())}
        rows.append(row)
        low = high
    return rows


def run(folder: str, device: str = "") -> dict[str, Any]:
    """Compares over the run's first test set.

    Raises:
        ConfigError: no run of FCOSIS with attention, or one without a test set.
    """
    cfg = merge_config(get_cfg(), os.path.join(folder, CONFIG_NAME))
    if cfg.MODEL.META_ARCHITECTURE != "FCOSIS" or cfg.MODEL.FCOSIS.ATTENTION == "none":
        raise ConfigError(f"{folder} is no run of FCOSIS with attention", "only those have colour groups")
    if not cfg.DATASETS.TEST:
        raise ConfigError(f"{folder}: DATASETS.TEST is empty", "train with --val-json and --val-images")
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = device or cfg.MODEL.DEVICE, trained_weights(cfg.MODEL.WEIGHTS, folder)
    register_datasets(cfg)
    model = Predictor(cfg).model
    assert isinstance(model, FCOSIS)
    rows = summarize(compare_batch(model, batch) for batch in build_test_loader(cfg, cfg.DATASETS.TEST[0]))
    conditions = {"test_set": cfg.DATASETS.TEST[0], "min_score": MIN_SCORE, "device": device_text(model.device)}
    return {"conditions": conditions, "rows": rows}


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table, writes the json; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", metavar="DIR", help="OUTPUT_DIR of a training of FCOSIS")
    parser.add_argument("--json", default="", metavar="FILE", help="gets conditions and rows")
    parser.add_argument("--device", default="", help="instead of the run's MODEL.DEVICE")
    args = parser.parse_args(arguments)
    try:
        report = run(args.run, args.device)
        if args.json:
            write_atomically(args.json, json.dumps(report, indent=1) + "\n")
    except SegZooError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print("| gap to the next box of the colour, px | masks | mean IoU | least | IoU of 0.95 or more |")
    print("|---|---|---|---|---|")
    for row in report["rows"]:
        title = f"{row['from_px']:g} to {row['to_px']:g}" if row["to_px"] else f"{row['from_px']:g} and more"
        figures = "- | - | -"
        if row["masks"]:
            figures = f"{row['mean_iou']:.4f} | {row['least_iou']:.3f} | {row['stay']:.1%}"
        print(f"| {title} | {row['masks']} | {figures} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
