"""The authors' contours, centres and rays, made from runs, against an oracle that walks along contours."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances
from pycocotools import mask as coco_mask

from polarmask import official, walk
from polarmask.decode import ContourRule, contour_rles, rays_to_contours
from polarmask.official import OfficialContours, degree_bin_rays, find_contours
from polarmask.rays import MAX_PAIRS, NO_HIT_PX
from polarmask.targets import TargetRule, polar_targets
from polarmask.walk import WalkedContours, walked_center
from segzoo.geometry.components import largest_parts
from segzoo.geometry.masks import mask_boxes
from segzoo.geometry.polygons import truncated_rles
from segzoo.geometry.rle import encode_masks
from segzoo.geometry.runs import find_runs
from segzoo.modeling.fcos.locations import compute_locations
from tests.polarmask.casting import cast_rays

CPU = torch.device("cpu")


def official_contour(mask: np.ndarray) -> np.ndarray:
    """(S, 2) points of the contour of the largest area, as cv2 walks."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_TREE, cv2.CHAIN_APPROX_NONE)
    return sorted(contours, key=cv2.contourArea, reverse=True)[0][:, 0].astype(np.float64)


def center_slowly(contour: np.ndarray) -> tuple[int, int]:
    """Edge by edge in Python's floats, beginning with the edge from the last point to the first one."""
    area = x_sum = y_sum = 0.0
    for i in range(len(contour)):
        (x0, y0), (x1, y1) = contour[i - 1].tolist(), contour[i].tolist()
        cross = (x1 * y0 - y1 * x0) / 2.0
        area += cross
        x_sum += cross * (x0 + x1) / 3.0
        y_sum += cross * (y0 + y1) / 3.0
    if area == 0:
        return int(contour[:, 0].mean()), int(contour[:, 1].mean())
    return int(x_sum / area), int(y_sum / area)


def rays_slowly(contour: np.ndarray, point: tuple[float, float], num_rays: int) -> list[float]:
    """Step by step for one point: the farthest point of every whole degree, then the look-up around each ray."""
    by_degree: dict[int, float] = {}
    offsets = torch.from_numpy(contour.astype(np.float32)) - torch.tensor(point)
    angles = torch.atan2(offsets[:, 0], offsets[:, 1]) * 180 / math.pi
    for (dx, dy), angle in zip(offsets.tolist(), angles.tolist(), strict=True):
        degree = int(np.float32(angle + 360) if angle < 0 else angle)
        by_degree[degree] = max(by_degree.get(degree, 0.0), math.hypot(dx, dy))
    rays = []
    for k in range(num_rays):
        degree = k * 360 // num_rays
        found = [by_degree[degree + step] for step in (0, 1, -1, 2, -2, 3, -3) if degree + step in by_degree]
        rays.append(found[0] if found else NO_HIT_PX)
    return rays


def random_masks(seed: int, count: int, size: int = 40) -> torch.Tensor:
    """Smoothed noise: parts, holes, parts in holes, lines, corners that touch, pixels at the border."""
    rng = np.random.default_rng(seed)
    masks = []
    while len(masks) < count:
        noise = cv2.GaussianBlur(rng.random((size, size)), (0, 0), rng.choice([0.3, 0.8, 1.5, 3.0]))
        mask = noise > np.quantile(noise, rng.uniform(0.4, 0.99))
        if mask.any():
            masks.append(mask)
    return torch.from_numpy(np.stack(masks))


def points_of(contours: OfficialContours | WalkedContours, mask: int) -> set[tuple[int, int]]:
    if isinstance(contours, WalkedContours):
        return set(map(tuple, contours.points[mask].tolist()))
    return set(map(tuple, contours.pixels.x_y[contours.pixels.mask == mask].tolist()))


@pytest.mark.usefixtures("both_ways")
def test_contours_equal_the_walk_on_random_masks() -> None:
    masks = random_masks(0, 300)
    # Two images, and an empty mask.
    masks[40] = False
    contours = find_contours([masks[:100], masks[100:]])
    assert contours.centers_px[40].tolist() == [0, 0]
    assert points_of(contours, 40) == set()
    for k in set(range(300)) - {40}:
        walked = official_contour(masks[k].numpy())
        assert tuple(contours.centers_px[k].tolist()) == center_slowly(walked), k
        assert points_of(contours, k) == set(map(tuple, walked.astype(int).tolist())), k


@pytest.mark.usefixtures("both_ways")
def test_contours_of_no_mask_are_none() -> None:
    contours = find_contours([torch.zeros(0, 40, 40, dtype=torch.bool)] * 2)
    assert contours.centers_px.shape == (0, 2)
    none = torch.zeros(0, dtype=torch.int64)
    assert degree_bin_rays(contours, torch.zeros(0, 2), none, 36).shape == (0, 36)


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("size", [(3, 3), (1, 9), (9, 1), (21, 11), (2, 2), (8, 5)])
def test_official_contours_of_symmetric_shapes_round_as_the_walk_does(size: tuple[int, int]) -> None:
    for left, top in ((0, 0), (7, 30), (61, 3)):
        mask = torch.zeros(1, 64, 96, dtype=torch.bool)
        mask[0, top : top + size[0], left : left + size[1]] = True
        center = find_contours([mask]).centers_px[0].tolist()
        assert tuple(center) == center_slowly(official_contour(mask[0].numpy()))


def test_walked_center_sums_from_the_closing_edge_on() -> None:
    rng = np.random.default_rng(3)
    for _ in range(50):
        polygon = rng.integers(0, 900, (int(rng.integers(3, 40)), 2)).astype(np.float64)
        assert walked_center(polygon) == center_slowly(polygon)


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("max_pairs", [MAX_PAIRS, 500])
@pytest.mark.parametrize("num_rays", [18, 36, 72])
def test_degree_bin_rays_equal_the_slow_oracle(num_rays: int, max_pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (official, walk):
        monkeypatch.setattr(module, "MAX_PAIRS", max_pairs)
    masks = random_masks(1, 12)
    contours = find_contours([masks])
    rng = np.random.default_rng(2)
    # Between the pixels: at whole offsets of 45 degrees the last bit of atan2 decides, which differs within an array.
    points = torch.from_numpy(rng.integers(-4, 44, (48, 2)) + (0.25, 0.4375)).float()
    owners = torch.arange(48) % len(masks)
    found = degree_bin_rays(contours, points, owners, num_rays)
    for point, owner, rays in zip(points.tolist(), owners.tolist(), found.tolist(), strict=True):
        expected = rays_slowly(official_contour(masks[owner].numpy()), tuple(point), num_rays)
        assert rays == pytest.approx(expected, abs=1e-4)


@pytest.mark.usefixtures("both_ways")
def test_degree_bin_rays_at_the_only_contour_point_is_zero_along_ray_0_only() -> None:
    mask = torch.zeros(1, 16, 16, dtype=torch.bool)
    mask[0, 5, 9] = True
    contours = find_contours([mask])
    rays = degree_bin_rays(contours, torch.tensor([[9.0, 5.0]]), torch.tensor([0]), 36)
    assert rays[0, 0] == 0
    assert (rays[0, 1:] == torch.tensor(NO_HIT_PX)).all()


def instances_of(masks: torch.Tensor) -> Instances:
    instances = Instances(tuple(masks.shape[1:]))
    instances.gt_boxes = Boxes(mask_boxes(masks))
    instances.gt_classes = torch.arange(len(masks))
    instances.gt_masks = BitMasks(masks)
    return instances


@pytest.mark.usefixtures("both_ways")
def test_official_targets_of_a_first_object_centred_in_column_0_have_no_positive() -> None:
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[0, 20:60, 0:2] = True
    masks[1, 10:50, 20:60] = True
    locations = compute_locations([(16, 16)], [4], CPU)
    rule = TargetRule(36, [], 1.5, is_official=True)
    assert len(polar_targets(locations, [instances_of(masks)], 5, rule).positives) == 0
    found = polar_targets(locations, [instances_of(masks.flip(0)), instances_of(masks[:0])], 5, rule)
    assert len(found.positives) >= 6
    assert len(polar_targets(locations, [instances_of(masks)], 5, rule._replace(is_official=False)).positives) >= 6


def blob(radius: float, rng: np.random.Generator, size: int = 48) -> np.ndarray:
    """r = R (1 + 0.3 (0.6 sin 2t + 0.4 sin 3t + 0.3 sin 5t)) with random phases and centre."""
    center = size / 2 + rng.uniform(-0.5, 0.5, 2)
    y, x = np.mgrid[:size, :size] + 0.5
    angle, phases = np.arctan2(y - center[1], x - center[0]), rng.uniform(0, 2 * np.pi, 3)
    waves = sum(w * np.sin(f * angle + p) for w, f, p in zip((0.6, 0.4, 0.3), (2, 3, 5), phases, strict=True))
    return np.hypot(x - center[0], y - center[1]) < radius * (1 + 0.3 * waves)


def mean_iou(masks: torch.Tensor, centers: torch.Tensor, rays: torch.Tensor, rule: ContourRule) -> float:
    rles = contour_rles(rays_to_contours(centers, rays), tuple(masks.shape[1:]), rule)
    pairs = zip(encode_masks(masks), rles, strict=True)
    return float(np.mean([coco_mask.iou([theirs], [ours], [0])[0, 0] for theirs, ours in pairs]))


@pytest.mark.usefixtures("both_ways")
def test_exact_rays_beat_degree_bins_by_ten_points_of_iou_on_small_blobs() -> None:
    rng = np.random.default_rng(0)
    masks = torch.from_numpy(np.stack([blob(8, rng) for _ in range(100)]))
    contours, largest, owners = find_contours([masks]), largest_parts(find_runs(masks), 100), torch.arange(100)
    bins = degree_bin_rays(contours, contours.centers_px, owners, 36)
    official = mean_iou(masks, contours.centers_px, bins, ContourRule(is_official=True))
    rays = cast_rays(largest.runs, largest.centers_px, owners, 36)
    exact = mean_iou(masks, largest.centers_px, rays, ContourRule())
    assert 0.75 <= official <= 0.85
    assert exact >= 0.97
    assert exact - official >= 0.10


def test_truncated_rles_equal_cv2_on_the_whole_image() -> None:
    rng = np.random.default_rng(5)
    size = (60, 90)
    radii = rng.uniform(1, 40, (20, 36))
    angles = np.arange(36) * np.pi / 18
    centers = rng.uniform(-10, 100, (20, 1, 2))
    contours = centers + radii[..., None] * np.stack((np.sin(angles), np.cos(angles)), axis=1)
    masks = np.zeros((20, *size), dtype=np.uint8)
    for mask, contour in zip(masks, contours, strict=True):
        cv2.drawContours(mask, [contour.astype(np.int32)[:, None]], -1, 1, cv2.FILLED)
    assert masks.any(axis=(1, 2)).sum() >= 10
    assert truncated_rles(contours, size) == encode_masks(masks)


def test_truncated_rles_of_wild_contours_are_masks() -> None:
    contours = np.full((3, 36, 2), 5.0)
    contours[0, 0], contours[1, 3] = np.nan, (np.inf, -np.inf)
    rles = truncated_rles(contours, (20, 30))
    assert [rle["size"] for rle in rles] == [[20, 30]] * 3
    assert truncated_rles(contours[:0], (20, 30)) == []
