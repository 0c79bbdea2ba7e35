"""Peaks and boxes against the same written out cell by cell, and what is no detection."""

from __future__ import annotations

import logging

import pytest
import torch

from centermask.decode import center_boxes, find_peaks, peak_scores, select_detections
from tests.centermask.center_oracle import peaks_of


def distinct_scores(seed: int, *shape: int) -> torch.Tensor:
    """Random order of evenly spaced values, none equal to another."""
    count = torch.Size(shape).numel()
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return ((order + 1) / (count + 1)).view(shape)


@pytest.mark.parametrize("count", [1, 5, 30])
def test_peaks_equal_the_oracle(count: int) -> None:
    scores = distinct_scores(0, 2, 4, 11, 13)
    peaks = find_peaks(scores, count)
    for image in range(2):
        expected = peaks_of(scores[image].numpy(), count)
        found = zip(peaks.scores[image].tolist(), peaks.classes[image].tolist(), peaks.cells[image].tolist())
        assert [(score, class_index, x, y) for score, class_index, (x, y) in found] == expected


def test_maps_with_fewer_peaks_or_cells_than_wanted_give_zeros_at_the_end() -> None:
    scores = torch.zeros(1, 2, 1, 3)
    scores[0, 1, 0, 1] = 0.5
    peaks = find_peaks(scores, 100)
    assert peaks.scores.shape == (1, 6)
    assert peaks.scores[0].tolist() == [0.5, 0, 0, 0, 0, 0]
    assert (int(peaks.classes[0, 0]), peaks.cells[0, 0].tolist()) == (1, [1, 0])


def test_equal_neighbours_are_both_peaks() -> None:
    scores = torch.full((1, 1, 4, 6), 0.1)
    scores[0, 0, 2, 2:4] = 0.7
    peaks = find_peaks(scores, 2)
    assert peaks.scores[0].tolist() == pytest.approx([0.7, 0.7])
    assert sorted(peaks.cells[0].tolist()) == [[2, 2], [3, 2]]


def test_center_boxes_are_width_and_height_around_cell_and_offset() -> None:
    boxes = center_boxes(torch.tensor([[10, 4]]), torch.tensor([[0.25, 0.5]]), torch.tensor([[6.0, 3.0]]))
    assert boxes.tolist() == [[7.25, 3.0, 13.25, 6.0]]


def test_padding_and_nan_have_no_score(caplog: pytest.LogCaptureFixture) -> None:
    heatmap = torch.zeros(2, 1, 4, 5)
    heatmap[1, 0, 0, 0] = float("nan")
    # The last cell of the first image holds one pixel; in the padding nobody counts.
    heatmap[0, 0, 3, 4] = float("nan")
    with caplog.at_level(logging.WARNING):
        scores = peak_scores(heatmap, [(9, 20), (16, 17)])
    assert (scores[0, 0] > 0).tolist() == [[True] * 5] * 3 + [[False] * 5]
    assert (scores[1, 0] > 0).tolist() == [[False, *[True] * 4], *[[True] * 5] * 3]
    assert "1 values of 2 heatmaps are NaN" in caplog.text


def test_boxes_that_show_nothing_are_no_detections(caplog: pytest.LogCaptureFixture) -> None:
    sizes = torch.tensor([[4.0, 4.0], [-4.0, 4.0], [4.0, 0.0], [4.0, float("nan")], [4.0, 4.0], [4.0, 4.0], [4.0, 4.0]])
    cells = torch.tensor([[5, 5], [5, 5], [5, 5], [5, 5], [30, 5], [5, 5], [6, 6]])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3])
    with caplog.at_level(logging.WARNING):
        found = select_detections(scores, torch.arange(7), cells, torch.zeros(7, 2), sizes, (64, 96), 0.3)
    assert found.classes.tolist() == [0, 5]
    assert found.scores.tolist() == pytest.approx([0.9, 0.4])
    assert found.cells.tolist() == [[5, 5], [5, 5]]
    assert found.boxes_px.tolist() == [[12, 12, 28, 28]] * 2
    assert "1 boxes of an image are not finite" in caplog.text
