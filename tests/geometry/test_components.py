"""Parts and holes against OpenCV, mask by mask."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from segzoo.geometry.components import fill_holes, label_runs, largest_parts
from segzoo.geometry.runs import find_runs, join_runs, paint_runs


def random_masks(count: int, size: tuple[int, int], density: float, seed: int) -> torch.Tensor:
    """Noise smoothed a little: many parts, holes, islands in holes, contacts at corners."""
    rng = np.random.default_rng(seed)
    noise = rng.random((count, *size)).astype(np.float32)
    if seed % 2:
        noise = np.stack([cv2.blur(plane, (3, 3)) for plane in noise])
    return torch.from_numpy(noise < np.quantile(noise, density))


def outer_regions(mask: np.ndarray) -> list[np.ndarray]:
    """The filled region of every outer contour, by OpenCV."""
    contours, hierarchy = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    regions = []
    for contour, links in zip(contours, hierarchy[0] if len(contours) else [], strict=True):
        if links[3] < 0:
            filled = np.zeros(mask.shape, np.uint8)
            cv2.drawContours(filled, [contour], 0, 1, cv2.FILLED)
            regions.append(filled.astype(bool))
    return regions


@pytest.mark.parametrize("density", [0.2, 0.45, 0.6, 0.8])
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_largest_parts_on_noise_equal_the_largest_filled_outer_contour(density: float, seed: int) -> None:
    masks = random_masks(12, (23, 31), density, seed)
    parts = largest_parts(find_runs(masks), len(masks))
    painted = paint_runs(parts.runs, (12, 23, 31))
    for index, mask in enumerate(masks.numpy()):
        regions = outer_regions(mask)
        largest = max(region.sum() for region in regions)
        assert int(parts.areas[index]) == largest
        found = painted[index].numpy()
        assert any(np.array_equal(found, region) for region in regions if region.sum() == largest)
        y, x = np.nonzero(found)
        np.testing.assert_allclose(parts.centers_px[index], [x.mean() + 0.5, y.mean() + 0.5], atol=1e-4)


@pytest.mark.parametrize("diagonal", [False, True])
def test_label_runs_equal_the_connected_components_of_opencv(diagonal: bool) -> None:
    masks = random_masks(8, (40, 29), 0.5, seed=5)
    runs = find_runs(masks)
    labels = label_runs(runs, diagonal=diagonal)
    for index, mask in enumerate(masks.numpy()):
        count, expected = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8 if diagonal else 4)
        is_own = runs.mask == index
        pairs = {
            (int(label), int(expected[row, x0]))
            for label, row, x0 in zip(labels[is_own], runs.row[is_own], runs.x0[is_own], strict=True)
        }
        assert len(pairs) == count - 1 == len({ours for ours, _ in pairs}) == len({theirs for _, theirs in pairs})


def test_label_runs_of_a_spiral_follow_it_to_its_end() -> None:
    size = 41
    mask = torch.zeros(1, size, size, dtype=torch.bool)
    row, column, direction, length = 0, 0, 0, size - 1
    steps = [(0, 1), (1, 0), (0, -1), (-1, 0)]
    mask[0, row, column] = True
    while length > 1:
        for _ in range(2):
            for _ in range(length):
                row, column = row + steps[direction][0], column + steps[direction][1]
                mask[0, row, column] = True
            direction = (direction + 1) % 4
        length -= 2
    assert len(label_runs(find_runs(mask), diagonal=False).unique()) == 1
    assert int(largest_parts(find_runs(mask), len(mask)).areas[0]) >= int(mask.sum())


def test_paint_runs_is_the_inverse_of_find_runs() -> None:
    masks = random_masks(5, (17, 9), 0.5, seed=0)
    masks[2] = False
    masks[3] = True
    assert torch.equal(paint_runs(find_runs(masks), tuple(masks.shape)), masks)


def test_fill_holes_leaves_what_opens_to_the_border_and_fills_the_rest() -> None:
    mask = torch.zeros(2, 8, 8, dtype=torch.bool)
    mask[0, 1:7, 1:7] = True
    mask[0, 3:5, 3:5] = False
    mask[1, 0:6, 0:6] = True
    mask[1, 0, 2] = False  # a notch in the first row, open to the outside
    filled = paint_runs(fill_holes(find_runs(mask)), (2, 8, 8))
    assert int(filled[0].sum()) == 36
    assert torch.equal(filled[1], mask[1])


def test_largest_parts_of_nothing_are_empty() -> None:
    empty = largest_parts(find_runs(torch.zeros(0, 6, 5, dtype=torch.bool)), 0)
    assert len(empty.runs.row) == 0
    assert empty.centers_px.shape == (0, 2)
    blank = torch.zeros(2, 6, 5, dtype=torch.bool)
    blank[1, 5, 4] = True
    parts = largest_parts(find_runs(blank), 2)
    assert parts.areas.tolist() == [0, 1]
    assert parts.centers_px.tolist() == [[0.0, 0.0], [4.5, 5.5]]


def test_largest_parts_of_equal_parts_takes_the_first() -> None:
    mask = torch.zeros(1, 4, 9, dtype=torch.bool)
    mask[0, 1:3, 0:2] = mask[0, 1:3, 6:8] = True
    assert largest_parts(find_runs(mask), len(mask)).centers_px.tolist() == [[1.0, 2.0]]


def test_find_runs_does_not_depend_on_the_memory_budget() -> None:
    masks = random_masks(7, (17, 9), 0.5, seed=0)
    whole = find_runs(masks)
    for max_pixels in (1, 17 * 9 * 2, 10**9):
        assert all(torch.equal(a, b) for a, b in zip(find_runs(masks, max_pixels=max_pixels), whole, strict=True))


def test_find_runs_holds_no_second_copy_of_all_masks() -> None:
    masks = torch.zeros(64, 500, 500, dtype=torch.bool)
    masks[:, 100:200, 50:350] = True
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as record:
        find_runs(masks, max_pixels=4 * 500 * 500)
    largest = max(event.self_cpu_memory_usage for event in record.events())
    assert 0 < largest <= 5 * 502 * 502  # one padded block of four masks, never all 64


def test_join_runs_counts_masks_on() -> None:
    first, second = random_masks(2, (5, 9), 0.5, seed=0), random_masks(3, (8, 4), 0.5, seed=2)
    joined = join_runs([find_runs(first), find_runs(second)], [2, 3])
    assert torch.equal(paint_runs(joined.select(joined.mask < 2), (2, 5, 9)), first)
    rest = joined.select(joined.mask >= 2)
    assert torch.equal(paint_runs(rest._replace(mask=rest.mask - 2), (3, 8, 4)), second)


def test_largest_parts_ranks_by_enclosed_pixels() -> None:
    mask = torch.zeros(1, 30, 120, dtype=torch.bool)
    mask[0, 25, 5:105] = True  # 100 pixels, though cv2.contourArea calls it 0
    mask[0, 2:11, 2:11] = True
    assert int(largest_parts(find_runs(mask), 1).areas[0]) == 100
