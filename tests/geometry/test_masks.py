"""Boxes of masks against a loop."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from segzoo.geometry.masks import mask_boxes


@settings(max_examples=80, deadline=None)
@given(hnp.arrays(bool, st.tuples(st.integers(0, 4), st.integers(1, 9), st.integers(1, 9))))
def test_mask_boxes_any_stack_equals_a_loop(masks: np.ndarray) -> None:
    expected = []
    for mask in masks:
        rows, columns = np.nonzero(mask)
        is_hit = len(rows) > 0
        expected.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if is_hit else [0, 0, 0, 0])
    boxes = mask_boxes(torch.from_numpy(masks))
    assert boxes.dtype == torch.float32
    assert boxes.shape == (len(masks), 4)
    assert boxes.tolist() == np.array(expected, dtype=float).reshape(-1, 4).tolist()


def test_mask_boxes_image_without_pixels_gives_zeros() -> None:
    assert mask_boxes(torch.zeros(2, 0, 5, dtype=torch.bool)).tolist() == [[0.0] * 4] * 2
