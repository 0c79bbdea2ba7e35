"""What FCOSIS's locations have to predict, against loops over images, locations and objects."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from fcosis.targets import (
    RegularizedTargets,
    center_targets,
    mass_centers,
    object_levels,
    regularized_targets,
)
from segzoo.modeling.fcos.locations import Locations
from tests.contract.toys import NUM_CLASSES, ellipse, make_input
from tests.fcosis.batches import KINDS, hard_batch
from tests.fcosis.pyramids import STRIDES, cells, pyramid

SIZE = (128, 192)
SIZES_OF_INTEREST = [32.0, 64.0, 96.0, 192.0]
LIMITS = [-1.0, *SIZES_OF_INTEREST, math.inf]


def overlapping() -> list[dict]:
    """An image of objects that overlap (bars, a ring, a disc, an L), one of none, one of a single one."""
    ring = ellipse(SIZE, (120, 80), (60, 40)) & ~ellipse(SIZE, (120, 80), (44, 26))
    corner = np.zeros(SIZE, bool)
    corner[2:60, 130:164] = corner[2:20, 130:190] = True
    masks = [ellipse(SIZE, (60, 50), (55, 12)), ellipse(SIZE, (60, 50), (12, 45)), ring]
    masks += [ellipse(SIZE, (125, 80), (20, 20)), ellipse(SIZE, (9, 9), (8, 5)), corner]
    return [make_input(SIZE, masks, 0), make_input(SIZE, [], 1), make_input(SIZE, masks[2:3], 2)]


def instances_of(batch: list[dict]) -> list[Instances]:
    return [sample["instances"] for sample in batch]


def find_targets(batch: list[dict]) -> tuple[RegularizedTargets, Locations]:
    locations = pyramid(SIZE)
    return regularized_targets(locations, instances_of(batch), NUM_CLASSES, SIZES_OF_INTEREST), locations


def boxes_of(batch: list[dict]) -> Tensor:
    return torch.cat([instances.gt_boxes.tensor for instances in instances_of(batch)])


class SlowTargets:
    """Oracle: the targets, location by location."""

    def __init__(self, batch: list[dict], locations: Locations) -> None:
        self.classes: list[int] = []
        self.is_ignored: list[bool] = []
        # Place, owner, distances, share.
        self.positives: list[tuple[int, int, list[float], float]] = []
        first = 0
        for instances in instances_of(batch):
            self.add_image(instances, locations, first)
            first += len(instances)

    def add_image(self, instances: Instances, locations: Locations, first: int) -> None:
        masks, classes = instances.gt_masks.tensor.numpy(), instances.gt_classes.tolist()
        boxes = instances.gt_boxes.tensor.tolist()
        for level, row, column in cells(locations):
            stride = STRIDES[level]
            x, y = (column + 0.5) * stride, (row + 0.5) * stride
            askers, is_in_box = [], False
            for m, (x0, y0, x1, y1) in enumerate(boxes):
                distances = [x - x0, y - y0, x1 - x, y1 - y]
                if min(distances) > 0:
                    is_in_box = True
                    if LIMITS[level] <= max(distances) <= LIMITS[level + 1]:
                        cell = masks[m, row * stride : (row + 1) * stride, column * stride : (column + 1) * stride]
                        askers.append((-cell.sum() / stride**2, (x1 - x0) * (y1 - y0), m, distances))
            if askers:
                share, _, owner, distances = min(askers)
                self.positives.append((len(self.classes), first + owner, distances, -share))
            self.classes.append(classes[min(askers)[2]] if askers else NUM_CLASSES)
            self.is_ignored.append(is_in_box and not askers)


@pytest.mark.parametrize("kind", ["overlapping", *KINDS])
def test_targets_equal_the_slow_oracle(kind: str) -> None:
    batch = overlapping() if kind == "overlapping" else hard_batch(kind, SIZE)
    targets, locations = find_targets(batch)
    expected = SlowTargets(batch, locations)
    assert targets.classes.tolist() == expected.classes
    assert targets.is_ignored.tolist() == expected.is_ignored
    places, owners, distances, shares = zip(*expected.positives, strict=True) if expected.positives else ((),) * 4
    assert targets.positives.tolist() == list(places)
    assert targets.owners.tolist() == list(owners)
    assert targets.box_distances_px.tolist() == list(distances)
    assert targets.shares.tolist() == list(shares)
    if kind == "overlapping":
        assert set(owners) == set(range(7))
        assert 0 < sum(expected.is_ignored) < len(expected.is_ignored) / 2


@pytest.mark.parametrize("kind", ["none", "pixel"])
def test_without_positives_all_is_background(kind: str) -> None:
    batch = hard_batch(kind, SIZE)
    targets, locations = find_targets(batch)
    assert targets.classes.tolist() == [NUM_CLASSES] * (len(batch) * len(locations.points_px))
    assert targets.box_distances_px.shape == (0, 4)
    assert targets.shares.shape == targets.positives.shape == targets.owners.shape == (0,)
    assert not targets.is_ignored.any()
    offsets, index = center_targets(targets, locations, torch.zeros(len(boxes_of(batch)), 2))
    assert offsets.shape == (0, 2)
    assert index.shape == (0,)


def test_the_first_of_identical_objects_has_all_locations() -> None:
    batch = hard_batch("twins", SIZE)
    targets, locations = find_targets(batch)
    assert set(targets.owners.tolist()) == {0}
    levels = object_levels(targets, locations, boxes_of(batch), SIZES_OF_INTEREST)
    # 80 px wide: half of it lies in the second level's range, where the others would be.
    assert levels.tolist()[1:] == [1, 1]


def test_mass_centers_are_the_means_of_the_pixels_centers() -> None:
    rng = np.random.default_rng(0)
    batch = [rng.uniform(size=(5, 40, 61)) < 0.2, np.zeros((0, 9, 9), bool), rng.uniform(size=(3, 17, 23)) < 0.01]
    batch[0][1] = False
    batch[0][2] = False
    batch[0][2, 39, 60] = True
    boxes = torch.tensor([[1.0, 2.0, 8.0, 5.0]]).repeat(8, 1)
    found = mass_centers([torch.from_numpy(masks) for masks in batch], boxes)
    expected = []
    for masks in batch:
        for mask in masks:
            pixels = [(x + 0.5, y + 0.5) for y, x in np.ndindex(*mask.shape) if mask[y, x]]
            # An empty mask has the centre of its box.
            expected.append(np.mean(pixels, axis=0) if pixels else np.array([4.5, 3.5]))
    torch.testing.assert_close(found, torch.from_numpy(np.stack(expected)).float())
    assert found[1].tolist() == [4.5, 3.5]
    assert found[2].tolist() == [60.5, 39.5]
    assert found.dtype == torch.float32


def test_mass_centers_of_no_object() -> None:
    assert mass_centers([torch.zeros(0, 8, 8, dtype=torch.bool)] * 2, torch.zeros(0, 4)).shape == (0, 2)


def test_levels_are_those_of_most_positives() -> None:
    batch = overlapping()
    targets, locations = find_targets(batch)
    counts = np.zeros((7, len(STRIDES)), int)
    for place, owner in zip(targets.positives.tolist(), targets.owners.tolist(), strict=True):
        counts[owner, int(locations.levels[place % len(locations.points_px)])] += 1
    levels = object_levels(targets, locations, boxes_of(batch), SIZES_OF_INTEREST)
    # numpy's argmax is the first of equal ones.
    assert levels.tolist() == counts.argmax(axis=1).tolist()
    assert (counts > 0).sum(axis=1).max() > 1
    assert len(set(levels.tolist())) > 1


def made_targets(locations: Locations, owners_at: list[tuple[int, int]]) -> RegularizedTargets:
    """Targets of which only the positives, pairs of location and owner, are looked at."""
    positives, owners = torch.tensor(owners_at, dtype=torch.int64).reshape(-1, 2).unbind(dim=1)
    none = torch.zeros(len(positives))
    return RegularizedTargets(none, positives, owners, none, none, none)


def test_of_levels_with_equally_many_positives_the_finer_one_counts() -> None:
    locations = pyramid((64, 64))
    first = [int((locations.levels == level).nonzero()[0]) for level in range(5)]
    count = len(locations.points_px)
    targets = made_targets(locations, [(first[1], 0), (first[3], 0), (count + first[2], 1), (count + first[4], 1)])
    assert object_levels(targets, locations, torch.zeros(2, 4), SIZES_OF_INTEREST).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("sides", "level"),
    [
        ((1, 1), 0),
        ((32, 3), 0),
        ((3, 32.5), 1),
        ((64, 64), 1),
        ((65, 1), 2),
        ((96, 96), 2),
        ((128, 5), 3),
        ((129, 5), 4),
    ],
)
def test_an_object_without_positives_has_the_level_of_half_its_longer_side(
    sides: tuple[float, float], level: int
) -> None:
    locations = pyramid((64, 64))
    boxes = torch.tensor([[3.0, 2.0, 3 + sides[0], 2 + sides[1]]])
    assert object_levels(made_targets(locations, []), locations, boxes, [16, 32, 48, 64]).tolist() == [level]


def test_no_object_has_no_level() -> None:
    locations = pyramid((64, 64))
    levels = object_levels(made_targets(locations, []), locations, torch.zeros(0, 4), SIZES_OF_INTEREST)
    assert levels.shape == (0,)
    assert levels.dtype == torch.int64


def test_center_targets_lead_from_the_objects_cells_to_its_center() -> None:
    batch = overlapping()
    targets, locations = find_targets(batch)
    masks = [instances.gt_masks.tensor for instances in instances_of(batch)]
    centers = mass_centers(masks, boxes_of(batch))
    # A half, and a little less.
    targets.shares[:2] = torch.tensor([0.5, 0.499])
    offsets, index = center_targets(targets, locations, centers)
    shares = targets.shares.tolist()
    assert index.tolist() == [number for number, share in enumerate(shares) if share >= 0.5]
    assert 10 < len(index) < len(shares)
    assert 0 in index.tolist()
    assert 1 not in index.tolist()
    for (dx, dy), number in zip(offsets.tolist(), index.tolist(), strict=True):
        place = int(targets.positives[number]) % len(locations.points_px)
        (x, y), stride = locations.points_px[place].tolist(), float(locations.strides_px[place])
        expected = centers[targets.owners[number]].tolist()
        assert [x + dx * stride, y + dy * stride] == pytest.approx(expected, abs=1e-4)


def test_300_objects_have_targets_of_their_own() -> None:
    batch = hard_batch("300", SIZE)
    targets, locations = find_targets(batch)
    assert len(targets.owners.unique()) > 50
    levels = object_levels(targets, locations, boxes_of(batch), SIZES_OF_INTEREST)
    assert levels.shape == (300,)
    # 18 x 14 px.
    assert set(levels.tolist()) == {0}


def test_an_object_between_locations_has_a_level_but_no_targets() -> None:
    """Its box of one pixel holds no cell's centre."""
    batch = hard_batch("pixel", SIZE)
    targets, locations = find_targets(batch)
    boxes = boxes_of(batch)
    assert Boxes(boxes).area().tolist() == [1.0]
    assert object_levels(targets, locations, boxes, SIZES_OF_INTEREST).tolist() == [0]
    centers = mass_centers([batch[0]["instances"].gt_masks.tensor], boxes)
    assert centers.tolist() == [[51.5, 37.5]]
