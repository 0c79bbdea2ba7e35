"""The objects of training and of test, one after the other by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from fcosis.objects import Objects, detected_objects, training_objects
from fcosis.targets import object_levels, regularized_targets
from segzoo.geometry.soft_masks import soft_masks
from segzoo.modeling.fcos.decode import Detections
from tests.contract.toys import NUM_CLASSES, ellipse, make_input
from tests.fcosis.batches import KINDS, hard_batch
from tests.fcosis.pyramids import pyramid

SIZE = (128, 192)
MAP_SIZE = (32, 48)
SIZES_OF_INTEREST = [32.0, 64.0, 96.0, 192.0]


def filled_boxes() -> list[dict]:
    """Objects that fill their boxes (in the middle, in a corner, of a pixel), so that these are padded; a thin ring."""
    masks = np.zeros((4, *SIZE), bool)
    masks[0, 40:80, 60:100] = True
    masks[1, :30, :50] = True
    masks[2, 101, 77] = True
    masks[3] = ellipse(SIZE, (140, 80), (45, 40)) & ~ellipse(SIZE, (140, 80), (42, 37))
    return [make_input(SIZE, [], 0), make_input(SIZE, list(masks), 1), make_input(SIZE, [masks[0]], 2)]


def find_objects(batch: list[dict]) -> tuple[Objects, Tensor]:
    instances, locations = [sample["instances"] for sample in batch], pyramid(SIZE)
    masks = soft_masks([own.gt_masks.tensor for own in instances], MAP_SIZE)
    targets = regularized_targets(locations, instances, NUM_CLASSES, SIZES_OF_INTEREST)
    objects = training_objects(instances, masks, targets, locations, SIZES_OF_INTEREST)
    boxes = torch.cat([own.gt_boxes.tensor for own in instances])
    assert torch.equal(objects.levels, object_levels(targets, locations, boxes, SIZES_OF_INTEREST))
    return objects, masks


def padded_slowly(mask: np.ndarray) -> list[float]:
    """Oracle: whole cells of 4 px around the pixels' box until half of it, or less, is set; px, within the map."""
    rows, columns = mask.nonzero()
    left, top, right, bottom = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    p = next(
        p for p in itertools.count() if (right - left + 8 * p) * (bottom - top + 8 * p) >= 2 * np.count_nonzero(mask)
    )
    return [
        max(left - 4 * p, 0),
        max(top - 4 * p, 0),
        min(right + 4 * p, 4 * MAP_SIZE[1]),
        min(bottom + 4 * p, 4 * MAP_SIZE[0]),
    ]


@pytest.mark.parametrize("kind", ["filled boxes", *KINDS])
def test_objects_of_training_are_the_ground_truths(kind: str) -> None:
    batch = filled_boxes() if kind == "filled boxes" else hard_batch(kind, SIZE)
    objects, _ = find_objects(batch)
    instances = [sample["instances"] for sample in batch]
    masks = [mask for own in instances for mask in own.gt_masks.tensor.numpy()]
    assert objects.counts == [len(own) for own in instances]
    assert objects.images.tolist() == [image for image, own in enumerate(instances) for _ in range(len(own))]
    assert objects.images.dtype == torch.int64
    assert objects.classes.tolist() == [number for own in instances for number in own.gt_classes.tolist()]
    assert objects.boxes_px.tolist() == [box for own in instances for box in own.gt_boxes.tensor.tolist()]
    assert objects.apart_px.tolist() == [padded_slowly(mask) for mask in masks]
    assert objects.centers_px.shape == (len(masks), 2)
    for center, mask in zip(objects.centers_px.tolist(), masks, strict=True):
        rows, columns = mask.nonzero()
        assert center == pytest.approx([columns.mean() + 0.5, rows.mean() + 0.5], abs=1e-4)


def test_padded_boxes_are_about_half_foreground() -> None:
    objects, masks = find_objects(filled_boxes())
    areas = (objects.apart_px[:, 2:] - objects.apart_px[:, :2]).prod(dim=1) / 16
    shares = (masks.sum(dim=(1, 2)) / areas).tolist()
    # A square of 10 x 10 cells is padded by three; the corner one loses half of its padding.
    assert shares[0] == pytest.approx(100 / 16**2)
    assert shares[1] > 0.5
    # The ring is less than half of its box anyway.
    assert torch.equal(objects.apart_px[3], objects.boxes_px[3])
    assert shares[3] < 0.25


def make_detections(found: list[list[int]]) -> list[Detections]:
    generator = torch.Generator().manual_seed(0)
    results = []
    for own in found:
        corners = torch.rand(len(own), 2, generator=generator) * 50
        boxes = torch.cat((corners, corners + torch.rand(len(own), 2, generator=generator) * 60), dim=1)
        classes = torch.randint(NUM_CLASSES, (len(own),), generator=generator)
        results.append(Detections(boxes, torch.rand(len(own)), classes, torch.tensor(own, dtype=torch.int64)))
    return results


@pytest.mark.parametrize("found", [[[5, 400, 5], [], [500, 386]], [[], []]], ids=["some", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_objects_of_test_are_the_detections(found: list[list[int]], dtype: torch.dtype) -> None:
    locations = pyramid(SIZE)
    generator = torch.Generator().manual_seed(1)
    offsets = [torch.randn(len(found), 2, *size, generator=generator).to(dtype) for size in locations.map_sizes]
    detections = make_detections(found)
    objects = detected_objects(detections, offsets, locations)
    assert objects.counts == [len(own) for own in found]
    assert torch.equal(objects.boxes_px, torch.cat([own.boxes_px for own in detections]))
    assert torch.equal(objects.apart_px, objects.boxes_px)
    assert torch.equal(objects.classes, torch.cat([own.classes for own in detections]))
    # Places of the locations: level after level, row after row.
    places = [
        (level, row, column) for level, size in enumerate(locations.map_sizes) for row, column in np.ndindex(*size)
    ]
    pairs = [(image, places[place]) for image, own in enumerate(found) for place in own]
    assert objects.images.tolist() == [image for image, _ in pairs]
    assert objects.levels.tolist() == [level for _, (level, _, _) in pairs]
    for center, (image, (level, row, column)) in zip(objects.centers_px.tolist(), pairs, strict=True):
        stride = 8 * 2**level
        way = offsets[level][image, :, row, column].float().tolist()
        assert center == pytest.approx([(column + 0.5 + way[0]) * stride, (row + 0.5 + way[1]) * stride], abs=1e-3)
    if pairs:
        assert len(set(objects.levels.tolist())) > 1


def test_without_offsets_centers_are_the_locations() -> None:
    locations = pyramid(SIZE)
    objects = detected_objects(make_detections([[5, 400], [3]]), [], locations)
    assert torch.equal(objects.centers_px, locations.points_px[[5, 400, 3]])
