"""What `tools/benchmark.py` measures of OrienMask: targets and masks beside plain programs for the same.

The oracles are what one writes first: one vectorised numpy pass an object over the whole map, and the orientation maps
gathered once a detection. They share no code with the package, so that they also check its results.

Shape shorthand: M ground truths, D detections, A anchors, H, W size of the network input, h, w of the raw maps.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from detectron2.structures import BitMasks, Boxes, Instances
from pycocotools import mask as coco_mask
from torch.nn import functional

from orienmask.config import YOLOV4_ANCHORS
from orienmask.decode import Detections, orientation_masks
from orienmask.orientation import OrientationTargets, orientation_targets
from orienmask.targets import BoxTargets, TargetRule, assign_anchors, box_targets
from segzoo.errors import TrainingError
from segzoo.evaluation.timing import Comparison, compare_memory, compare_times
from segzoo.geometry.masks import mask_boxes
from segzoo.geometry.rle import RLEMasks

INPUT_SIZE = (544, 544)
STRIDES = (8, 16, 32)
NUM_CLASSES = 80
TAU, BUDGET_MB = 0.6, 64.0
RULE = TargetRule(YOLOV4_ANCHORS, STRIDES)
# Vectors end this far from their place, in shares of half an anchor, where a trained network draws an object.
NOISE = 0.1
# (V, H, W): vectors of the pixels, which of them are positive, which negative.
Painted = tuple[np.ndarray, np.ndarray, np.ndarray]


def make_instances(num_objects: int, size: tuple[int, int] = INPUT_SIZE, seed: int = 0) -> Instances:
    """Ellipses of 8 to 200 px radius (log-uniform) as ground truth."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32) + 0.5
    masks = []
    for _ in range(num_objects):
        radii = np.exp(rng.uniform(np.log(8), np.log(min(200, min(size) / 2)), 2))
        center = rng.uniform((0, 0), (size[1], size[0]))
        masks.append(((x - center[0]) / radii[0]) ** 2 + ((y - center[1]) / radii[1]) ** 2 < 1)
    stack = torch.from_numpy(np.stack(masks))
    instances = Instances(size)
    instances.gt_boxes = Boxes(mask_boxes(stack))
    instances.gt_classes = torch.arange(num_objects) % NUM_CLASSES
    instances.gt_masks = BitMasks(stack)
    return instances


def map_sizes(size: tuple[int, int]) -> list[tuple[int, int]]:
    """(height, width) of the box maps."""
    return [(size[0] // stride, size[1] // stride) for stride in STRIDES]


def torch_targets(batch: Sequence[Instances], size: tuple[int, int]) -> tuple[BoxTargets, OrientationTargets]:
    """All that training computes of a batch's objects before it looks at the network."""
    sizes = map_sizes(size)
    objects = assign_anchors(batch, sizes, RULE)
    num_predictions = 3 * sum(height * width for height, width in sizes)
    boxes = box_targets(objects, len(batch), num_predictions, NUM_CLASSES, RULE)
    return boxes, orientation_targets(objects, batch, size, len(YOLOV4_ANCHORS), RULE)


def numpy_targets(instances: Instances, size: tuple[int, int], *, areas_only: bool) -> dict[int, Painted]:
    """Anchor -> its map; one vectorised pass an object over the whole map, or over its area alone."""
    anchors = np.array(YOLOV4_ANCHORS, dtype=np.float32)
    boxes = instances.gt_boxes.tensor.numpy()
    masks = instances.gt_masks.tensor.numpy()
    sides = boxes[:, 2:] - boxes[:, :2]
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    painted: dict[int, Painted] = {}
    counts: dict[int, np.ndarray] = {}
    for index in np.argsort(-sides.prod(axis=1), kind="stable"):
        overlap = np.minimum(anchors, sides[index]).prod(axis=1)
        anchor = int((overlap / (anchors.prod(axis=1) + sides[index].prod() - overlap)).argmax())
        if anchor not in painted:
            painted[anchor] = np.zeros((2, *size), np.float32), np.zeros(size, bool), np.zeros(size, bool)
            counts[anchor] = np.zeros(size, np.float32)
        center = (boxes[index, :2] + boxes[index, 2:]) / 2
        reach = 0.6 * sides[index] + STRIDES[anchor // 3] / 2
        limit = np.array([size[1], size[0]]) - 1
        first = np.rint(np.clip(center - reach, 0, limit)).astype(int)
        last = np.rint(np.clip(center + reach, 0, limit)).astype(int)
        window = np.s_[first[1] : last[1] + 1, first[0] : last[0] + 1] if areas_only else np.s_[:, :]
        is_area = (x[window] >= first[0]) & (x[window] <= last[0]) & (y[window] >= first[1]) & (y[window] <= last[1])
        _paint(
            [column[(..., *window)] for column in painted[anchor]],
            counts[anchor][window],
            masks[index][window],
            is_area,
            (x[window] - center[0], y[window] - center[1]),
            reach,
            anchors[anchor] / 2,
        )
    for anchor, (vectors, positive, negative) in painted.items():
        vectors /= np.where(positive, 1, np.maximum(counts[anchor], 1))
        negative[...] = (counts[anchor] > 0) & ~positive
    return painted


def _paint(
    painted: list[np.ndarray],
    count: np.ndarray,
    mask: np.ndarray,
    is_area: np.ndarray,
    away: tuple[np.ndarray, np.ndarray],
    reach: np.ndarray,
    half_anchor: np.ndarray,
) -> None:
    """One object into views of its anchor's map."""
    vectors, positive, _ = painted
    with np.errstate(divide="ignore", invalid="ignore"):
        stretch = np.maximum(np.minimum(reach[0] / np.abs(away[0]), reach[1] / np.abs(away[1])), 1) - 1
        outward = [stretch * part for part in away]
    is_base = (away[0] == 0) & (away[1] == 0)
    outward[0][is_base], outward[1][is_base] = reach[0], 0
    is_positive = mask & is_area
    is_negative = is_area & ~mask & ~positive
    count += is_negative
    for axis in range(2):
        vectors[axis] += np.where(is_negative, outward[axis] / half_anchor[axis], 0)
        vectors[axis][is_positive] = -away[axis][is_positive] / half_anchor[axis]
    positive |= is_positive


def benchmark_targets(
    repeats: int,
    device: torch.device,
    counts: Sequence[int] = (7, 30),
    batches: Sequence[int] = (1, 4),
    size: tuple[int, int] = INPUT_SIZE,
) -> Iterator[Comparison]:
    """Per-image times of all targets for images of 7 and of 30 objects, alone and in a batch of 4.

    Raises:
        TrainingError: targets and oracle disagree.
    """
    for batch, count in itertools.product(batches, counts):
        images = [make_instances(count, size, seed) for seed in range(batch)]
        ours = functools.partial(torch_targets, [image.to(device) for image in images], size)
        _check_targets(ours()[1], [numpy_targets(image, size, areas_only=False) for image in images])
        for name, areas_only in (("whole maps", False), ("areas alone", True)):
            title = f"{count} objects, batch {batch}, beside numpy over {name}"
            oracle = functools.partial(_numpy_batch, images, size, areas_only)
            yield compare_times(title, ours, oracle, repeats=repeats, images=batch, device=device)


def _numpy_batch(images: list[Instances], size: tuple[int, int], areas_only: bool) -> None:
    for image in images:
        numpy_targets(image, size, areas_only=areas_only)


def _check_targets(found: OrientationTargets, expected: list[dict[int, Painted]]) -> None:
    pairs = list(zip(found.image.tolist(), found.anchor.tolist(), strict=True))
    if set(pairs) != {(image, anchor) for image, maps in enumerate(expected) for anchor in maps}:
        raise TrainingError("targets and oracle disagree about the anchors")
    for place, (image, anchor) in enumerate(pairs):
        vectors, positive, negative = expected[image][anchor]
        for ours, theirs in ((found.is_positive, positive), (found.is_negative, negative)):
            if not np.array_equal(ours[place].cpu().numpy(), theirs):
                raise TrainingError(f"targets and oracle disagree about the pixels of anchor {anchor}")
        differs = np.abs(found.vectors[:, place].cpu().numpy() - vectors)
        if np.where(positive | negative, differs, 0).max() > 1e-3:
            raise TrainingError(f"targets and oracle disagree about the vectors of anchor {anchor}")


def make_detections(count: int, size: tuple[int, int], seed: int = 0) -> tuple[torch.Tensor, Detections]:
    """Noisy maps (2 A, h, w) as of a trained network, and detections around its objects, several an object."""
    rng = np.random.default_rng(seed)
    _, targets = torch_targets([make_instances(count // 4, size, seed)], size)
    maps = torch.from_numpy(rng.normal(0, 1, (len(YOLOV4_ANCHORS), 2, *size)).astype(np.float32))
    has_target = (targets.is_positive | targets.is_negative)[:, None]
    noise = torch.from_numpy(rng.normal(0, NOISE, (len(targets.anchor), 2, *size)).astype(np.float32))
    maps[targets.anchor] = torch.where(has_target, targets.vectors.transpose(0, 1) + noise, maps[targets.anchor])
    raw = functional.avg_pool2d(maps.flatten(0, 1)[None], 4)[0]
    objects = assign_anchors([make_instances(count // 4, size, seed)], map_sizes(size), RULE)
    owner = torch.arange(count) % len(objects.anchors)
    shift = torch.from_numpy(rng.normal(0, 0.05, (count, 4)).astype(np.float32))
    boxes = objects.boxes[owner]
    boxes = boxes + shift * boxes[:, 2:].repeat(1, 2)
    return raw, Detections(boxes, boxes[:, :2], torch.ones(count), objects.classes[owner], objects.anchors[owner])


def gathered_masks(raw: torch.Tensor, anchors_px: torch.Tensor, found: Detections, size: tuple[int, int]) -> list[dict]:
    """RLEs of masks from maps that are enlarged all and gathered once a detection."""
    enlarged = functional.interpolate(raw[None], size=size, mode="bilinear", align_corners=False)[0]
    vectors = enlarged.view(-1, 2, *size)[found.anchors] * (anchors_px[found.anchors] / 2)[:, :, None, None]
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    miss = (vectors + torch.stack((x, y)) - found.bases_px[:, :, None, None]).abs()
    masks = (miss < (found.boxes[:, 2:] * (TAU / 2))[:, :, None, None]).all(dim=1)
    return [coco_mask.encode(np.asfortranarray(mask)) for mask in masks.numpy().view(np.uint8)]


def benchmark_decode(
    repeats: int, device: torch.device, count: int = 100, size: tuple[int, int] = INPUT_SIZE
) -> Iterator[Comparison]:
    """Time and memory from the raw maps to the RLE masks of 100 detections at the size of the network input.

    Raises:
        TrainingError: masks and oracle disagree in more than two pixels of a mask.
    """
    raw, found = make_detections(count, size)
    anchors_px = torch.tensor(YOLOV4_ANCHORS, dtype=torch.float32)
    there = Detections(*(column.to(device) for column in found))
    ours = functools.partial(
        orientation_masks,
        *(raw.to(device), anchors_px.to(device), there),
        input_size=size,
        output_size=size,
        tau=TAU,
        budget_mb=BUDGET_MB,
    )
    oracle = functools.partial(gathered_masks, raw, anchors_px, found, size)
    differing = (ours().to_tensor() ^ RLEMasks(oracle(), size).to_tensor()).flatten(1).sum(dim=1)
    if int(differing.max()) > 2:
        raise TrainingError(f"a mask differs from the oracle's in {int(differing.max())} pixels")
    title = f"masks of {count} detections, {size[0]}x{size[1]}"
    row = compare_times(title, ours, oracle, repeats=repeats, device=device)
    yield row if device.type == "cuda" else compare_memory(row, ours, oracle)


# What `tools/benchmark.py` offers: name -> function of (repeats, device).
BENCHMARKS = {"targets": benchmark_targets, "decode": benchmark_decode}
