"""What FCOSIS's locations have to predict, against loops over images, locations and objects."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from fcosis.detector import positive_weights
from fcosis.regularization import location_shares
from fcosis.targets import (
    InnerTargets,
    RegularizedTargets,
    center_targets,
    inner_targets,
    mass_centers,
    object_levels,
    regularized_targets,
)
from segzoo.modeling.fcos.locations import Locations
from tests.contract.toys import NUM_CLASSES, ellipse, make_input
from tests.fcosis.batches import KINDS, THIRDS, hard_batch
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
    locations, instances = pyramid(SIZE), instances_of(batch)
    shares = location_shares([own.gt_masks.tensor for own in instances], locations)
    return regularized_targets(locations, instances, shares, NUM_CLASSES, SIZES_OF_INTEREST), locations


def find_inner(batch: list[dict]) -> tuple[InnerTargets, Locations]:
    targets, locations = find_targets(batch)
    shares = location_shares([own.gt_masks.tensor for own in instances_of(batch)], locations)
    return inner_targets(targets, find_levels(batch), locations, instances_of(batch), shares), locations


def find_levels(batch: list[dict]) -> Tensor:
    targets, locations = find_targets(batch)
    weights = positive_weights(targets, THIRDS)
    return object_levels(targets, weights, locations, boxes_of(batch), SIZES_OF_INTEREST)


def boxes_of(batch: list[dict]) -> Tensor:
    return torch.cat([instances.gt_boxes.tensor for instances in instances_of(batch)])


class SlowTargets:
    """Oracle: the targets, location by location."""

    def __init__(self, batch: list[dict], locations: Locations, levels: list[int]) -> None:
        self.levels = levels
        self.classes: list[int] = []
        self.is_outside: list[bool] = []
        # Place, owner, distances, share.
        self.positives: list[tuple[int, int, list[float], float]] = []
        # Place, owner, share.
        self.inner: list[tuple[int, int, float]] = []
        first = 0
        for instances in instances_of(batch):
            self.add_image(instances, locations, first)
            first += len(instances)

    def add_image(self, instances: Instances, locations: Locations, first: int) -> None:
        masks, classes = instances.gt_masks.tensor.numpy(), instances.gt_classes.tolist()
        boxes = instances.gt_boxes.tensor.tolist()
        # All objects in whose box a location is, by its place; objects and levels with a positive.
        holders: list[tuple[int, int, list[tuple[float, float, int]]]] = []
        seen = {(m, self.levels[first + m]) for m in range(len(boxes))}
        for level, row, column in cells(locations):
            stride = STRIDES[level]
            x, y = (column + 0.5) * stride, (row + 0.5) * stride
            askers, around = [], []
            for m, (x0, y0, x1, y1) in enumerate(boxes):
                distances = [x - x0, y - y0, x1 - x, y1 - y]
                if min(distances) > 0:
                    cell = masks[m, row * stride : (row + 1) * stride, column * stride : (column + 1) * stride]
                    around.append((-cell.sum() / stride**2, (x1 - x0) * (y1 - y0), m))
                    if LIMITS[level] <= max(distances) <= LIMITS[level + 1]:
                        askers.append((*around[-1], distances))
            holders.append((len(self.classes), level, around))
            if askers:
                share, _, owner, distances = min(askers)
                self.positives.append((len(self.classes), first + owner, distances, -share))
                seen.add((owner, level))
            self.classes.append(classes[min(askers)[2]] if askers else NUM_CLASSES)
            self.is_outside.append(not around and y < instances.image_size[0] and x < instances.image_size[1])
        for place, level, around in holders:
            known = [asker for asker in around if (asker[2], level) in seen]
            if known:
                share, _, owner = min(known)
                self.inner.append((place, first + owner, -share))


@pytest.mark.parametrize("kind", ["overlapping", *KINDS])
def test_targets_equal_the_slow_oracle(kind: str) -> None:
    batch = overlapping() if kind == "overlapping" else hard_batch(kind, SIZE)
    targets, locations = find_targets(batch)
    expected = SlowTargets(batch, locations, find_levels(batch).tolist())
    assert targets.classes.tolist() == expected.classes
    places, owners, distances, shares = zip(*expected.positives, strict=True) if expected.positives else ((),) * 4
    assert targets.positives.tolist() == list(places)
    assert targets.owners.tolist() == list(owners)
    assert targets.box_distances_px.tolist() == list(distances)
    assert targets.shares.tolist() == list(shares)
    if kind == "overlapping":
        assert set(owners) == set(range(7))


@pytest.mark.parametrize("kind", ["overlapping", *KINDS])
def test_inner_targets_equal_the_slow_oracle(kind: str) -> None:
    batch = overlapping() if kind == "overlapping" else hard_batch(kind, SIZE)
    inner, locations = find_inner(batch)
    expected = SlowTargets(batch, locations, find_levels(batch).tolist())
    assert inner.is_outside.tolist() == expected.is_outside
    places, owners, shares = zip(*expected.inner, strict=True) if expected.inner else ((),) * 3
    assert inner.places.tolist() == list(places)
    assert inner.owners.tolist() == list(owners)
    assert inner.shares.tolist() == list(shares)
    if kind == "overlapping":
        num_ignored = len(expected.is_outside) - sum(expected.is_outside) - len(places)
        assert len(expected.positives) + 50 < len(places)
        # Levels without a positive of theirs know nothing of the objects.
        assert num_ignored > 0


def test_a_box_is_known_as_a_whole_on_every_level_that_finds_it() -> None:
    """A square's positives are split over two levels: attention on either one finds targets in the whole box."""
    square = np.zeros(SIZE, bool)
    square[14:114, 40:140] = True
    batch = [make_input(SIZE, [square], 0)]
    targets, locations = find_targets(batch)
    inner, _ = find_inner(batch)
    x, y = locations.points_px.unbind(dim=1)
    is_in_box = (x > 40) & (x < 140) & (y > 14) & (y < 114)
    has_positive, has_target = torch.zeros_like(is_in_box), torch.zeros_like(is_in_box)
    has_positive[targets.positives] = True
    has_target[inner.places] = True
    levels = locations.levels[targets.positives].unique().tolist()
    assert len(levels) == 2
    for level in levels:
        own = is_in_box & (locations.levels == level)
        assert has_target[own].all()
        assert not has_positive[own].all()
    assert not has_target[~is_in_box].any()
    # The finer level, in the middle, has the largest weights.
    assert find_levels(batch).tolist() == levels[:1]


@pytest.mark.parametrize("kind", ["none", "pixel"])
def test_without_positives_all_is_background(kind: str) -> None:
    batch = hard_batch(kind, SIZE)
    targets, locations = find_targets(batch)
    assert targets.classes.tolist() == [NUM_CLASSES] * (len(batch) * len(locations.points_px))
    assert targets.box_distances_px.shape == (0, 4)
    assert targets.shares.shape == targets.positives.shape == targets.owners.shape == (0,)
    inner, _ = find_inner(batch)
    # The pixel's box holds no cell's centre.
    assert inner.places.shape == (0,)
    # The last level's cells have their centres beyond the image in part.
    is_in_image = (locations.points_px < torch.tensor(SIZE[::-1])).all(dim=1)
    assert torch.equal(inner.is_outside, is_in_image.repeat(len(batch)))
    offsets, places = center_targets(inner, locations, torch.zeros(len(boxes_of(batch)), 2))
    assert offsets.shape == (0, 2)
    assert places.shape == (0,)


def test_the_first_of_identical_objects_has_all_locations() -> None:
    batch = hard_batch("twins", SIZE)
    targets, _ = find_targets(batch)
    assert set(targets.owners.tolist()) == {0}
    # 80 px wide: half of it lies in the second level's range, where the others would be.
    assert find_levels(batch).tolist()[1:] == [1, 1]


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


def test_levels_are_those_of_the_largest_weight() -> None:
    batch = overlapping()
    targets, locations = find_targets(batch)
    weights = positive_weights(targets, THIRDS)
    best: dict[int, tuple[float, int]] = {}
    levels_of: dict[int, set[int]] = {}
    for place, owner, weight in zip(targets.positives.tolist(), targets.owners.tolist(), weights.tolist(), strict=True):
        level = int(locations.levels[place % len(locations.points_px)])
        levels_of.setdefault(owner, set()).add(level)
        best[owner] = min(best.get(owner, (1.0, 0)), (-weight, level))
    levels = find_levels(batch)
    assert levels.tolist() == [best[owner][1] for owner in range(7)]
    assert max(map(len, levels_of.values())) > 1
    assert len(set(levels.tolist())) > 1


def made_targets(locations: Locations, owners_at: list[tuple[int, int]]) -> RegularizedTargets:
    """Targets of which only the positives, pairs of location and owner, are looked at."""
    positives, owners = torch.tensor(owners_at, dtype=torch.int64).reshape(-1, 2).unbind(dim=1)
    none = torch.zeros(len(positives))
    return RegularizedTargets(none, positives, owners, none, none)


def test_of_levels_with_equal_weights_the_finer_one_counts() -> None:
    locations = pyramid((64, 64))
    first = [int((locations.levels == level).nonzero()[0]) for level in range(5)]
    count = len(locations.points_px)
    targets = made_targets(locations, [(first[1], 0), (first[3], 0), (count + first[2], 1), (count + first[4], 1)])
    for weights, expected in (([0.5] * 4, [1, 2]), ([0.5, 0.6, 0.6, 0.5], [3, 2]), ([0.0] * 4, [1, 2])):
        levels = object_levels(targets, torch.tensor(weights), locations, torch.zeros(2, 4), SIZES_OF_INTEREST)
        assert levels.tolist() == expected


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
    targets = made_targets(locations, [])
    assert object_levels(targets, torch.zeros(0), locations, boxes, [16, 32, 48, 64]).tolist() == [level]


def test_no_object_has_no_level() -> None:
    locations = pyramid((64, 64))
    targets = made_targets(locations, [])
    levels = object_levels(targets, torch.zeros(0), locations, torch.zeros(0, 4), SIZES_OF_INTEREST)
    assert levels.shape == (0,)
    assert levels.dtype == torch.int64


def test_center_targets_lead_from_the_objects_cells_to_its_center() -> None:
    batch = overlapping()
    inner, locations = find_inner(batch)
    masks = [instances.gt_masks.tensor for instances in instances_of(batch)]
    centers = mass_centers(masks, boxes_of(batch))
    # A half, and a little less.
    inner.shares[:2] = torch.tensor([0.5, 0.499])
    offsets, places = center_targets(inner, locations, centers)
    rows = list(zip(inner.places.tolist(), inner.owners.tolist(), inner.shares.tolist(), strict=True))
    own = [(place, owner) for place, owner, share in rows if share >= 0.5]
    assert places.tolist() == [place for place, _ in own]
    assert 10 < len(own) < len(rows)
    assert rows[0][:2] in own
    assert rows[1][:2] not in own
    for (dx, dy), (place, owner) in zip(offsets.tolist(), own, strict=True):
        cell = place % len(locations.points_px)
        (x, y), stride = locations.points_px[cell].tolist(), float(locations.strides_px[cell])
        assert [x + dx * stride, y + dy * stride] == pytest.approx(centers[owner].tolist(), abs=1e-4)


def test_300_objects_have_targets_of_their_own() -> None:
    batch = hard_batch("300", SIZE)
    targets, _ = find_targets(batch)
    assert len(targets.owners.unique()) > 50
    levels = find_levels(batch)
    assert levels.shape == (300,)
    # 18 x 14 px.
    assert set(levels.tolist()) == {0}


def test_an_object_between_locations_has_a_level_but_no_targets() -> None:
    """Its box of one pixel holds no cell's centre."""
    batch = hard_batch("pixel", SIZE)
    boxes = boxes_of(batch)
    assert Boxes(boxes).area().tolist() == [1.0]
    assert find_levels(batch).tolist() == [0]
    centers = mass_centers([batch[0]["instances"].gt_masks.tensor], boxes)
    assert centers.tolist() == [[51.5, 37.5]]


def test_a_location_belongs_to_the_object_on_it_whosever_positive_it_is() -> None:
    """A bar in front of a square: on the bar's level some of its cells are the square's positives."""
    size = (256, 256)
    square, bar = np.zeros(size, bool), np.zeros(size, bool)
    square[50:200, 50:200] = True
    bar[115:135, 28:228] = True
    batch = [make_input(size, [square & ~bar, bar], 0)]
    instances, locations, limits = instances_of(batch), pyramid(size), [64.0, 128.0, 256.0, 512.0]
    shares = location_shares([own.gt_masks.tensor for own in instances], locations)
    targets = regularized_targets(locations, instances, shares, NUM_CLASSES, limits)
    weights = positive_weights(targets, THIRDS)
    levels = object_levels(targets, weights, locations, boxes_of(batch), limits)
    inner = inner_targets(targets, levels, locations, instances, shares)
    owner = dict(zip(inner.places.tolist(), inner.owners.tolist(), strict=True))
    positive = dict(zip(targets.positives.tolist(), targets.owners.tolist(), strict=True))
    num_disputed = 0
    for m in range(2):
        own = (shares[0][m] > 0.5) & (locations.levels == levels[m])
        places = own.nonzero().flatten().tolist()
        assert len(places) > 5
        assert {owner.get(place) for place in places} == {m}
        num_disputed += sum(positive.get(place, m) != m for place in places)
    assert num_disputed > 0


def test_padding_is_no_background() -> None:
    """The mean over what lies outside of all boxes does not depend on how large the other images are."""
    instances = make_input((64, 64), [ellipse((64, 64), (30, 30), (20, 12))], 0)["instances"]
    counts = []
    for size in ((64, 64), (128, 192)):
        locations = pyramid(size)
        shares = location_shares([instances.gt_masks.tensor], locations)
        targets = regularized_targets(locations, [instances], shares, NUM_CLASSES, SIZES_OF_INTEREST)
        inner = inner_targets(targets, torch.zeros(1, dtype=torch.int64), locations, [instances], shares)
        fine = locations.levels == 0
        counts.append(int((inner.is_outside & fine).sum()))
    assert counts[0] == counts[1] > 0
