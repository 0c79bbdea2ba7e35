"""Draws scenes in which leaves cross and touch: one class, and boxes that say little about which leaf is meant.

    python -m projects.FCOSIS.crossings output/crossings

writes train.json, val.json and their images, and prints how much the boxes overlap. Outlines, colours and annotations
are those of the generated scenes (docs/scenes.md); only where the leaves lie is different.

Shape shorthand: O annotated objects; h, w of a layer's window, pixels; points (x, y), x right, y down.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from pycocotools import mask as mask_api
from torchvision.ops import box_iou

from segzoo.data.coco_json import load_json
from segzoo.data.scenes import generate_scenes
from segzoo.data.scenes.annotations import annotate
from segzoo.data.scenes.layout import PLACEMENT_TRIES, Layer, Layout
from segzoo.data.scenes.shapes import CLASS_NAMES, OUTLINES, Outline, fill_polygons, polygon_area, rotate
from segzoo.data.scenes.textures import render
from segzoo.data.scenes.writer import IMAGE_SIZE_PX, Drawing
from segzoo.errors import SegZooError
from segzoo.geometry.polygons import segmentation_to_rle

# Part of every seed, apart from those of scenes-v1.
STREAM = 7001
VERSION = 1
# split -> (images, seed)
SPLITS = {"train": (600, 1), "val": (100, 2)}

LEAF = CLASS_NAMES.index("leaf")
MAX_GROUPS = 3
MAX_SINGLES = 2
# Leaves of a group; three are rarer.
GROUP_SIZES, GROUP_SIZE_CHANCES = (2, 3), (0.7, 0.3)
CROSSING_CHANCE = 0.65
# Square root of a leaf's area, as fractions of the scene's side: 31 to 61 px of 256. Leaves are 1.7 to 2.2 times as
# long as that.
MIN_SIZE_FRACTION, MAX_SIZE_FRACTION = 0.12, 0.24
SIZE_JITTER = 0.1
# A diagonal leaf fills least of its box, and that of a leaf across it is nearly the same.
DIAGONAL_RAD = np.pi / 4
DIAGONAL_JITTER_RAD = np.deg2rad(15.0)
CROSSING_JITTER_RAD = np.deg2rad(10.0)
PARALLEL_JITTER_RAD = np.deg2rad(6.0)
# Leaves cross anywhere up to this share of their half length, at their middles too.
MAX_CROSSING_SHIFT = 0.45
MAX_SLIDE_SHIFT = 0.25
# Leaves that lie side by side are slid together until they share this many pixels.
CONTACT_PX = 4
# Of `describe`: IoU of an object's box with another's.
BOX_IOUS = (0.3, 0.5)


def make_crossings(seed: int, index: int, size_px: int = IMAGE_SIZE_PX) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Draws scene `index` of a seed; the same at any time and in any order.

    Returns:
        the image, (size_px, size_px, 3) uint8 BGR, and its COCO annotations without ids: of what is seen, where later
        leaves lie on top of earlier ones.
    """
    layout = lay_leaves(np.random.default_rng([STREAM, VERSION, seed, index, 0]), size_px)
    return render(np.random.default_rng([STREAM, VERSION, seed, index, 1]), layout), annotate(layout)


CROSSINGS = Drawing(make_crossings, (CLASS_NAMES[LEAF],), "SegZoo leaves that cross and touch", VERSION)


def lay_leaves(rng: np.random.Generator, size_px: int) -> Layout:
    """One to three groups of two or three leaves that cross or touch, then up to two single leaves.

    At least 45 % of every leaf is seen (`Layout.accepts`), perhaps in several parts.
    """
    layout = Layout(np.full((size_px, size_px), -1, dtype=np.int16))
    num_groups, num_singles = int(rng.integers(1, MAX_GROUPS + 1)), int(rng.integers(MAX_SINGLES + 1))
    while not layout.layers:
        _place(rng, layout, is_group=True)
    for is_group in [True] * (num_groups - 1) + [False] * num_singles:
        _place(rng, layout, is_group)
    return layout


def _place(rng: np.random.Generator, layout: Layout, is_group: bool) -> None:
    """Adds a group or a single leaf, drawn anew until there is room for it; after some tries it is left out."""
    side = layout.owner.shape[0]
    for _ in range(PLACEMENT_TRIES):
        size_px = side * float(np.exp(rng.uniform(np.log(MIN_SIZE_FRACTION), np.log(MAX_SIZE_FRACTION))))
        count = int(rng.choice(GROUP_SIZES, p=GROUP_SIZE_CHANCES)) if is_group else 1
        layers = _crossing(rng, size_px, count) if rng.random() < CROSSING_CHANCE else _row(rng, size_px, count)
        first = np.min([(layer.top, layer.left) for layer in layers], axis=0)
        last = np.max([(layer.top + layer.mask.shape[0], layer.left + layer.mask.shape[1]) for layer in layers], axis=0)
        room = side - (last - first)
        if (room < 0).any():
            continue
        down, right = (rng.integers(0, room + 1) - first).tolist()
        moved = [dataclasses.replace(layer, top=layer.top + down, left=layer.left + right) for layer in layers]
        if layout.accepts(moved, may_split=True):
            layout.add(moved)
            return


def _crossing(rng: np.random.Generator, size_px: float, count: int) -> list[Layer]:
    """Leaves through one point, at equal angles but for a little."""
    first = DIAGONAL_RAD + rng.uniform(-1, 1) * DIAGONAL_JITTER_RAD + rng.integers(2) * np.pi / 2
    layers = []
    for number in range(count):
        outline, size = _draw_leaf(rng, size_px)
        angle = first + number * np.pi / count + rng.uniform(-1, 1) * CROSSING_JITTER_RAD + rng.integers(2) * np.pi
        shift = rng.uniform(-1, 1) * MAX_CROSSING_SHIFT * _half_length(outline, size)
        layers.append(_leaf_layer(outline, size, angle, shift * np.array([np.cos(angle), np.sin(angle)])))
    return layers


def _row(rng: np.random.Generator, size_px: float, count: int) -> list[Layer]:
    """Leaves side by side, each slid across until it touches the last one."""
    angle = DIAGONAL_RAD + rng.uniform(-1, 1) * DIAGONAL_JITTER_RAD + rng.integers(4) * np.pi / 2
    along, across = rotate(np.eye(2), angle)
    outline, size = _draw_leaf(rng, size_px)
    center = np.zeros(2)
    layers = [_leaf_layer(outline, size, angle, center)]
    for _ in range(count - 1):
        outline, size = _draw_leaf(rng, size_px)
        own_angle = angle + rng.uniform(-1, 1) * PARALLEL_JITTER_RAD + rng.integers(2) * np.pi
        start = center + rng.uniform(-1, 1) * MAX_SLIDE_SHIFT * _half_length(outline, size) * along
        # From out of reach, pixel by pixel.
        distance = 2.0 * size_px
        layer = _leaf_layer(outline, size, own_angle, start + distance * across)
        while _count_shared(layers[-1], layer) < CONTACT_PX:
            distance -= 1.0
            layer = _leaf_layer(outline, size, own_angle, start + distance * across)
        center = start + distance * across
        layers.append(layer)
    return layers


def _draw_leaf(rng: np.random.Generator, size_px: float) -> tuple[Outline, float]:
    """An outline and the square root of its area in pixels."""
    return OUTLINES[LEAF](rng), size_px * float(rng.uniform(1 - SIZE_JITTER, 1 + SIZE_JITTER))


def _half_length(outline: Outline, size_px: float) -> float:
    """Pixels from a leaf's middle to its tips, which are 1 from it in the outline's own unit."""
    return size_px / float(np.sqrt(polygon_area(outline.points)))


def _leaf_layer(outline: Outline, size_px: float, angle: float, center: np.ndarray) -> Layer:
    """A leaf whose middle is at `center`, (2,) px from an origin that the group shares; top and left may be < 0."""
    points = rotate(outline.points, angle) * _half_length(outline, size_px) + center
    corner = np.floor(points.min(axis=0))
    width, height = (np.ceil(points.max(axis=0)) - corner).astype(int).tolist()
    mask = fill_polygons([points - corner], height, width)
    return Layer(LEAF, int(corner[1]), int(corner[0]), mask, size_px)


def _count_shared(first: Layer, second: Layer) -> int:
    """Pixels that two layers both cover."""
    top, left = max(first.top, second.top), max(first.left, second.left)
    bottom = min(layer.top + layer.mask.shape[0] for layer in (first, second))
    right = min(layer.left + layer.mask.shape[1] for layer in (first, second))
    if bottom <= top or right <= left:
        return 0
    parts = [
        layer.mask[top - layer.top : bottom - layer.top, left - layer.left : right - layer.left]
        for layer in (first, second)
    ]
    return int(np.count_nonzero(parts[0] & parts[1]))


def largest_box_ious(boxes: torch.Tensor) -> torch.Tensor:
    """(O, 4) xyxy boxes of one image -> (O,) IoU of each with the one that it overlaps most, 0 for a single one."""
    ious = box_iou(boxes, boxes).fill_diagonal_(0.0)
    return ious.amax(dim=1) if len(boxes) else boxes.new_zeros(0)


def describe(json_file: str) -> dict[str, float]:
    """Images, objects and shares of the objects: what a data set of crossings is like.

    "touching": a pixel of the mask is beside or over one of another's, corners included. "hidden": at least 5 % is.
    "in parts": seen in several. The others: the box has at least that IoU with another's.

    Raises:
        DatasetError: the file is missing or no json.
    """
    content = load_json(json_file)
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    per_image = defaultdict(list)
    for annotation in content["annotations"]:
        per_image[annotation["image_id"]].append(annotation)
    ious, is_touching = [], []
    for image_id, own in per_image.items():
        boxes = torch.tensor([annotation["bbox"] for annotation in own], dtype=torch.float32)
        boxes[:, 2:] += boxes[:, :2]
        ious.append(largest_box_ious(boxes))
        rles = [segmentation_to_rle(annotation["segmentation"], *sizes[image_id]) for annotation in own]
        is_touching += _touching(np.stack([mask_api.decode(rle) for rle in rles]))
    largest = torch.cat(ious)
    hidden = [annotation["area"] < 0.95 * annotation["full_area"] for annotation in content["annotations"]]
    in_parts = [annotation["num_parts"] > 1 for annotation in content["annotations"]]
    return {
        "images": len(sizes),
        "objects": len(content["annotations"]),
        "touching": float(np.mean(is_touching)),
        "hidden": float(np.mean(hidden)),
        "in parts": float(np.mean(in_parts)),
        **{f"box IoU >= {least}": float((largest >= least).float().mean()) for least in BOX_IOUS},
    }


def _touching(masks: np.ndarray) -> list[bool]:
    """(O, H, W) uint8 masks without common pixels -> whether each is beside another."""
    total = masks.sum(axis=0)
    return [bool((cv2.dilate(mask, np.ones((3, 3))) & (total - mask)).any()) for mask in masks]


def main(arguments: Sequence[str] | None = None) -> int:
    """Draws both splits and describes them; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", metavar="DIR", help="gets train.json, val.json and the images")
    for split, (num_images, _) in SPLITS.items():
        parser.add_argument(f"--{split}", type=int, default=num_images, metavar="N", help=f"images of {split}.json")
    args = parser.parse_args(arguments)
    try:
        for split, (_, seed) in SPLITS.items():
            json_file = generate_scenes(args.folder, getattr(args, split), seed, split=split, drawing=CROSSINGS)
            figures = [
                f"{name} {value:.3f}" if isinstance(value, float) else f"{value} {name}"
                for name, value in describe(json_file).items()
            ]
            print(f"{json_file}: {', '.join(figures)}")
    except SegZooError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
