"""Shares of cells, the assignment by them and the regularised weights against slow readable oracles."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fcosis.regularization import assign_by_shares, average_shares, location_shares, regularized_weights
from segzoo.geometry.soft_masks import soft_masks
from segzoo.modeling.fcos.assign import assign_locations, box_distances
from segzoo.modeling.fcos.locations import Locations
from segzoo.modeling.fcos.losses import box_centerness
from tests.contract.toys import ellipse
from tests.fcosis.pyramids import STRIDES, cells, pyramid

SIZES_OF_INTEREST = [32.0, 64.0, 96.0, 192.0]


def random_masks(size: tuple[int, int], count: int, seed: int) -> Tensor:
    """(count, H, W): discs, full rectangles, and noise, some beyond the border."""
    rng = np.random.default_rng(seed)
    masks = []
    for number in range(count):
        center, radii = rng.uniform(0, 1, 2) * size[::-1], rng.uniform(3, 60, 2)
        mask = ellipse(size, tuple(center), tuple(radii))
        masks.append([mask, mask & (rng.uniform(size=size) < 0.5), rng.uniform(size=size) < 0.1][number % 3])
    return torch.from_numpy(np.stack(masks))


def share_slowly(mask: np.ndarray, stride: int, row: int, column: int) -> float:
    """Oracle: the mean over one cell's pixels; those beyond the image are not set."""
    cell = mask[row * stride : (row + 1) * stride, column * stride : (column + 1) * stride]
    return cell.sum() / stride**2


@pytest.mark.parametrize("size", [(128, 256), (100, 173), (65, 129), (7, 5), (131, 40)])
@pytest.mark.parametrize("strides", [STRIDES, (4, 8, 16), (16, 32)], ids=str)
def test_location_shares_are_means_over_the_cells(size: tuple[int, int], strides: tuple[int, ...]) -> None:
    # The batch is larger than either of its images, whose own sizes differ.
    padded = (size[0] + 21, size[1] + 3)
    locations = pyramid(padded, strides)
    batch = [random_masks(size, 3, 0), torch.zeros(0, 9, 9, dtype=torch.bool), random_masks((5, size[1] + 2), 3, 1)]
    shares = location_shares(batch, locations)
    assert [tuple(own.shape) for own in shares] == [(len(own), len(locations.points_px)) for own in batch]
    for masks, own in zip(batch, shares, strict=True):
        for mask, found in zip(masks.numpy(), own, strict=True):
            expected = [share_slowly(mask, strides[level], row, column) for level, row, column in cells(locations)]
            # Counts divided by powers of two: no rounding.
            assert found.tolist() == expected


@pytest.mark.parametrize("map_size", [(25, 44), (32, 64), (40, 48)], ids=["smaller", "equal", "other"])
def test_shares_of_existing_soft_masks_are_the_same(map_size: tuple[int, int]) -> None:
    """The stride-4 map of a pyramid may be smaller than two cells of it a location, or larger."""
    locations, batch = pyramid((128, 256)), [random_masks((100, 173), 3, 0), random_masks((90, 170), 2, 1)]
    found = average_shares(soft_masks(batch, map_size), [3, 2], locations)
    for own, expected in zip(found, location_shares(batch, locations), strict=True):
        assert torch.equal(own, expected)


def test_location_shares_of_a_batch_without_objects() -> None:
    locations = pyramid((64, 64))
    shares = location_shares([torch.zeros(0, 64, 50, dtype=torch.bool)] * 2, locations)
    assert [tuple(own.shape) for own in shares] == [(0, len(locations.points_px))] * 2


def assign_slowly(locations: Locations, boxes: list[list[float]], shares: Tensor) -> list[int]:
    """Oracle: every object asks for every location; more of the cell wins, then the smaller box, then the first."""
    limits = [-1.0, *SIZES_OF_INTEREST, math.inf]
    owners = []
    for index, (level, row, column) in enumerate(cells(locations)):
        x, y = (column + 0.5) * STRIDES[level], (row + 0.5) * STRIDES[level]
        askers = []
        for m, (x0, y0, x1, y1) in enumerate(boxes):
            distances = (x - x0, y - y0, x1 - x, y1 - y)
            if min(distances) > 0 and limits[level] <= max(distances) <= limits[level + 1]:
                askers.append((-float(shares[m, index]), (x1 - x0) * (y1 - y0), m))
        owners.append(min(askers)[2] if askers else -1)
    return owners


def random_boxes(count: int, seed: int) -> Tensor:
    """Whole-pixel boxes within 192 x 160, so that centres lie on borders and areas are equal."""
    rng = np.random.default_rng(seed)
    corners, sides = rng.integers(0, 16, (count, 2)) * 8, np.ceil(np.exp(rng.uniform(2.5, 5, (count, 2))) / 4) * 4
    return torch.from_numpy(np.concatenate((corners, corners + sides), axis=1)).float()


@pytest.mark.parametrize("max_pairs", [10**6, 3000, 1])
def test_assign_by_shares_equals_the_slow_oracle(max_pairs: int) -> None:
    locations = pyramid((160, 192))
    boxes = random_boxes(80, 0)
    boxes = torch.cat((boxes, boxes[:6]))
    # Quarters: objects often cover equally much, and often nothing.
    rng = np.random.default_rng(1)
    shares = torch.from_numpy(rng.integers(0, 4, (86, len(locations.points_px))) / 4).float()
    # Three repeat the first ones, boxes and shares alike; three more their boxes.
    shares[80:83] = shares[:3]
    owners = assign_by_shares(locations, SIZES_OF_INTEREST, boxes, shares, max_pairs=max_pairs)
    assert owners.dtype == torch.int64
    assert owners.tolist() == assign_slowly(locations, boxes.tolist(), shares)
    assert not torch.isin(owners, torch.tensor([80, 81, 82])).any()
    # FCOS decides otherwise, here at many locations.
    assert (owners != assign_locations(locations, SIZES_OF_INTEREST, boxes)).sum() > 20


@pytest.mark.parametrize(
    ("shares", "boxes", "expected"),
    [
        ([0.25, 0.75], [[0, 0, 30, 30], [0, 0, 40, 40]], 1),
        ([0.75, 0.25], [[0, 0, 40, 40], [0, 0, 30, 30]], 0),
        ([0.5, 0.5], [[0, 0, 40, 40], [0, 0, 30, 30]], 1),
        ([0.0, 0.0], [[0, 0, 40, 40], [0, 0, 30, 30]], 1),
        ([0.5, 0.5], [[0, 0, 30, 40], [0, 0, 40, 30]], 0),
        ([0.0, 1.0], [[0, 0, 40, 40], [20, 20, 30, 30]], 0),
    ],
    ids=["more", "more, first", "equal, smaller", "nothing, smaller", "equal, first", "not in its box"],
)
@pytest.mark.parametrize("max_pairs", [10**6, 1])
def test_whom_an_ambiguous_location_belongs_to(
    shares: list[float], boxes: list[list[float]], expected: int, max_pairs: int
) -> None:
    locations = pyramid((16, 16), (16,))
    of_cell = torch.tensor(shares)[:, None]
    owners = assign_by_shares(locations, [], torch.tensor(boxes, dtype=torch.float32), of_cell, max_pairs=max_pairs)
    assert owners.tolist() == [expected]


def test_boxes_that_do_not_overlap_are_assigned_as_by_fcos() -> None:
    size = (160, 192)
    locations = pyramid(size)
    centers = [((20, 20), (18, 15)), ((80, 30), (30, 25)), ((150, 60), (35, 50)), ((50, 110), (45, 40))]
    masks = torch.from_numpy(np.stack([ellipse(size, center, radii) for center, radii in centers]))
    boxes = torch.tensor([[x - a, y - b, x + a, y + b] for (x, y), (a, b) in centers], dtype=torch.float32)
    shares = location_shares([masks], locations)[0]
    owners = assign_by_shares(locations, SIZES_OF_INTEREST, boxes, shares)
    assert torch.equal(owners, assign_locations(locations, SIZES_OF_INTEREST, boxes))
    assert set(owners.tolist()) == {-1, 0, 1, 2, 3}


def test_no_objects_are_background() -> None:
    locations = pyramid((40, 50))
    count = len(locations.points_px)
    owners = assign_by_shares(locations, SIZES_OF_INTEREST, torch.zeros(0, 4), torch.zeros(0, count))
    assert owners.tolist() == [-1] * count


def positives() -> tuple[Tensor, Tensor]:
    """(P,) centerness of random places in random boxes, and (P,) shares with both ends."""
    rng = np.random.default_rng(4)
    low = torch.from_numpy(rng.uniform(0, 100, (500, 2))).float()
    sides = torch.from_numpy(rng.uniform(1, 300, (500, 2))).float()
    places = low + sides * torch.from_numpy(rng.uniform(0.001, 0.999, (500, 2))).float()
    shares = torch.from_numpy(rng.uniform(-0.2, 1.2, 500).clip(0, 1)).float()
    return box_centerness(box_distances(places, torch.cat((low, low + sides), dim=1))), shares


def test_weights_are_exactly_fcos_centerness_without_the_mask() -> None:
    centerness, shares = positives()
    assert torch.equal(regularized_weights(centerness, shares, (1.0, 0.0, 0.0)), centerness)


def test_weights_are_exactly_the_shares_without_the_centerness() -> None:
    centerness, shares = positives()
    assert torch.equal(regularized_weights(centerness, shares, (0.0, 1.0, 0.0)), shares)


@pytest.mark.parametrize("rule", [(1 / 3, 1 / 3, 1 / 3), (0.0, 0.0, 1.0), (0.2, 0.3, 0.5)])
def test_weights_follow_their_formula(rule: tuple[float, float, float]) -> None:
    centerness, shares = positives()
    weights = regularized_weights(centerness, shares, rule)
    alpha, beta, gamma = rule
    expected = [
        alpha * c + beta * s + gamma * math.sqrt(c * s)
        for c, s in zip(centerness.tolist(), shares.tolist(), strict=True)
    ]
    torch.testing.assert_close(weights, torch.tensor(expected))
    assert weights.min() >= 0
    assert weights.max() <= 1
