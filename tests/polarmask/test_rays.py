"""Rays against slow readable oracles: an exact one over every pixel edge, and a march along the ray."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from polarmask.decode import rays_to_contours
from polarmask.rays import NO_HIT_PX, ray_directions
from segzoo.geometry.components import largest_parts
from segzoo.geometry.polygons import polygons_to_rles
from segzoo.geometry.rle import RLEMasks
from segzoo.geometry.runs import find_runs
from tests.polarmask.casting import cast_rays

pytestmark = pytest.mark.usefixtures("both_ways")

FIRST = torch.zeros(1, dtype=torch.int64)


def make_blob(radius: float, seed: int) -> torch.Tensor:
    """(H, W) mask of r = R (1 + 0.3 (0.6 sin 2t + 0.4 sin 3t + 0.3 sin 5t)) with random phases and centre."""
    rng = np.random.default_rng(seed)
    phases = rng.uniform(0, 2 * np.pi, 3)
    size = int(3.2 * radius + 20)
    center = size / 2 + rng.uniform(-0.5, 0.5, 2)
    y, x = np.mgrid[:size, :size] + 0.5
    angle = np.arctan2(y - center[1], x - center[0])
    waves = sum(w * np.sin(f * angle + p) for w, f, p in zip((0.6, 0.4, 0.3), (2, 3, 5), phases, strict=True))
    return torch.from_numpy(np.hypot(x - center[0], y - center[1]) < radius * (1 + 0.3 * waves))


def march(mask: torch.Tensor, point: np.ndarray, num_rays: int, step: float = 0.05) -> np.ndarray:
    """The farthest sample along each ray whose pixel is set."""
    height, width = mask.shape
    pixels = mask.numpy()
    distances = np.arange(0, math.hypot(height, width), step)
    farthest = np.full(num_rays, NO_HIT_PX)
    for k in range(num_rays):
        theta = 2 * math.pi * k / num_rays
        x = np.floor(point[0] + distances * math.sin(theta)).astype(int)
        y = np.floor(point[1] + distances * math.cos(theta)).astype(int)
        is_inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        hits = distances[is_inside][pixels[y[is_inside], x[is_inside]]]
        if len(hits):
            farthest[k] = hits.max()
    return farthest


def cast_slowly(mask: np.ndarray, point: tuple[float, float], num_rays: int) -> np.ndarray:
    """Every ray against every edge between a set and an unset pixel, in Python."""
    height, width = mask.shape
    padded = np.pad(mask, 1)
    edges = []
    for row in range(height + 1):
        for column in range(width + 1):
            here = padded[row + 1, column + 1]
            if here != padded[row, column + 1]:
                edges.append(((column, row), (column + 1, row)))
            if here != padded[row + 1, column]:
                edges.append(((column, row), (column, row + 1)))
    farthest = np.full(num_rays, NO_HIT_PX)
    for k in range(num_rays):
        dx, dy = math.sin(2 * math.pi * k / num_rays), math.cos(2 * math.pi * k / num_rays)
        for (ax, ay), (bx, by) in edges:
            # Coordinates along and across the ray; the edge is hit where its ends lie on different sides.
            across_a = (ax - point[0]) * dy - (ay - point[1]) * dx
            across_b = (bx - point[0]) * dy - (by - point[1]) * dx
            along_a = (ax - point[0]) * dx + (ay - point[1]) * dy
            along_b = (bx - point[0]) * dx + (by - point[1]) * dy
            if min(across_a, across_b) > 1e-9 or max(across_a, across_b) < -1e-9:
                continue
            if abs(across_a - across_b) < 1e-9:
                farthest[k] = max(farthest[k], along_a, along_b)
            else:
                farthest[k] = max(farthest[k], along_a + (along_b - along_a) * across_a / (across_a - across_b))
    return farthest


@pytest.mark.parametrize("num_rays", [4, 18, 36, 72])
def test_cast_rays_on_noise_equals_the_slow_oracle(num_rays: int) -> None:
    rng = np.random.default_rng(num_rays)
    masks = torch.from_numpy(rng.random((3, 11, 13)) < 0.4)
    # Half-integer points and points on the lines between pixels, inside and outside of the masks.
    points = torch.from_numpy(np.concatenate([rng.integers(0, 12, (6, 2)), rng.integers(0, 12, (6, 2)) + 0.5]))
    owners = torch.arange(12) % 3
    rays = cast_rays(find_runs(masks), points.float(), owners, num_rays).numpy()
    for point, owner, found in zip(points.numpy(), owners, rays, strict=True):
        np.testing.assert_allclose(found, cast_slowly(masks[owner].numpy(), point, num_rays), atol=2e-3)


@pytest.mark.parametrize("radius", [8, 16, 32, 64, 128])
def test_cast_rays_on_blobs_agrees_with_the_pixel_march(radius: int) -> None:
    errors = []
    for seed in range(4):
        mask = make_blob(radius, seed)
        parts = largest_parts(find_runs(mask[None]), 1)
        shifts = np.random.default_rng(seed).uniform(-radius / 3, radius / 3, (2, 2))
        points = torch.from_numpy(parts.centers_px.numpy() + np.concatenate([np.zeros((1, 2)), shifts])).float()
        rays = cast_rays(find_runs(mask[None]), points, FIRST.expand(3), 36).numpy()
        errors += [np.abs(found - march(mask, p, 36)) for found, p in zip(rays, points.numpy(), strict=True)]
    assert (np.concatenate(errors) <= 1).mean() >= 0.99


@pytest.mark.parametrize("radius", [8, 16, 32, 64, 128])
def test_contours_of_36_rays_recover_blobs(radius: int) -> None:
    overlaps = []
    for seed in range(8):
        mask = make_blob(radius, seed)
        parts = largest_parts(find_runs(mask[None]), 1)
        contour = rays_to_contours(parts.centers_px, cast_rays(parts.runs, parts.centers_px, FIRST, 36))
        drawn = RLEMasks(polygons_to_rles(contour.double().numpy(), *mask.shape), tuple(mask.shape)).to_tensor()[0]
        overlaps.append(float((drawn & mask).sum() / (drawn | mask).sum()))
    assert np.mean(overlaps) >= 0.95


def test_cast_rays_from_the_centre_of_a_rectangle_has_the_closed_form() -> None:
    mask = torch.zeros(1, 40, 60, dtype=torch.bool)
    mask[0, 10:30, 12:48] = True
    rays = cast_rays(find_runs(mask), torch.tensor([[30.0, 20.0]]), FIRST, 72)[0]
    directions = ray_directions(72).abs()
    expected = torch.minimum(18 / directions[:, 0], 10 / directions[:, 1])
    torch.testing.assert_close(rays, expected, atol=2e-3, rtol=0)


def test_cast_rays_starts_at_plus_y_and_turns_towards_plus_x() -> None:
    mask = torch.zeros(1, 20, 20, dtype=torch.bool)
    mask[0, 8:18, 8:13] = True
    rays = cast_rays(find_runs(mask), torch.tensor([[10.0, 10.0]]), FIRST, 4)[0]
    torch.testing.assert_close(rays, torch.tensor([8.0, 3.0, 2.0, 2.0]))


def test_cast_rays_from_outside_marks_rays_that_meet_nothing() -> None:
    mask = torch.zeros(1, 20, 20, dtype=torch.bool)
    mask[0, 9:12, 15:18] = True
    rays = cast_rays(find_runs(mask), torch.tensor([[5.5, 10.5]]), FIRST, 36)[0]
    assert float(rays[9]) == pytest.approx(12.5)
    assert (rays[[0, 18, 27]] == NO_HIT_PX).all()


def test_cast_rays_takes_the_farthest_of_several_crossings() -> None:
    mask = torch.zeros(1, 5, 30, dtype=torch.bool)
    mask[0, 2, 2:6] = mask[0, 2, 20:25] = True
    assert float(cast_rays(find_runs(mask), torch.tensor([[3.5, 2.5]]), FIRST, 4)[0, 1]) == pytest.approx(21.5)


def test_cast_rays_does_not_depend_on_the_memory_budget() -> None:
    masks = torch.stack([make_blob(16, seed)[:60, :60] for seed in range(3)])
    points = torch.rand(40, 2, generator=torch.Generator().manual_seed(0)) * 60
    owners = torch.arange(40) % 3
    whole = cast_rays(find_runs(masks), points, owners, 36)
    for max_pairs in (1, 97, 2000):
        assert torch.equal(cast_rays(find_runs(masks), points, owners, 36, max_pairs=max_pairs), whole)


def test_cast_rays_without_points_or_masks_is_empty() -> None:
    none = torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64)
    assert cast_rays(find_runs(torch.zeros(0, 5, 5, dtype=torch.bool)), *none, 36).shape == (0, 36)
    empty_mask = torch.zeros(1, 5, 5, dtype=torch.bool)
    assert (cast_rays(find_runs(empty_mask), torch.tensor([[2.0, 2.0]]), FIRST, 36) == NO_HIT_PX).all()


def test_cast_rays_of_an_empty_mask_behind_a_full_one_meet_nothing() -> None:
    masks = torch.zeros(3, 20, 20, dtype=torch.bool)
    masks[0, 2:15, 3:18] = True
    points = torch.tensor([[9.5, 9.5], [9.5, 9.5], [1.0, 19.0], [9.5, 9.5]])
    rays = cast_rays(find_runs(masks), points, torch.tensor([0, 1, 1, 2]), 36)
    assert (rays[0] > 1).all()
    assert (rays[1:] == NO_HIT_PX).all()


def mean_iou(masks: list[torch.Tensor], centers: list[torch.Tensor], num_rays: int) -> float:
    overlaps = []
    for mask, center in zip(masks, centers, strict=True):
        rays = cast_rays(find_runs(mask[None]), center[None], FIRST, num_rays)
        rles = polygons_to_rles(rays_to_contours(center[None], rays), *mask.shape)
        drawn = RLEMasks(rles, tuple(mask.shape)).to_tensor()[0]
        overlaps.append(float((drawn & mask).sum() / (drawn | mask).sum()))
    return float(np.mean(overlaps))


def test_more_rays_and_mass_centres_represent_masks_better() -> None:
    # The directions of the paper's figure 7; crescents have their box's centre outside.
    masks = [make_blob(30, seed) for seed in range(8)]
    bent = [mask & ~torch.roll(mask, (9, 14), dims=(0, 1)) for mask in masks]
    centers = [largest_parts(find_runs(mask[None]), 1).centers_px[0] for mask in masks]
    ious = [mean_iou(masks, centers, num_rays) for num_rays in (4, 8, 18, 36, 90)]
    assert ious == sorted(ious)
    assert ious[-2] > 0.9
    of_mass = [largest_parts(find_runs(mask[None]), 1) for mask in bent]
    rows = [mask.nonzero() for mask in bent]
    of_box = [(row.amin(dim=0) + row.amax(dim=0) + 1).flip(0) / 2 for row in rows]
    assert mean_iou(bent, [part.centers_px[0] for part in of_mass], 36) > mean_iou(bent, of_box, 36)
