"""Means, AP and the pool: against slow sums, and the same whatever the number of processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from projects.upper_bound.cut_maps import BoxMaskGroup
from projects.upper_bound.inputs import MaskList
from projects.upper_bound.measure import AP_TYPES, SIZES, Measured, bounded_map, measure, measure_image
from projects.upper_bound.measure import _pool as make_pool
from projects.upper_bound.objects import DataSet, ImageObjects, read_data_set
from projects.upper_bound.polar import PolarGroup
from projects.upper_bound.rows import Group, Row
from segzoo.errors import SegZooError
from segzoo.evaluation.metrics import BOUNDARY_SHARE
from segzoo.geometry.rle import RLEMasks, encode_masks
from tests.projects.upper_bound.drawn import SIZE, annotation, blobs, disc, image_of, rectangle, write_json

GROUPS: tuple[Group, ...] = (PolarGroup([8, 36]), BoxMaskGroup(None))


@pytest.fixture
def data(tmp_path: Path) -> DataSet:
    masks = blobs(14, seed=6)
    entries = [annotation(mask, 10 * (1 + number % 2), 3 + 4 * (number % 3 == 0)) for number, mask in enumerate(masks)]
    return read_data_set([write_json(tmp_path / "a.json", entries)])


def slow_means(data: DataSet) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(Z, M) IoU of all objects in the order of the annotations, their sizes by name and their categories."""
    ious = [measure_image(GROUPS, False, image)[0] for image in data.images()]
    areas = np.concatenate([image.areas for image in data.images()])
    sizes = np.array(["small" if area < 1024 else "medium" if area < 9216 else "large" for area in areas])
    return np.concatenate(ious, axis=1), sizes, np.concatenate([image.categories for image in data.images()])


def test_means_by_size_and_class_equal_slow_ones(data: DataSet) -> None:
    measured = measure(data, GROUPS, num_workers=0, with_ap=False)
    ious, sizes, categories = slow_means(data)
    assert measured.metrics == {}
    assert set(sizes) == set(SIZES)
    for row in range(len(measured.rows)):
        assert measured.mean_iou(row) == pytest.approx(ious[row].mean())
        for size, value in measured.mean_iou_by_size(row).items():
            assert value == pytest.approx(ious[row][sizes == size].mean())
        for category, value in measured.mean_iou_by_category(row).items():
            assert value == pytest.approx(ious[row][categories == category].mean())


def test_ap_is_the_share_of_objects_above_each_threshold(data: DataSet) -> None:
    """Ranked by their IoU, all right masks come before all wrong ones: precision is 1 up to the recall of the share.

    That holds where no object's mask fits another object better than its own, as here.
    """
    measured = measure(data, GROUPS, num_workers=0)
    ious, _, categories = slow_means(data)
    for row, own in zip(measured.rows, ious, strict=True):
        precisions = [
            np.mean(np.linspace(0, 1, 101) <= np.mean(own[categories == category] >= threshold) + 1e-9)
            * (own[categories == category] >= threshold).any()
            for category in (3, 7)
            for threshold in np.arange(0.5, 0.96, 0.05).round(2)
        ]
        assert measured.metrics[row.name]["segm"]["AP"] == pytest.approx(100 * np.mean(precisions), abs=1e-6)
        assert set(measured.metrics[row.name]) == set(AP_TYPES)
        assert measured.metrics[row.name]["boundary"]["AP"] <= measured.metrics[row.name]["segm"]["AP"] + 1e-9


def test_each_ap_is_ranked_by_its_own_iou() -> None:
    """Of two objects the one with the better mask has the worse edge: neither order is best for both."""
    masks = [disc((80, 120), 60), rectangle(200, 100, 30, 30)]
    large, small = disc((80, 120), 54), rectangle(200, 100, 30, 22)
    image = image_of(masks)
    rows = _Given([large, small])
    ious, detections = measure_image((rows,), True, image)
    scores = [one["scores"] for one in detections[0]]
    assert [one["segm"] for one in scores] == pytest.approx(ious[0].tolist())
    assert scores[0]["segm"] > scores[1]["segm"]
    assert scores[0]["boundary"] < scores[1]["boundary"]
    for one, found, true in zip(scores, (large, small), masks, strict=True):
        assert one["boundary"] == pytest.approx(min(one["segm"], slow_boundary_iou(found, true)))


def slow_boundary_iou(found: np.ndarray, true: np.ndarray) -> float:
    """Of the pixels of each mask less than the width away from a pixel beside it, the image's border counted."""
    width = max(1, round(BOUNDARY_SHARE * np.hypot(*SIZE)))
    edges = []
    for mask in (found, true):
        padded = np.pad(mask, width)
        inner = np.ones_like(mask)
        for y, x in np.ndindex(2 * width + 1, 2 * width + 1):
            inner &= padded[y : y + SIZE[0], x : x + SIZE[1]]
        edges.append(mask & ~inner)
    return float((edges[0] & edges[1]).sum() / (edges[0] | edges[1]).sum())


def test_boundary_ap_is_the_share_of_objects_above_each_threshold(tmp_path: Path) -> None:
    """As mask AP: ranked by the IoU that it measures, all that are right come before all that are wrong."""
    masks = [disc((80, 120), 60), rectangle(200, 100, 30, 30), disc((280, 60), 25)]
    found = [disc((80, 120), 54), rectangle(200, 100, 30, 22), disc((280, 60), 24)]
    data = read_data_set([write_json(tmp_path / "a.json", [annotation(mask, 10) for mask in masks])])
    group = _Given(found)
    own = np.array([one["scores"]["boundary"] for one in measure_image((group,), True, data.images()[0])[1][0]])
    shares = [np.mean(own >= threshold) for threshold in np.arange(0.5, 0.96, 0.05).round(2)]
    expected = [np.mean(np.linspace(0, 1, 101) <= share + 1e-9) * (share > 0) for share in shares]
    measured = measure(data, [group], num_workers=0)
    assert measured.metrics["Given: given"]["boundary"]["AP"] == pytest.approx(100 * np.mean(expected), abs=1e-6)


@dataclass(frozen=True)
class _Given:
    """A representation that gives back what it was told to."""

    found: list[np.ndarray]

    @property
    def rows(self) -> list[Row]:
        return [Row("Given", "given", "own")]

    def masks(self, image: ImageObjects) -> list[MaskList]:
        masks = MaskList(image)
        masks.offer(torch.arange(len(self.found)), RLEMasks(encode_masks(np.stack(self.found)), image.size))
        return [masks]


def test_processes_give_the_same_as_none(data: DataSet) -> None:
    alone, shared = (measure(data, GROUPS, num_workers=number) for number in (0, 2))
    np.testing.assert_array_equal(alone.iou_sums, shared.iou_sums)
    np.testing.assert_array_equal(alone.num_lost, shared.num_lost)
    np.testing.assert_equal(alone.metrics, shared.metrics)


def test_a_killed_process_is_an_error_with_a_remedy() -> None:
    with make_pool(1) as pool, pytest.raises(SegZooError, match="fewer --workers"):
        list(bounded_map(pool, os._exit, [1], 1))


def test_a_pool_is_given_no_more_than_its_queue_holds() -> None:
    given: list[int] = []

    def jobs() -> Iterator[int]:
        for number in range(6):
            given.append(number)
            yield number

    with make_pool(1) as pool:
        results: Iterator[int] = bounded_map(pool, round, jobs(), 2)
        assert next(results) == 0
        assert len(given) == 2
        assert list(results) == [1, 2, 3, 4, 5]


@pytest.mark.slow
@pytest.mark.reference
def test_figure_7_comes_out_on_real_objects(reference_root: Path) -> None:
    """More rays hold more, the mass centre more than the box centre, and 120 rays hardly more than 72."""
    file = reference_root / "data" / "annotations" / "coco_real.json"
    if not file.is_file():
        pytest.skip(f"no {file}")
    counts = (4, 18, 36, 72, 120)
    measured = measure(read_data_set([str(file)]), [PolarGroup(counts)], num_workers=0, with_ap=False)
    mass, box = (_curve(measured, center) for center in ("mass", "box"))
    assert mass == sorted(mass)
    assert mass[2] > 0.90
    assert all(one > other for one, other in zip(mass, box, strict=True))
    assert mass[4] - mass[3] <= 0.01
    assert mass[4] - mass[3] < mass[3] - mass[2]


def _curve(measured: Measured, center: str) -> list[float]:
    """Mean IoU by rising number of rays."""
    kind = {"center": center, "parts": "largest"}
    return [measured.mean_iou(z) for z, row in enumerate(measured.rows) if kind.items() <= row.settings.items()]
