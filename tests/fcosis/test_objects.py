"""The objects of training and of test, one after the other by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fcosis.detector import positive_weights
from fcosis.objects import Objects, count_rivals, detected_objects, merge_detections, training_objects
from fcosis.regularization import location_shares
from fcosis.targets import object_levels, regularized_targets
from segzoo.geometry.soft_masks import soft_masks
from segzoo.modeling.fcos.decode import Detections
from tests.contract.toys import NUM_CLASSES, ellipse, make_input
from tests.fcosis.batches import KINDS, THIRDS, hard_batch
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
    shares = location_shares([own.gt_masks.tensor for own in instances], locations)
    targets = regularized_targets(locations, instances, shares, NUM_CLASSES, SIZES_OF_INTEREST)
    weights = positive_weights(targets, THIRDS)
    objects = training_objects(instances, masks, targets, weights, locations, SIZES_OF_INTEREST)
    boxes = torch.cat([own.gt_boxes.tensor for own in instances])
    assert torch.equal(objects.levels, object_levels(targets, weights, locations, boxes, SIZES_OF_INTEREST))
    # Each competes by its own centre, and with all others of its image.
    assert objects.stand_ins.tolist() == list(range(len(boxes)))
    assert objects.num_rivals.tolist() == [len(own) for own in instances for _ in range(len(own))]
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


def merge_slowly(boxes: list[list[float]], centers: list[list[float]]) -> list[int]:
    """Oracle for one image: each goes to the first that is like it, from there on to the first like that one."""

    def is_same(a: int, b: int) -> bool:
        (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = boxes[a], boxes[b]
        both = max(min(ax1, bx1) - max(ax0, bx0), 0) * max(min(ay1, by1) - max(ay0, by0), 0)
        areas = [max(ax1 - ax0, 0) * max(ay1 - ay0, 0), max(bx1 - bx0, 0) * max(by1 - by0, 0)]
        if both < 0.5 * (sum(areas) - both) or min(areas) == 0:
            return False
        return math.dist(centers[a], centers[b]) <= 0.2 * math.sqrt(min(areas))

    best = []
    for own in range(len(boxes)):
        # Better ones are decided already.
        alike = [other for other in range(own) if is_same(own, other)]
        best.append(best[alike[0]] if alike else own)
    return best


def near_detections(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Boxes and centres around a handful of objects, many of them nearly alike; some boxes without an area."""
    rng = np.random.default_rng(seed)
    corners, sides = rng.uniform(0, 60, (6, 2)), rng.uniform(20, 60, (6, 2))
    owners = rng.integers(0, 6, count)
    corners, sides = corners[owners] + rng.normal(0, 3, (count, 2)), sides[owners] * rng.uniform(0.8, 1.2, (count, 2))
    boxes = np.concatenate((corners, corners + sides), axis=1)
    boxes[::7, 2] = boxes[::7, 0]
    return torch.from_numpy(boxes).float(), torch.from_numpy(corners + sides / 2 + rng.normal(0, 2, (count, 2))).float()


@pytest.mark.parametrize("far_px", [0, 3000])
@pytest.mark.parametrize("counts", [[100], [30, 0, 1, 25], [0, 0], [1]], ids=str)
def test_merged_detections_equal_the_slow_oracle(counts: list[int], far_px: int) -> None:
    """Also in a large image, where products of coordinates would round."""
    boxes, centers = near_detections(sum(counts), 5)
    boxes, centers = boxes + far_px, centers + far_px
    expected, start = [], 0
    for count in counts:
        own = slice(start, start + count)
        expected += [index + start for index in merge_slowly(boxes[own].tolist(), centers[own].tolist())]
        start += count
    found = merge_detections(boxes, centers, counts)
    assert found.dtype == torch.int64
    assert found.tolist() == expected
    if sum(counts) > 50:
        assert 3 < len(set(expected)) < 0.9 * sum(counts)


def test_a_chain_of_detections_is_one_object() -> None:
    """Each is like the next two alone; who is better than those like it is an object of its own."""
    shift = torch.arange(40)[:, None] * 5.0
    boxes = torch.cat((shift, shift * 0, shift + 60, shift * 0 + 60), dim=1)
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    assert merge_detections(boxes, centers, [40]).tolist() == [0] * 40
    ends_first = [0, 4, 2]
    assert merge_detections(boxes[ends_first], centers[ends_first], [3]).tolist() == [0, 1, 0]


def test_detections_of_one_object_share_its_locations() -> None:
    """A second class on the same object does not take its pixels, whichever of them lies nearer."""
    locations = pyramid(SIZE)
    middle = int(((locations.points_px - torch.tensor([100.0, 60.0])).square().sum(dim=1) + locations.levels).argmin())
    boxes = torch.tensor([[60.0, 20, 140, 100], [62.0, 22, 142, 98], [10.0, 10, 60, 60]])
    found = Detections(boxes, torch.tensor([0.9, 0.4, 0.3]), torch.tensor([0, 1, 0]), torch.tensor([middle, middle, 0]))
    objects = detected_objects([found], [], locations)
    assert objects.stand_ins.tolist() == [0, 0, 2]
    # Half of 0.9 is more than 0.4; who competes by the first one's centre has its rivals; the last one has all.
    assert objects.num_rivals.tolist() == [1, 1, 3]


@pytest.mark.parametrize(
    ("scores", "expected"),
    [([0.9, 0.5, 0.45, 0.44, 0.2], [3, 5 - 1, 4, 4, 5]), ([0.3, 0.3], [2, 2]), ([0.0, 0.0], [2, 2]), ([], [])],
    ids=str,
)
def test_rivals_score_at_least_half_as_much(scores: list[float], expected: list[int]) -> None:
    found = count_rivals(torch.tensor(scores))
    assert found.dtype == torch.int64
    assert found.tolist() == expected
    assert found.tolist() == [sum(other >= 0.5 * own for other in scores) for own in scores]


def test_tiny_twins_are_one_object_however_many_others_there_are() -> None:
    """Distances of 0 stay 0 far from the origin and in large batches."""
    centers = torch.tensor([1200.0, 1100.0]) + torch.arange(30)[:, None] * 7.0
    centers = centers.repeat(2, 1)
    boxes = torch.cat((centers - 2, centers + 2), dim=1)
    assert merge_detections(boxes, centers, [60]).tolist() == list(range(30)) * 2


def test_a_wild_way_to_the_center_is_said_and_disturbs_no_other(caplog: pytest.LogCaptureFixture) -> None:
    locations = pyramid(SIZE)
    offsets = [torch.zeros(1, 2, *size) for size in locations.map_sizes]
    offsets[0][0, 0, 0, 5] = float("nan")
    offsets[0][0, 1, 0, 9] = float("inf")
    objects = detected_objects(make_detections([[5, 7, 9]]), offsets, locations)
    assert torch.equal(objects.centers_px, locations.points_px[[5, 7, 9]])
    assert "2 of 3 detections have no finite way" in caplog.text
