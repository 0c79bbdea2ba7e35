"""Masks cut to their pixels, on a CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from segzoo.geometry.windows import batch_windows, largest_part, tight_windows, whole_part


@pytest.mark.parametrize("width", [1, 7, 8, 33, 64])
def test_tight_windows_are_the_bounding_boxes(width: int) -> None:
    rng = np.random.default_rng(width)
    masks = rng.random((12, 21, width)) < rng.choice([0.0, 0.01, 0.4, 1.0], 12)[:, None, None]
    stacks = (masks, masks.transpose(0, 2, 1).copy().transpose(0, 2, 1))
    for stack in map(torch.from_numpy, stacks):
        found = {window.mask: window for window in tight_windows(stack)}
        assert list(found) == [index for index, mask in enumerate(masks) if mask.any()]
        for index, window in found.items():
            rows, columns = masks[index].any(axis=1).nonzero()[0], masks[index].any(axis=0).nonzero()[0]
            assert (window.left, window.top) == (columns[0], rows[0])
            expected = masks[index, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            assert np.array_equal(window.pixels, expected)


def test_tight_windows_of_a_slice_that_begins_between_words_are_right() -> None:
    masks = torch.zeros(4, 3, 8, dtype=torch.bool).flatten()[3 : 3 + 72].view(3, 3, 8)
    masks[1, 2, 5] = True
    ((index, left, top, pixels),) = tight_windows(masks)
    assert (index, left, top, pixels.tolist()) == (1, 5, 2, [[1]])


@pytest.mark.parametrize("start", range(0, 16, 3))
def test_tight_windows_of_long_rows_keep_every_row(start: int) -> None:
    # Added up as words, 255 or 256 pixels at each place of a word overflow to 0.
    masks = torch.zeros(1, 3, 2304, dtype=torch.bool)
    masks[0, 0, start : start + 2041] = masks[0, 1, 7:2048:8] = True
    ((_, left, top, pixels),) = tight_windows(masks)
    left_end, right_end = min(start, 7), max(start + 2041, 2048)
    assert (left, top, pixels.shape) == (left_end, 0, (2, right_end - left_end))


@pytest.mark.parametrize("strides", [(39, 13, 1), (8, 1, 1), (3, 8, 1)])
def test_tight_windows_of_one_row_may_have_any_stride(strides: tuple[int, int, int]) -> None:
    masks = torch.zeros(40, dtype=torch.bool).as_strided((1, 1, 8), strides)
    masks[0, 0, 2:5] = True
    ((_, left, top, pixels),) = tight_windows(masks)
    assert (left, top, pixels.tolist()) == (2, 0, [[1, 1, 1]])


def test_batch_windows_number_masks_through_the_batch() -> None:
    filled, empty = torch.ones(2, 3, 4, dtype=torch.bool), torch.zeros(1, 3, 4, dtype=torch.bool)
    assert [window.mask for window in batch_windows([filled, empty, filled[:0], filled])] == [0, 1, 3, 4]


def test_parts_have_every_pixel_with_an_open_side_in_their_border() -> None:
    rng = np.random.default_rng(0)
    for density in (0.3, 0.6, 0.9):
        for window in tight_windows(torch.from_numpy(rng.random((5, 19, 26)) < density)):
            for part in (whole_part(window), largest_part(window)):
                frame = part.frame.astype(bool)
                inner = frame[1:-1, :-2] & frame[1:-1, 2:] & frame[:-2, 1:-1] & frame[2:, 1:-1]
                y, x = (frame[1:-1, 1:-1] & ~inner).nonzero()
                assert set(zip(x + 1, y + 1, strict=True)) <= set(map(tuple, part.border.tolist()))
                assert not (frame[[0, -1]].any())
                assert not (frame[:, [0, -1]].any())
