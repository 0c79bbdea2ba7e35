"""Runs of masks against a loop over pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from segzoo.geometry.runs import find_runs, paint_runs


def runs_slowly(masks: np.ndarray) -> list[tuple[int, int, int, int]]:
    runs = []
    for m, mask in enumerate(masks):
        for y, row in enumerate(mask):
            x = 0
            while x < len(row):
                start = x
                while x < len(row) and row[x]:
                    x += 1
                if x > start:
                    runs.append((m, y, start, x))
                x += 1
    return runs


@pytest.mark.parametrize("width", [1, 7, 8, 9, 37, 64, 127, 128, 129, 256, 300])
def test_find_runs_equal_a_loop_over_pixels_at_every_width(width: int) -> None:
    rng = np.random.default_rng(width)
    masks = rng.random((7, 9, width)) < np.array([0.0, 0.1, 0.5, 0.9, 1.0, 0.97, 0.0])[:, None, None]
    # Runs that begin or end where a block of 128 pixels does.
    masks[6, 0, :128] = masks[6, 2, 128:] = masks[6, 4, 100:256] = masks[6, 6, 127:129] = True
    for stack in (torch.from_numpy(masks), torch.from_numpy(masks.transpose(0, 2, 1).copy()).transpose(1, 2)):
        runs = find_runs(stack)
        assert list(zip(*(column.tolist() for column in runs), strict=True)) == runs_slowly(masks)
        assert torch.equal(paint_runs(runs, tuple(masks.shape)), torch.from_numpy(masks))


def test_find_runs_in_blocks_are_the_same() -> None:
    masks = torch.from_numpy(np.random.default_rng(0).random((7, 20, 33)) < 0.4)
    whole = find_runs(masks)
    for max_pixels in (1, 700, 2000):
        for column, expected in zip(find_runs(masks, max_pixels=max_pixels), whole, strict=True):
            assert torch.equal(column, expected)


def test_find_runs_of_nothing_are_none() -> None:
    for shape in ((0, 5, 5), (2, 0, 5), (2, 5, 0), (2, 5, 8)):
        assert len(find_runs(torch.zeros(shape, dtype=torch.bool)).row) == 0
