"""What `tools/benchmark.py` measures of PolarMask: targets and decoding beside plain numpy programs for the same.

The oracles are what one writes first: one vectorised numpy pass a positive location, one mask at a time. They share no
code with the package, so that they also check its results.

Shape shorthand: M ground truths, R locations, P positives, D detections, K classes, n rays.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.structures import BitMasks, Boxes, Instances
from pycocotools import mask as coco_mask

from polarmask.polar_head import PolarMaps
from polarmask.polarmask import PolarMask
from polarmask.targets import TargetRule, polar_targets
from projects import get_cfg
from segzoo.config import merge_config
from segzoo.errors import TrainingError
from segzoo.evaluation.timing import Comparison, compare_times
from segzoo.geometry.masks import mask_boxes
from segzoo.modeling.fcos.locations import Locations, compute_locations

IMAGE_SIZE = (768, 1280)
STRIDES = [8, 16, 32, 64, 128]
SIZES_OF_INTEREST = [64.0, 128.0, 256.0, 512.0]
NUM_RAYS, NUM_CLASSES, CENTER_RADIUS, NO_HIT_PX = 36, 80, 1.5, 1e-6
RULES = {
    "exact rays": TargetRule(NUM_RAYS, SIZES_OF_INTEREST, CENTER_RADIUS),
    "degree bins": TargetRule(NUM_RAYS, SIZES_OF_INTEREST, CENTER_RADIUS, is_official=True),
}
# Network input and image size, px: a COCO photograph and a full-HD frame.
DECODE_CASES = (((800, 1067), (480, 640)), ((750, 1333), (1080, 1920)))
REPOSITORY = Path(__file__).resolve().parents[2]


def blob(size: tuple[int, int], radius_px: float, rng: np.random.Generator) -> np.ndarray:
    """(H, W) bool: r = R (1 + 0.3 (0.6 sin 2t + 0.4 sin 3t + 0.3 sin 5t)) with random phases, at a random place."""
    height, width = size
    y, x = np.mgrid[:height, :width] + 0.5
    center = rng.uniform(radius_px, height - radius_px), rng.uniform(radius_px, width - radius_px)
    angle, phases = np.arctan2(y - center[0], x - center[1]), rng.uniform(0, 2 * np.pi, 3)
    waves = zip((0.6, 0.4, 0.3), (2, 3, 5), phases, strict=True)
    reach = 1 + 0.3 * sum(weight * np.sin(count * angle + phase) for weight, count, phase in waves)
    return np.hypot(y - center[0], x - center[1]) < radius_px * reach


def make_instances(num_objects: int, size: tuple[int, int] = IMAGE_SIZE, seed: int = 0) -> Instances:
    """Blobs of 12 to 250 px radius (log-uniform) as ground truth."""
    rng = np.random.default_rng(seed)
    largest = min(250, min(size) / 2)
    radii = np.exp(rng.uniform(np.log(12), np.log(largest), num_objects))
    masks = torch.from_numpy(np.stack([blob(size, radius, rng) for radius in radii]))
    instances = Instances(size)
    instances.gt_boxes = Boxes(mask_boxes(masks))
    instances.gt_classes = torch.arange(num_objects) % NUM_CLASSES
    instances.gt_masks = BitMasks(masks)
    return instances


def make_locations(size: tuple[int, int] = IMAGE_SIZE) -> Locations:
    """The cells of P3 to P7."""
    return compute_locations([(-(-size[0] // s), -(-size[1] // s)) for s in STRIDES], STRIDES, torch.device("cpu"))


def numpy_targets(
    points: np.ndarray, strides: np.ndarray, levels: np.ndarray, masks: np.ndarray, boxes: np.ndarray, is_official: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Targets of one image: one vectorised pass over locations and objects, then one a positive location.

    Args:
        points: (R, 2) px. strides, levels: (R,). masks: (M, H, W) uint8. boxes: (M, 4) xyxy, continuous.
        is_official: whole-degree bins of the largest contour, else exact rays to the outline.

    Returns:
        (R,) matched ground truth, -1 for background; (P, n) rays.
    """
    shapes = [(_official_shape if is_official else _exact_shape)(mask) for mask in masks]
    centers = np.array([center for center, _ in shapes])
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    if is_official:
        boxes = boxes - (0, 0, 1, 1)
    matched = _assign(points, strides, levels, boxes, centers, areas)
    cast = _degree_rays if is_official else _exact_rays
    positives = np.flatnonzero(matched >= 0)
    rays = np.stack([cast(shapes[matched[place]][1], points[place]) for place in positives])
    return matched, rays.astype(np.float32)


def _assign(
    points: np.ndarray,
    strides: np.ndarray,
    levels: np.ndarray,
    boxes: np.ndarray,
    centers: np.ndarray,
    areas: np.ndarray,
) -> np.ndarray:
    limits = np.array([-1.0, *SIZES_OF_INTEREST, np.inf])
    distances = np.concatenate((points[:, None] - boxes[None, :, :2], boxes[None, :, 2:] - points[:, None]), axis=2)
    reach = distances.max(axis=2)
    is_positive = distances.min(axis=2) > 0
    is_positive &= (reach >= limits[levels][:, None]) & (reach <= limits[levels + 1][:, None])
    is_positive &= np.abs(points[:, None] - centers[None]).max(axis=2) < CENTER_RADIUS * strides[:, None]
    candidates = np.where(is_positive, areas[None], np.inf)
    return np.where(is_positive.any(axis=1), candidates.argmin(axis=1), -1)


def _official_shape(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    contours, _ = cv2.findContours(mask, cv2.RETR_TREE, cv2.CHAIN_APPROX_NONE)
    contour = max(contours, key=cv2.contourArea)[:, 0].astype(np.float64)
    previous = np.roll(contour, 1, axis=0)
    cross = (contour[:, 0] * previous[:, 1] - contour[:, 1] * previous[:, 0]) / 2
    return np.trunc((cross[:, None] * (contour + previous) / 3).sum(axis=0) / cross.sum()), contour


def _degree_rays(contour: np.ndarray, point: np.ndarray) -> np.ndarray:
    x, y = (contour - point).T
    degrees = np.degrees(np.arctan2(x, y))
    farthest = np.full(361 + 14, -1.0)
    np.maximum.at(farthest, np.where(degrees < 0, degrees + 360, degrees).astype(int) + 7, np.hypot(x, y))
    neighbours = np.arange(NUM_RAYS)[:, None] * (360 // NUM_RAYS) + np.array([0, 1, -1, 2, -2, 3, -3]) + 7
    lengths = farthest[neighbours]
    nearest = (lengths >= 0).argmax(axis=1)
    return np.where((lengths >= 0).any(axis=1), lengths[np.arange(NUM_RAYS), nearest], NO_HIT_PX)


def _exact_shape(mask: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Mass centre of the largest filled part, and the (S, 2) upper left ends of its upright and of its level sides."""
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    contour = max(contours, key=cv2.contourArea)
    left, top, width, height = cv2.boundingRect(contour)
    part = np.zeros((height, width), np.uint8)
    cv2.drawContours(part, [contour], -1, 1, cv2.FILLED, offset=(-left, -top))
    padded = np.pad(part, 1)
    upright = np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1])[:, ::-1] + (left, top)
    level = np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1])[:, ::-1] + (left, top)
    rows, columns = np.nonzero(part)
    return np.array([columns.mean() + left + 0.5, rows.mean() + top + 0.5]), (upright, level)


def _exact_rays(sides: tuple[np.ndarray, np.ndarray], point: np.ndarray) -> np.ndarray:
    angles = np.arange(NUM_RAYS) * 2 * np.pi / NUM_RAYS
    (upright, level), (x, y) = sides, point
    with np.errstate(divide="ignore", invalid="ignore"):
        to_upright = (upright[:, 0] - x)[:, None] / np.sin(angles)
        to_level = (level[:, 1] - y)[:, None] / np.cos(angles)
        meets_upright = y + to_upright * np.cos(angles) - upright[:, 1, None]
        meets_level = x + to_level * np.sin(angles) - level[:, 0, None]
    farthest = np.full(NUM_RAYS, NO_HIT_PX)
    for length, meets in ((to_upright, meets_upright), (to_level, meets_level)):
        is_hit = (length > 0) & (meets >= 0) & (meets <= 1)
        farthest = np.maximum(farthest, np.where(is_hit, length, NO_HIT_PX).max(axis=0))
    return farthest


def benchmark_targets(
    repeats: int,
    device: torch.device,
    counts: Sequence[int] = (7, 30),
    batches: Sequence[int] = (1, 4, 16),
    size: tuple[int, int] = IMAGE_SIZE,
) -> Iterator[Comparison]:
    """Per-image times of the targets for images of 7 and of 30 instances.

    Alone, in batches of 4 (what the authors gave a GPU) and of 16 (a step of their recipe).

    Raises:
        TrainingError: targets and oracle disagree.
    """
    cells = make_locations(size).to(device)
    for batch, count in itertools.product(batches, counts):
        images = [make_instances(count, size, seed) for seed in range(batch)]
        for name, rule in RULES.items():
            ours = functools.partial(polar_targets, cells, [i.to(device) for i in images], NUM_CLASSES, rule)
            oracle = functools.partial(_numpy_batch, images, make_locations(size), rule.is_official)
            targets = ours()
            _check_targets(targets.positives.cpu().numpy(), targets.rays_px.cpu().numpy(), *oracle())
            title = f"{name}, {count} instances, {len(targets.positives) / batch:.0f} positives, batch {batch}"
            yield compare_times(title, ours, oracle, repeats=repeats, images=batch, device=device)


def _numpy_batch(images: list[Instances], cells: Locations, is_official: bool) -> tuple[np.ndarray, np.ndarray]:
    """`numpy_targets` image by image, joined; a bool tensor's numpy view costs nothing."""
    points, strides, levels = (column.numpy() for column in cells[:3])
    results = [
        numpy_targets(
            points.astype(np.float64),
            strides,
            levels,
            image.gt_masks.tensor.numpy().view(np.uint8),
            image.gt_boxes.tensor.numpy().astype(np.float64),
            is_official,
        )
        for image in images
    ]
    return np.concatenate([matched for matched, _ in results]), np.concatenate([rays for _, rays in results])


def _check_targets(positives: np.ndarray, rays: np.ndarray, matched: np.ndarray, expected: np.ndarray) -> None:
    """Equal positives and rays, but for the few rays that run exactly through a corner or along a degree's border."""
    if not np.array_equal(positives, np.flatnonzero(matched >= 0)):
        raise TrainingError("targets and oracle disagree about the positive locations")
    differs = np.abs(rays - expected) > 0.01
    if differs.mean() > 0.01:
        raise TrainingError(f"{differs.mean():.1%} of the rays differ from the oracle's")


def make_maps(size: tuple[int, int], num_objects: int, seed: int = 0) -> PolarMaps:
    """Raw maps of an image of (height, width) px as a trained network gives them: `num_objects` clusters of locations
    that agree about an object, a low background, rays and boxes of blobs of 12 to 250 px radius."""
    rng = np.random.default_rng(seed)
    locations = make_locations(size)
    points = locations.points_px.numpy()
    cls_logits = rng.normal(-7, 1, (len(points), NUM_CLASSES)).astype(np.float32)
    rays = rng.uniform(10, 20, (len(points), NUM_RAYS)).astype(np.float32)
    for _ in range(num_objects):
        radius = np.exp(rng.uniform(np.log(12), np.log(250)))
        level = int(np.searchsorted(SIZES_OF_INTEREST, radius))
        center = rng.uniform((0, 0), (size[1], size[0]))
        near = np.abs(points - center).max(axis=1) < CENTER_RADIUS * STRIDES[level]
        near = np.flatnonzero(near & (locations.levels.numpy() == level))
        cls_logits[near, rng.integers(NUM_CLASSES)] = rng.normal(1, 1, len(near))
        rays[near] = radius * rng.uniform(0.7, 1.3, NUM_RAYS)
    boxes = np.stack([rays[:, k * NUM_RAYS // 4] for k in (3, 2, 1, 0)], axis=1)
    columns = (cls_logits, rng.normal(0, 1, (len(points), 1)), np.log(rays), np.log(boxes))
    levels = [torch.from_numpy(column.astype(np.float32)) for column in columns]
    per_level: list[list[torch.Tensor]] = [[], [], [], []]
    start = 0
    for height, width in locations.map_sizes:
        for maps, column in zip(per_level, levels, strict=True):
            maps.append(column[start : start + height * width].T.reshape(1, -1, height, width).contiguous())
        start += height * width
    return PolarMaps(*per_level)


def numpy_decode(
    maps: PolarMaps, input_size: tuple[int, int], output_size: tuple[int, int], is_official: bool
) -> tuple[np.ndarray, list[dict]]:
    """Scores (D,), best first, and RLEs of one image: greedy NMS class by class, one full-size mask at a time."""
    flat = [torch.cat([level[0].flatten(1).T for level in column]).numpy() for column in maps]
    all_points = make_locations(input_size).points_px.numpy()
    is_inside: np.ndarray = np.all(all_points < input_size[::-1], axis=1)
    cls_scores = np.where(is_inside[:, None], 1 / (1 + np.exp(-flat[0])), -1)
    centerness = 1 / (1 + np.exp(-flat[1][:, 0]))
    ranking, kept, start = (cls_scores * centerness[:, None]).max(axis=1), [], 0
    for level in maps.cls_logits:
        count = level.shape[-2] * level.shape[-1]
        kept.append(start + np.argsort(-ranking[start : start + count], kind="stable")[:1000])
        start += count
    places = np.concatenate(kept)
    points, angles = all_points[places], np.arange(NUM_RAYS) * 2 * math.pi / NUM_RAYS
    contours = points[:, None] + np.exp(flat[2][places])[..., None] * np.stack((np.sin(angles), np.cos(angles)), axis=1)
    margin = 1.0 if is_official else 0.0
    limits, scale = np.array(input_size[::-1]) - margin, np.array(output_size[::-1]) / np.array(input_size[::-1])
    if is_official:
        distances = np.exp(flat[3][places])
        corners = np.concatenate((points - distances[:, :2], points + distances[:, 2:]), axis=1)
        contours = np.clip(contours, 0, limits)
    else:
        corners = np.concatenate((contours.min(axis=1), contours.max(axis=1)), axis=1)
    boxes = np.clip(corners, 0, np.tile(limits, 2)) * np.tile(scale, 2) + (0, 0, margin, margin)
    found: list[tuple[float, int]] = []
    for category in range(NUM_CLASSES):
        chosen = np.flatnonzero(cls_scores[places, category] > 0.05)
        scores = cls_scores[places[chosen], category] * (centerness[places[chosen]] + 0.5)
        found += [(scores[k], chosen[k]) for k in _greedy_nms(boxes[chosen], scores)]
    found = sorted(found, key=lambda pair: -pair[0])[:100]
    rles = [_full_size_rle(contours[k] * scale, output_size, is_official) for _, k in found]
    return np.array([score for score, _ in found]), rles


def _greedy_nms(boxes: np.ndarray, scores: np.ndarray, threshold: float = 0.5) -> list[int]:
    order, kept = np.argsort(-scores, kind="stable"), []
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    while len(order):
        best, order = order[0], order[1:]
        kept.append(int(best))
        sides = np.minimum(boxes[best, 2:], boxes[order, 2:]) - np.maximum(boxes[best, :2], boxes[order, :2])
        overlap = sides.clip(min=0).prod(axis=1)
        order = order[overlap / (areas[best] + areas[order] - overlap) <= threshold]
    return kept


def _full_size_rle(contour: np.ndarray, size: tuple[int, int], is_official: bool) -> dict:
    if is_official:
        mask = np.zeros(size, np.uint8)
        cv2.drawContours(mask, [contour.astype(np.int32)[:, None]], -1, 1, cv2.FILLED)
    else:
        mask = coco_mask.decode(coco_mask.frPyObjects([contour.reshape(-1).tolist()], *size)[0])
    return coco_mask.encode(np.asfortranarray(mask))


def benchmark_decode(
    repeats: int, device: torch.device, cases: tuple[tuple[tuple[int, int], tuple[int, int]], ...] = DECODE_CASES
) -> Iterator[Comparison]:
    """Per-image times from the raw maps to 100 detections with RLE masks at the image's own size.

    Raises:
        TrainingError: detections and oracle disagree.
    """
    for config, is_official in (("configs/polarmask_R50.yaml", False), ("configs/polarmask_R50_official.yaml", True)):
        words = ["MODEL.WEIGHTS", "", "MODEL.DEVICE", str(device)]
        model = PolarMask(merge_config(get_cfg(), str(REPOSITORY / config), words)).eval()
        for input_size, output_size in cases:
            maps = make_maps(input_size, num_objects=150)
            on_device = PolarMaps(*([level.to(device) for level in column] for column in maps))
            if not is_official:
                on_device = on_device._replace(box_logits=[])
            cells, image = make_locations(input_size).to(device), {"height": output_size[0], "width": output_size[1]}
            decode = functools.partial(model.inference, on_device, cells, [input_size], [image])
            oracle = functools.partial(numpy_decode, maps, input_size, output_size, is_official)
            _check_detections(decode()[0]["instances"], *oracle())
            name = "truncated contours" if is_official else "polygons"
            title = f"{name}, {output_size[0]}x{output_size[1]}, {len(oracle()[1])} detections"
            yield compare_times(title, decode, oracle, repeats=repeats, device=device)


def _check_detections(instances: Instances, scores: np.ndarray, rles: list[dict]) -> None:
    if len(instances) != len(scores) or np.abs(instances.scores.cpu().numpy() - scores).max() > 1e-4:
        raise TrainingError("detections and oracle disagree about the scores")
    overlaps = [coco_mask.iou([ours], [theirs], [0])[0, 0] for ours, theirs in zip(instances.pred_masks.rles, rles)]
    if min(overlaps) < 0.99:
        raise TrainingError(f"a mask overlaps the oracle's by {min(overlaps):.3f} only")


# What `tools/benchmark.py` offers: name -> function of (repeats, device).
BENCHMARKS = {"targets": benchmark_targets, "decode": benchmark_decode}
