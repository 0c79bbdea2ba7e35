"""Objects for the tests of CenterMask, and the maps that a network would need to draw them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from centermask.assembly import assemble_masks
from centermask.targets import collect_objects
from centermask.unions import union_masks
from segzoo.geometry.masks import mask_boxes
from segzoo.geometry.soft_masks import soft_masks

# A trained network is hardly ever surer.
MIN_PROBABILITY = 1e-3


def area_averages(mask: Tensor, side: int) -> Tensor:
    """(S, S) share of set pixels in the cells of a grid laid over a whole (h, w) mask, also where it cuts pixels."""
    totals = torch.zeros(mask.shape[0] + 1, mask.shape[1] + 1, dtype=torch.float64)
    totals[1:, 1:] = mask.double().cumsum(0).cumsum(1)
    for _ in range(2):
        places = torch.linspace(0, len(totals) - 1, side + 1, dtype=torch.float64)
        lower = places.floor().long().clamp(max=len(totals) - 2)
        totals = torch.lerp(totals[lower], totals[lower + 1], (places - lower)[:, None]).T
    cells = totals[1:, 1:] - totals[:-1, 1:] - totals[1:, :-1] + totals[:-1, :-1]
    return (cells * side**2 / mask.numel()).float()


def logits_of(probabilities: Tensor) -> Tensor:
    return torch.logit(probabilities.clamp(MIN_PROBABILITY, 1 - MIN_PROBABILITY))


def true_maps(masks: Tensor, classes: Tensor, side: int, clips_boxes: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """(M, S, S) shape logits, (K, H, W) saliency logits at stride 4 and (M, 4) boxes of (M, h, w) bool masks.

    With `clips_boxes` the boxes are those of the training targets, which end where the last cell begins, for
    objects that are targets at all.
    """
    boxes = mask_boxes(masks)
    if clips_boxes:
        sample = Instances(tuple(masks.shape[1:]), gt_boxes=Boxes(boxes), gt_classes=classes)
        objects, _ = collect_objects([sample], (-(-masks.shape[1] // 4), -(-masks.shape[2] // 4)), len(masks))
        boxes[objects.order] = objects.boxes * 4
    crops = [mask[y0:y1, x0:x1] for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True)]
    shapes = torch.stack([area_averages(crop, side) for crop in crops])
    # Padded to a multiple of 32, as a network's input.
    size = (-(-masks.shape[1] // 32) * 8, -(-masks.shape[2] // 32) * 8)
    num_classes = int(classes.max()) + 1
    unions = union_masks(soft_masks([masks], size), torch.zeros_like(classes), classes, 1, num_classes)[0]
    return logits_of(shapes), logits_of(unions), boxes


def round_trip(masks: Tensor, classes: Tensor, side: int, threshold: float = 0.4, clips_boxes: bool = False) -> Tensor:
    """(M,) IoU of masks with what their own shapes and saliency are assembled to, at the masks' size."""
    shapes, saliency, boxes = true_maps(masks, classes, side, clips_boxes)
    size = (masks.shape[1], masks.shape[2])
    found = assemble_masks(
        *(shapes, saliency, boxes, classes),
        input_size=size,
        output_size=size,
        threshold=threshold,
        budget_mb=64.0,
    ).to_tensor()
    return (found & masks).flatten(1).sum(dim=1) / (found | masks).flatten(1).sum(dim=1)


def disc(size: tuple[int, int], center: tuple[float, float], radius: float) -> np.ndarray:
    """(H, W) bool."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    return np.hypot(x - center[0], y - center[1]) < radius


def random_boxes(count: int, size: tuple[int, int], seed: int = 0) -> Tensor:
    """(count, 4) xyxy of all sizes around (H, W), some reaching out of it, some smaller than a cell."""
    rng = np.random.default_rng(seed)
    center = rng.uniform((-2, -2), (size[1] + 2, size[0] + 2), (count, 2))
    half = np.exp(rng.uniform(np.log(0.05), np.log(max(size)), (count, 2))) / 2
    return torch.from_numpy(np.concatenate((center - half, center + half), axis=1)).float()


def random_masks(count: int, size: tuple[int, int], seed: int = 0) -> Tensor:
    """(count, h, w) bool noise in rectangles."""
    rng = np.random.default_rng(seed)
    masks = rng.random((count, *size)) < 0.6
    for mask, (x0, y0, x1, y1) in zip(masks, random_boxes(count, size, seed).int().tolist(), strict=True):
        outside = np.ones(size, dtype=bool)
        outside[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = False
        mask[outside] = False
    return torch.from_numpy(masks)


def choose(values: Sequence[int], count: int, seed: int = 0) -> Tensor:
    """(count,) int64 drawn from `values`."""
    return torch.from_numpy(np.random.default_rng(seed).choice(np.array(values), count))
