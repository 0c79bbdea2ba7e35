"""Data sets of drawn masks for the tests of upper bounds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from projects.upper_bound.objects import ImageObjects
from segzoo.geometry.rle import encode_masks

SIZE = (240, 320)
CATEGORIES = [{"id": 3, "name": "ant"}, {"id": 7, "name": "bee"}]


def disc(center: tuple[float, float], radius: float, size: tuple[int, int] = SIZE) -> np.ndarray:
    """(H, W) bool, around (x, y) px."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    return np.hypot(x - center[0], y - center[1]) < radius


def rectangle(left: int, top: int, width: int, height: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """(H, W) bool."""
    mask = np.zeros(size, bool)
    mask[top : top + height, left : left + width] = True
    return mask


def image_of(masks: Sequence[np.ndarray], categories: Sequence[int] = (), image_id: int = 1) -> ImageObjects:
    """The objects of one image; of category 3 unless told otherwise."""
    areas = np.array([mask.sum() for mask in masks], dtype=np.float64)
    height, width = masks[0].shape
    kinds = np.array(list(categories) or [3] * len(masks))
    return ImageObjects(image_id, (height, width), encode_masks(np.stack(masks)), kinds, areas)


def annotation(mask: np.ndarray, image_id: int, category_id: int = 3, **fields: Any) -> dict[str, Any]:
    """An entry of a json, without an id."""
    rle = encode_masks(mask[None])[0]
    return {
        "image_id": image_id,
        "category_id": category_id,
        "iscrowd": 0,
        "area": int(mask.sum()),
        "bbox": coco_mask.toBbox(rle).tolist(),
        "segmentation": {"size": list(rle["size"]), "counts": rle["counts"].decode()},
        **fields,
    }


def write_json(path: Path, annotations: Sequence[dict], num_images: int = 3, **fields: Any) -> str:
    """A COCO json with numbered annotations; images 10, 20, ... of SIZE."""
    images = [
        {"id": 10 * (index + 1), "height": SIZE[0], "width": SIZE[1], "file_name": f"{index}.jpg"}
        for index in range(num_images)
    ]
    numbered = [{"id": number, **entry} for number, entry in enumerate(annotations, start=1)]
    path.write_text(json.dumps({"images": images, "categories": CATEGORIES, "annotations": numbered, **fields}))
    return str(path)


def blobs(count: int, seed: int) -> list[np.ndarray]:
    """Ellipses of all sizes, some across the border or one over another, some with a hole or in two parts."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    masks = []
    for _ in range(count):
        center, half = rng.uniform((0, 0), (SIZE[1], SIZE[0])), np.exp(rng.uniform(1.5, 4.3, 2))
        distance = np.hypot((x - center[0]) / half[0], (y - center[1]) / half[1])
        mask = (distance < 1) & (distance > (0.4 if rng.random() < 0.2 else 0))
        if rng.random() < 0.3:
            mask[:, int(center[0]) : int(center[0]) + 6] = False
        masks.append(mask if mask.any() else rectangle(5, 5, 20, 20))
    return masks


def ious_of(rles: Sequence[dict], masks: Sequence[np.ndarray]) -> list[float]:
    """Intersection over union of run lengths and masks, pixel by pixel."""
    found = [coco_mask.decode(rle).astype(bool) for rle in rles]
    return [float((one & other).sum() / (one | other).sum()) for one, other in zip(found, masks, strict=True)]
