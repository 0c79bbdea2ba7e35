"""Windows of run lengths against drawn masks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segzoo.geometry.crop import crop_masks
from segzoo.geometry.rle import RLEMasks, encode_masks


@settings(max_examples=150, deadline=None)
@given(
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    share=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
    corners=st.tuples(*[st.floats(0, 1)] * 4),
    seed=st.integers(0, 99),
)
def test_crop_masks_equal_the_drawn_masks_cut(size: tuple, share: float, corners: tuple, seed: int) -> None:
    height, width = size
    masks = np.random.default_rng(seed).random((3, *size)) < share
    x0, y0 = int(corners[0] * (width - 1)), int(corners[1] * (height - 1))
    x1, y1 = x0 + 1 + int(corners[2] * (width - x0 - 1)), y0 + 1 + int(corners[3] * (height - y0 - 1))
    cropped = crop_masks(RLEMasks(encode_masks(masks), size), (x0, y0, x1, y1))
    expected = masks[:, y0:y1, x0:x1]
    assert cropped.image_size == expected.shape[1:]
    np.testing.assert_array_equal(np.asarray(cropped), expected)
    # The same bytes as of pycocotools.
    assert cropped.rles == encode_masks(expected)


@pytest.mark.parametrize("window", [(-1, 0, 3, 3), (0, 0, 6, 3), (2, 1, 2, 3), (0, 3, 3, 1)])
def test_crop_masks_refuses_a_window_that_is_none(window: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="of an image of 4 x 5"):
        crop_masks(RLEMasks([], (4, 5)), window)


def test_crop_masks_of_none_has_the_windows_size() -> None:
    assert np.asarray(crop_masks(RLEMasks([], (4, 5)), (1, 0, 4, 2))).shape == (0, 2, 3)
