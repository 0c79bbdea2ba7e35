"""Grouping and attention against loops over cells, and what they are for: an object's own pixels apart from others'."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fcosis.attention import Groups, attention_maps, group_locations
from fcosis.coloring import color_boxes, group_numbers
from fcosis.objects import all_rivals
from segzoo.geometry.masks import mask_boxes
from segzoo.modeling.fcos.locations import Locations
from tests.contract.toys import ellipse
from tests.fcosis.pyramids import cells, pyramid

SIZE = (64, 96)
MAP_SIZE = (16, 24)
CPU = torch.device("cpu")
# The finest level may be finer than 8, so that one is as fine as the attention itself.
STRIDES = (4, 8, 16, 32)


def group_slowly(
    end_points: list, centers: list, stand_ins: list[int], num_rivals: list[int], counts: list[int]
) -> list[list[bool]]:
    """Oracle: object by object and point by point, no rival is nearer."""
    is_own, start = [], 0
    for points, count in zip(end_points, counts, strict=True):
        for m in range(start, start + count):
            rivals = [r for r in range(start, start + num_rivals[m]) if stand_ins[r] == r]
            own = centers[stand_ins[m]]
            is_own.append(
                [all(math.dist(point, own) <= math.dist(point, centers[r]) for r in rivals) for point in points]
            )
        start += count
    return is_own


@pytest.mark.parametrize("max_pairs", [10**6, 200, 1])
@pytest.mark.parametrize("kind", ["all rivals", "some"])
def test_group_locations_equals_the_slow_oracle(kind: str, max_pairs: int) -> None:
    counts = [5, 0, 1, 12]
    # On a coarse grid, so that many are equally near.
    rng = np.random.default_rng(0)
    points = torch.from_numpy(rng.integers(0, 12, (4, 90, 2)) * 4.0).float()
    centers = torch.from_numpy(rng.integers(0, 6, (18, 2)) * 8.0).float()
    # Identical objects.
    centers[10] = centers[7]
    rivals = all_rivals(counts, points.device)
    if kind == "some":
        # Two have a better one's centre, and not all compete with all.
        rivals["stand_ins"][3], rivals["stand_ins"][11] = 1, 6
        rivals["num_rivals"] = torch.tensor([1, 3, 3, 5, 5, 1, 1, 2, 2, 5, 7, 7, 8, 9, 12, 12, 12, 12])
    is_own = group_locations(points, centers, **rivals, counts=counts, max_pairs=max_pairs)
    expected = group_slowly(
        points.tolist(), centers.tolist(), rivals["stand_ins"].tolist(), rivals["num_rivals"].tolist(), counts
    )
    assert is_own.dtype == torch.bool
    assert is_own.tolist() == expected
    if kind == "all rivals":
        # Equally near ones share a point, every point has an owner.
        assert torch.equal(is_own[10], is_own[7])
        assert (is_own[:5].sum(dim=0) >= 1).all()
    else:
        assert is_own[6].all()
        assert torch.equal(is_own[3], is_own[1]) == (rivals["num_rivals"][3] == rivals["num_rivals"][1])


def test_group_locations_of_a_batch_without_objects() -> None:
    is_own = group_locations(torch.zeros(2, 7, 2), torch.zeros(0, 2), **all_rivals([0, 0], CPU), counts=[0, 0])
    assert is_own.shape == (0, 7)


def test_300_identical_objects_share_all_locations() -> None:
    centers = torch.tensor([[30.0, 40.0]]).expand(300, 2)
    is_own = group_locations(torch.rand(1, 50, 2) * 90, centers, **all_rivals([300], CPU), counts=[300])
    assert is_own.shape == (300, 50)
    assert is_own.all()


def test_wild_points_belong_to_nobody_and_disturb_no_other() -> None:
    points = torch.tensor([[[float("nan"), 3.0], [float("inf"), 3.0], [9.0, 9.0], [31.0, 40.0]]])
    centers = torch.tensor([[8.0, 8.0], [30.0, 40.0]])
    is_own = group_locations(points, centers, **all_rivals([2], CPU), counts=[2])
    assert not is_own[:, :2].any()
    assert is_own[:, 2:].tolist() == [[True, False], [False, True]]


def attention_slowly(
    coarse: Tensor | None,
    is_own: Tensor | None,
    objects: Groups,
    locations: Locations,
    strides: Sequence[int],
    lam: Tensor,
    mu: Tensor,
    map_size: tuple[int, int],
) -> Tensor:
    """Oracle: cell by cell of each object's box, from the four cells of its level around the centre."""
    groups: list[list[list[Tensor]]] = [
        [[lam.new_zeros(()) for _ in range(map_size[1])] for _ in range(map_size[0])] for _ in range(objects.num_groups)
    ]
    place_of = {cell: index for index, cell in enumerate(cells(locations, strides))}
    for m, (x0, y0, x1, y1) in enumerate(objects.boxes_px.tolist()):
        level, image, group = int(objects.levels[m]), int(objects.images[m]), int(objects.groups[m])
        height, width = locations.map_sizes[level]
        for row, column in np.ndindex(*map_size):
            x, y = 4 * column + 2, 4 * row + 2
            if not (x0 <= x < x1 and y0 <= y < y1):
                continue
            if coarse is None or is_own is None:
                groups[group][row][column] = groups[group][row][column] + lam
                continue
            across, down = x / strides[level] - 0.5, y / strides[level] - 0.5
            membership = lam.new_zeros(())
            for i in (math.floor(down), math.floor(down) + 1):
                for j in (math.floor(across), math.floor(across) + 1):
                    share = (1 - abs(down - i)) * (1 - abs(across - j))
                    cell = (level, min(max(i, 0), height - 1), min(max(j, 0), width - 1))
                    if is_own[m, place_of[cell]]:
                        membership = membership + share * coarse[image, place_of[cell]]
            groups[group][row][column] = groups[group][row][column] + lam * membership - mu * (1 - membership)
    return torch.stack([torch.stack([torch.stack(row) for row in group]) for group in groups])[:, None]


def make_objects(seed: int = 0) -> tuple[Groups, list[int], Tensor]:
    """Two images of random boxes (and one without), at any level; centres in them."""
    rng = np.random.default_rng(seed)
    counts = [6, 0, 9]
    corners, sides = rng.uniform(-8, (80, 50), (15, 2)), rng.uniform(9, 60, (15, 2))
    # The last one reaches out of the map on three sides.
    corners[-1], sides[-1] = (-20.0, 7.3), (150.0, 90.0)
    boxes = torch.from_numpy(np.concatenate((corners, corners + sides), axis=1)).float()
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    groups, group_images = group_numbers(color_boxes(boxes, counts), counts)
    images = torch.arange(3).repeat_interleave(torch.tensor(counts))
    levels = torch.arange(15) % len(STRIDES)
    return Groups(boxes, levels, images, groups, len(group_images)), counts, centers


def make_maps(locations: Locations, centers: Tensor, counts: list[int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Random probabilities, and whose locations are by random ways."""
    generator = torch.Generator().manual_seed(1)
    count = len(locations.points_px)
    coarse = torch.rand(len(counts), count, generator=generator).to(dtype)
    ends = locations.points_px + torch.randn(len(counts), count, 2, generator=generator) * 6
    return coarse, group_locations(ends, centers, **all_rivals(counts, CPU), counts=counts)


def assert_equal_oracle(mode: str, max_pairs: int) -> None:
    objects, counts, centers = make_objects()
    locations = pyramid(SIZE, STRIDES)
    coarse, is_own = make_maps(locations, centers, counts, torch.float32)
    lam, mu = torch.tensor(1.3), torch.tensor(0.0 if mode == "mu = 0" else 0.7)
    leaves = [coarse, lam, mu]
    found_leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    slow_leaves = [leaf.double().requires_grad_() for leaf in leaves]
    maps: list[Any] = [None, None] if mode == "box" else [found_leaves[0], is_own]
    slow_maps: list[Any] = [None, None] if mode == "box" else [slow_leaves[0], is_own]
    lam, mu = found_leaves[1:]
    found = attention_maps(maps[0], maps[1], objects, locations, lam=lam, mu=mu, map_size=MAP_SIZE, max_pairs=max_pairs)
    assert found.shape == (objects.num_groups, 1, *MAP_SIZE)
    assert found.dtype == torch.float32
    expected = attention_slowly(
        slow_maps[0], slow_maps[1], objects, locations, STRIDES, slow_leaves[1], slow_leaves[2], MAP_SIZE
    )
    torch.testing.assert_close(found, expected.float(), atol=1e-5, rtol=1e-5)
    # Every cell counts, and each differently.
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(2))
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    used = slice(1, 2) if mode == "box" else slice(0, 3)
    for leaf, slow in zip(found_leaves[used], slow_leaves[used], strict=True):
        assert leaf.grad is not None
        assert slow.grad is not None
        assert slow.grad.any()
        torch.testing.assert_close(leaf.grad, slow.grad.float(), atol=1e-4, rtol=1e-4)
    if mode == "box":
        # mu is of no use without a coarse segmentation, but stays connected.
        assert found_leaves[2].grad is not None
        assert not found_leaves[2].grad.any()


@pytest.mark.parametrize("mode", ["grouping", "mu = 0", "box"])
@pytest.mark.parametrize("max_pairs", [10**6, 300, 1])
def test_attention_and_its_gradients_equal_the_slow_oracle(mode: str, max_pairs: int) -> None:
    """On maps of strides finer and coarser than 8; in blocks, which are computed again for the gradient."""
    assert_equal_oracle(mode, max_pairs)


def test_a_box_between_the_centers_of_cells_has_the_nearest_one() -> None:
    locations = pyramid(SIZE, STRIDES)
    one, none = torch.ones(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    pixel = Groups(torch.tensor([[51.0, 37.0, 52.0, 38.0]]), one, none, none, 1)
    found = attention_maps(
        *(None, None, pixel, locations), lam=torch.tensor(2.0), mu=torch.tensor(3.0), map_size=MAP_SIZE
    )
    assert found.nonzero().tolist() == [[0, 0, 9, 12]]
    assert float(found[0, 0, 9, 12]) == 2.0


def test_no_object_gives_no_map_and_keeps_the_weights_connected() -> None:
    locations = pyramid(SIZE, STRIDES)
    none = torch.zeros(0, dtype=torch.int64)
    lam, mu = torch.ones((), requires_grad=True), torch.ones((), requires_grad=True)
    coarse = torch.rand(2, len(locations.points_px), requires_grad=True)
    is_own = torch.zeros(0, coarse.shape[1], dtype=torch.bool)
    objects = Groups(torch.zeros(0, 4), none, none, none, 0)
    found = attention_maps(coarse, is_own, objects, locations, lam=lam, mu=mu, map_size=MAP_SIZE)
    assert found.shape == (0, 1, *MAP_SIZE)
    found.sum().backward()
    assert lam.grad is not None
    assert mu.grad is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_attention_is_fp32_of_half_precision(dtype: torch.dtype) -> None:
    objects, counts, centers = make_objects()
    locations = pyramid(SIZE, STRIDES)
    coarse, is_own = make_maps(locations, centers, counts, dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = (
            attention_maps(
                *(maps, is_own, objects, locations), lam=torch.tensor(1.1), mu=torch.tensor(0.9), map_size=MAP_SIZE
            )
            for maps in (coarse, coarse.float())
        )
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


# What the paper makes the attention for, with objects of whole cells of stride 8 in an image of 256 x 320 px.
SCENE = (256, 320)
LAM, MU = 1.7, 0.6


def blocks(*rectangles: tuple[int, int, int, int]) -> np.ndarray:
    """(H, W) mask of rectangles (x0, y0, x1, y1) in cells of 8 px."""
    mask = np.zeros(SCENE, bool)
    for x0, y0, x1, y1 in rectangles:
        mask[8 * y0 : 8 * y1, 8 * x0 : 8 * x1] = True
    return mask


def disc(center: tuple[float, float], radius: float) -> np.ndarray:
    """A disc in cells of 8 px, made of whole ones."""
    small = ellipse((SCENE[0] // 8, SCENE[1] // 8), center, (radius, radius))
    return np.kron(small, np.ones((8, 8), bool)) > 0


def crossing_bars() -> list[np.ndarray]:
    """The lying bar is in front: the standing one is in two parts, whose centre of mass lies in the lying one."""
    lying = blocks((4, 13, 36, 19))
    return [lying, blocks((14, 3, 21, 27)) & ~lying]


def touching_discs() -> list[np.ndarray]:
    return [disc((10, 16), 7), disc((24, 16), 7)]


def corner_around_a_disc() -> list[np.ndarray]:
    return [blocks((4, 4, 11, 28), (4, 22, 32, 28)), disc((21, 13), 7)]


SCENES = {"crossing bars": crossing_bars, "touching discs": touching_discs, "L around a disc": corner_around_a_disc}


def true_maps(locations: Locations, masks: np.ndarray, centers: Tensor) -> tuple[Tensor, Tensor]:
    """What a perfect detector says: 1 on any object, and every location points to the centre of the one it lies on."""
    coarse = torch.zeros(1, len(locations.points_px))
    ends = locations.points_px.clone()
    for index, (x, y) in enumerate(locations.points_px.long().tolist()):
        for m, mask in enumerate(masks):
            if y < SCENE[0] and x < SCENE[1] and mask[y, x]:
                coarse[0, index] = 1.0
                ends[index] = centers[m]
    return coarse, ends[None]


@pytest.mark.parametrize("scene", SCENES)
def test_attention_is_lambda_on_an_object_and_minus_mu_on_others_in_its_box(scene: str) -> None:
    masks = np.stack(SCENES[scene]())
    assert not masks.all(axis=0).any()
    boxes = mask_boxes(torch.from_numpy(masks))
    centers = torch.tensor([[np.mean(where[1]) + 0.5, np.mean(where[0]) + 0.5] for where in map(np.nonzero, masks)])
    locations = pyramid(SCENE)
    coarse, ends = true_maps(locations, masks, centers.float())
    is_own = group_locations(ends, centers.float(), **all_rivals([2], CPU), counts=[2])
    groups, group_images = group_numbers(color_boxes(boxes, [2]), [2])
    zeros = torch.zeros(2, dtype=torch.int64)
    attention = attention_maps(
        *(coarse, is_own, Groups(boxes, zeros, zeros, groups, len(group_images)), locations),
        lam=torch.tensor(LAM),
        mu=torch.tensor(MU),
        map_size=(SCENE[0] // 4, SCENE[1] // 4),
    )
    num_others = 0
    for m, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
        own, others = masks[m], masks[1 - m]
        counted = {"own": 0, "others": 0, "background": 0, "mixed": 0, "outside": 0}
        for row, column in np.ndindex(SCENE[0] // 4, SCENE[1] // 4):
            value = float(attention[groups[m], 0, row, column])
            x, y = 4 * column + 2, 4 * row + 2
            if not (x0 < x < x1 and y0 < y < y1):
                # The other object may be in the same group where the boxes do not overlap.
                if len(group_images) == 2:
                    assert value == 0
                    counted["outside"] += 1
                continue
            # The cells of 8 px that are interpolated between, by their centres.
            around = [
                (8 * min(max(i, 0), SCENE[0] // 8 - 1) + 4, 8 * min(max(j, 0), SCENE[1] // 8 - 1) + 4)
                for i in ((y - 4) // 8, (y - 4) // 8 + 1)
                for j in ((x - 4) // 8, (x - 4) // 8 + 1)
            ]
            kinds = {"own" if own[i, j] else "others" if others[i, j] else "background" for i, j in around}
            kind = kinds.pop() if len(kinds) == 1 else "mixed"
            counted[kind] += 1
            if kind != "mixed":
                assert value == pytest.approx(LAM if kind == "own" else -MU, abs=1e-6), (m, row, column, kind)
            else:
                assert -MU - 1e-6 <= value <= LAM + 1e-6
        inside = sum(counted.values()) - counted["outside"]
        assert counted["mixed"] < 0.25 * inside, counted
        assert counted["own"] > 0.25 * inside, counted
        num_others += counted["others"]
    # Discs side by side have boxes that touch, and so one colour; the other scenes' boxes overlap.
    assert len(group_images) == (1 if scene == "touching discs" else 2)
    assert (num_others > 100) == (scene != "touching discs")
