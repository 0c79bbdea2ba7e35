"""Candidates and masks of OrienMask against slow programs, at every output size and within a budget of memory."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from torch import Tensor

from orienmask import decode
from orienmask.anchors import list_predictions
from orienmask.decode import DecodeRule, Detections, orientation_masks, select_candidates, suppress
from segzoo.evaluation.timing import peak_memory_mb
from segzoo.geometry.rle import RLEMasks, encode_masks

ANCHORS = torch.tensor([[12.0, 16.0], [40.0, 28.0], [72.0, 146.0]])
STRIDES = (8, 16, 32)
RULE = DecodeRule(0.2, 50, 0.5, 20, "box", 0.6)


def smooth_maps(size: tuple[int, int], seed: int = 0) -> Tensor:
    """(2 A, h, w) vectors that vary slowly, as a network's."""
    torch.manual_seed(seed)
    coarse = torch.randn(1, 2 * len(ANCHORS), 5, 6)
    return torch.nn.functional.interpolate(coarse, size=size, mode="bicubic")[0]


def make_detections(count: int, size: tuple[int, int], seed: int = 0) -> Detections:
    rng = np.random.default_rng(seed)
    centers = torch.from_numpy(rng.uniform((0, 0), (size[1], size[0]), (count, 2))).float()
    sides = torch.from_numpy(rng.uniform(20, 140, (count, 2))).float()
    scores, classes = torch.linspace(1, 0.5, count), torch.arange(count)
    anchors = torch.arange(count) % len(ANCHORS)
    return Detections(torch.cat((centers, sides), dim=1), centers, scores, classes, anchors)


def masks_of(
    maps: Tensor, found: Detections, input_size: tuple[int, int], output_size: tuple[int, int], budget_mb: float = 64.0
) -> RLEMasks:
    return orientation_masks(
        maps, ANCHORS, found, input_size=input_size, output_size=output_size, tau=0.6, budget_mb=budget_mb
    )


def oracle_miss(maps: np.ndarray, found: Detections, index: int, x: float, y: float) -> float:
    """How far the vector at a point of the network's input misses the base, in shares of the reach, bilinear."""
    anchor = int(found.anchors[index])
    row, column = (np.clip((v + 0.5) / 4 - 0.5, 0, limit - 1) for v, limit in zip((y, x), maps.shape[1:], strict=True))
    top, left = int(row), int(column)
    bottom, right = min(top + 1, maps.shape[1] - 1), min(left + 1, maps.shape[2] - 1)
    misses = []
    for axis, point in enumerate((x, y)):
        level = maps[2 * anchor + axis]
        upper = level[top, left] * (1 - column + left) + level[top, right] * (column - left)
        lower = level[bottom, left] * (1 - column + left) + level[bottom, right] * (column - left)
        vector = (upper * (1 - row + top) + lower * (row - top)) * float(ANCHORS[anchor, axis]) / 2
        reach = 0.3 * float(found.boxes[index, 2 + axis])
        misses.append(abs(vector + point - float(found.bases_px[index, axis])) / reach)
    return max(misses)


@pytest.mark.parametrize("output_size", [(64, 96), (50, 131), (31, 20), (128, 192)])
@pytest.mark.parametrize("map_size", [(16, 24), (24, 24)])
def test_masks_at_output_size_equal_the_slow_oracle(output_size: tuple[int, int], map_size: tuple[int, int]) -> None:
    """With maps larger than the image (padding) too: its right and bottom neighbours count at the border."""
    maps, input_size = smooth_maps(map_size), (64, 96)
    found = make_detections(4, input_size)
    masks = masks_of(maps, found, input_size, output_size).to_tensor().numpy()
    total = 0
    for index, row, column in np.ndindex(len(masks), *output_size):
        x = (column + 0.5) * input_size[1] / output_size[1] - 0.5
        y = (row + 0.5) * input_size[0] / output_size[0] - 0.5
        miss = oracle_miss(maps.double().numpy(), found, index, x, y)
        if abs(miss - 1) > 1e-4:
            assert masks[index, row, column] == (miss < 1), (index, row, column)
            total += miss < 1
    assert total > 50


@pytest.mark.parametrize("budget_mb", [0.0, 0.05, 0.3])
def test_masks_do_not_depend_on_the_budget_and_are_pycocotools_own(budget_mb: float) -> None:
    maps, found = smooth_maps((16, 24)), make_detections(9, (64, 96))
    whole = masks_of(maps, found, (64, 96), (70, 110))
    assert masks_of(maps, found, (64, 96), (70, 110), budget_mb).rles == whole.rles
    assert encode_masks(whole.to_tensor()) == whole.rles


def test_masks_without_detections_are_none() -> None:
    assert len(masks_of(smooth_maps((16, 24)), make_detections(0, (64, 96)), (64, 96), (33, 44))) == 0


def test_edges_at_once_equal_edges_one_by_one() -> None:
    ends = torch.randn(2, 5000) * 20
    low = torch.randn(12, 2) * 10 - 8
    high = low + torch.rand(12, 2) * 20
    low[3], high[3] = 1e6, 2e6
    one_by_one = decode._edges_one_by_one(ends.numpy(), low.tolist(), high.tolist())
    at_once = decode._edges_at_once(ends, low, high)
    assert len(at_once) == len(one_by_one) == 12
    for first, second in zip(at_once, one_by_one, strict=True):
        assert np.array_equal(first, second)
    assert len(at_once[3]) == 0
    assert sum(map(len, at_once)) > 100


def test_vectors_that_are_not_finite_belong_to_no_mask() -> None:
    maps, found = smooth_maps((16, 24)), make_detections(6, (64, 96))
    maps[:, :8] = float("nan")
    maps[:, 8:12] = float("inf")
    masks = masks_of(maps, found, (64, 96), (64, 96)).to_tensor()
    # Rows whose interpolation sees a spoilt cell.
    assert not masks[:, :47].any()


@pytest.mark.parametrize("count", [6, pytest.param(100, marks=pytest.mark.slow)])
def test_case_49_masks_of_a_12_megapixel_image_stay_within_the_budget(count: int) -> None:
    maps, found = smooth_maps((136, 136)), make_detections(count, (544, 544))
    peak = peak_memory_mb(lambda: masks_of(maps, found, (544, 544), (3000, 4000), budget_mb=16.0))
    # Beside the budget the ends of the runs: two of 8 bytes a column that an object spans, and their copies.
    assert peak < 24 + count * 0.2


def make_raw(image_size: tuple[int, int], num_classes: int = 3) -> tuple[Tensor, list[tuple[int, int]]]:
    sizes = [(-(-image_size[0] // 32) * 32 // stride, -(-image_size[1] // 32) * 32 // stride) for stride in STRIDES]
    return torch.randn(sum(height * width for height, width in sizes), 5 + num_classes) * 2, sizes


@pytest.mark.parametrize("base_position", ["box", "grid"])
def test_candidates_equal_the_slow_oracle(base_position: str) -> None:
    image_size, rule = (50, 90), RULE._replace(base_position=base_position)
    raw, sizes = make_raw(image_size)
    places = list_predictions(sizes, STRIDES, ANCHORS.tolist(), raw.device)
    found = select_candidates(raw, places, image_size, rule)
    rows, number = [], 0
    for level, ((height, width), stride) in enumerate(zip(sizes, STRIDES, strict=True)):
        for row, column in np.ndindex(height, width):
            values = raw[number].double()
            number += 1
            if row * stride >= image_size[0] or column * stride >= image_size[1]:
                continue
            center = (values[:2].sigmoid() + torch.tensor([column, row])) * stride
            side = values[2:4].exp() * ANCHORS[level]
            base = center if base_position == "box" else (torch.tensor([column, row]) + 0.5) * stride
            for category in range(3):
                score = float(values[4].sigmoid() * values[5 + category].sigmoid())
                if score > rule.score_threshold:
                    rows.append([score, *center.tolist(), *side.tolist(), *base.tolist(), category, level])
    rows = sorted(rows, reverse=True)[: rule.pre_nms_topk]
    assert len(found.scores) == len(rows) == rule.pre_nms_topk
    columns = (found.scores[:, None], found.boxes, found.bases_px, found.classes[:, None], found.anchors[:, None])
    torch.testing.assert_close(torch.cat(columns, dim=1), torch.tensor(rows), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("column", [2, 4, 6])
def test_case_48_predictions_that_are_not_finite_are_counted_and_left_out(
    caplog: pytest.LogCaptureFixture, value: float, column: int
) -> None:
    raw, sizes = make_raw((64, 96))
    places = list_predictions(sizes, STRIDES, ANCHORS.tolist(), raw.device)
    expected = select_candidates(raw[3:], type(places)(*(column[3:] for column in places)), (64, 96), RULE)
    raw[:3, column] = value
    with caplog.at_level(logging.WARNING):
        found = select_candidates(raw, places, (64, 96), RULE)
    assert "3 of 126 predictions of an image are not finite" in caplog.text
    for first, second in zip(found, expected, strict=True):
        assert torch.equal(first, second)


def test_one_wild_box_does_not_change_what_others_suppress() -> None:
    rng = np.random.default_rng(0)
    boxes = torch.from_numpy(rng.uniform((20, 20, 30, 30), (500, 500, 60, 60), (300, 4))).float()
    scores, classes = torch.from_numpy(rng.permutation(300) / 300).float(), torch.from_numpy(rng.integers(0, 80, 300))
    anchors = torch.zeros(300).long()
    rule = RULE._replace(max_detections=300, nms_threshold=0.3)
    alone = suppress(Detections(boxes, boxes[:, :2], scores, classes, anchors), rule)
    wild = torch.tensor([[200.0, 200.0, 16_384.0, 16_384.0]])
    boxes, scores = torch.cat((boxes, wild)), torch.cat((scores, torch.tensor([2.0])))
    classes, anchors = torch.cat((classes, torch.tensor([80]))), torch.zeros(301).long()
    beside = suppress(Detections(boxes, boxes[:, :2], scores, classes, anchors), rule._replace(max_detections=301))
    assert torch.equal(beside.scores[1:], alone.scores)


def test_suppress_keeps_the_best_of_each_class() -> None:
    boxes = torch.tensor([[50.0, 50, 40, 40], [52, 50, 40, 40], [52, 50, 40, 40], [90, 50, 10, 10]])
    scores, classes, anchors = torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([0, 0, 1, 0]), torch.zeros(4).long()
    found = suppress(Detections(boxes, boxes[:, :2], scores, classes, anchors), RULE)
    assert found.scores.tolist() == pytest.approx([0.9, 0.7, 0.6])
    assert (
        len(suppress(Detections(boxes, boxes[:, :2], scores, classes, anchors), RULE._replace(max_detections=1))[2])
        == 1
    )
