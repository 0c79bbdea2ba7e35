"""Polygons and json segmentations against pycocotools, bit for bit, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask

from segzoo.errors import DatasetError
from segzoo.geometry.polygons import empty_rle, polygons_to_rles, segmentation_to_rle

HEIGHT, WIDTH = 23, 31
coordinates = st.floats(-40.0, 70.0, allow_nan=False)
polygon_stacks = hnp.arrays(
    np.float64, st.tuples(st.integers(0, 3), st.integers(3, 8), st.just(2)), elements=coordinates
)


def pycocotools_mask(segmentation: list | dict) -> np.ndarray:
    rle = coco_mask.frPyObjects(segmentation, HEIGHT, WIDTH)
    return coco_mask.decode(coco_mask.merge(rle) if isinstance(segmentation, list) else rle)


@settings(max_examples=80, deadline=None)
@given(polygon_stacks)
def test_polygons_to_rles_any_polygon_is_pycocotools_rle(polygons: np.ndarray) -> None:
    expected = [coco_mask.frPyObjects([polygon.reshape(-1).tolist()], HEIGHT, WIDTH)[0] for polygon in polygons]
    assert polygons_to_rles(polygons, HEIGHT, WIDTH) == expected
    assert polygons_to_rles(torch.from_numpy(polygons), HEIGHT, WIDTH) == expected


def test_polygons_to_rles_not_drawable_gives_empty_masks() -> None:
    square = np.array([[2, 2], [9, 2], [9, 9], [2, 9]], dtype=float)
    with_nan, with_inf = square.copy(), square.copy()
    with_nan[0, 0], with_inf[1, 1] = np.nan, np.inf
    rles = polygons_to_rles(np.stack([with_nan, square, with_inf]), HEIGHT, WIDTH)
    assert coco_mask.area(rles).tolist() == [0, 49, 0]
    assert polygons_to_rles(square[None, :2], HEIGHT, WIDTH) == [empty_rle(HEIGHT, WIDTH)]
    assert polygons_to_rles(np.zeros((0, 36, 2)), HEIGHT, WIDTH) == []


def test_polygons_to_rles_far_outside_stays_bounded_and_covers_the_image() -> None:
    reach = 1e12
    square = np.array([[[-reach, -reach], [reach, -reach], [reach, reach], [-reach, reach]]])
    assert coco_mask.area(polygons_to_rles(square, HEIGHT, WIDTH)).tolist() == [HEIGHT * WIDTH]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(coordinates, min_size=6, max_size=14).map(lambda p: p[: len(p) // 2 * 2]), min_size=1, max_size=3)
)
def test_segmentation_to_rle_polygons_are_pycocotools_mask(segmentation: list) -> None:
    decoded = coco_mask.decode(segmentation_to_rle(segmentation, HEIGHT, WIDTH))
    np.testing.assert_array_equal(decoded, pycocotools_mask(segmentation))


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(bool, (HEIGHT, WIDTH)))
def test_segmentation_to_rle_all_forms_of_rle_are_the_mask(mask: np.ndarray) -> None:
    compressed = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    flat = mask.T.reshape(-1)
    borders = np.flatnonzero(np.diff(np.concatenate([[False], flat]).astype(int)))
    lengths = np.diff(np.concatenate([[0], borders, [flat.size]])).tolist()
    size = [HEIGHT, WIDTH]
    forms = [compressed, {"size": size, "counts": compressed["counts"].decode()}, {"size": size, "counts": lengths}]
    for form in forms:
        np.testing.assert_array_equal(coco_mask.decode(segmentation_to_rle(form, HEIGHT, WIDTH)), mask)


SQUARE = [2.0, 2.0, 9.0, 2.0, 9.0, 9.0]


@pytest.mark.parametrize(
    ("segmentation", "said"),
    [
        ([], "polygons or an RLE"),
        (None, "polygons or an RLE"),
        (SQUARE, "outside of a list"),
        ([[1, 1, 5, 5]], "fewer than 3"),
        ([[]], "fewer than 3"),
        ([[1, 1, 5, 5, 3, 3, 1]], "7 numbers"),
        ([SQUARE, [1, 1, float("nan"), 5, 3, 3]], "NaN"),
        ([SQUARE, [1, 1, float("inf"), 5, 3, 3]], "infinite"),
        ([["a", "b", "c", "d", "e", "f"]], "not a list of numbers"),
        ({"size": [HEIGHT, WIDTH]}, "without counts"),
        ({"size": [WIDTH, HEIGHT], "counts": [HEIGHT * WIDTH]}, "size"),
        ({"counts": [HEIGHT * WIDTH]}, "size"),
        ({"size": [HEIGHT, WIDTH], "counts": [3, 4]}, "7 pixels"),
        ({"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH + 1, -1]}, "whole numbers"),
        ({"size": [HEIGHT, WIDTH], "counts": [713.0]}, "whole numbers"),
        ({"size": [HEIGHT, WIDTH], "counts": "zzzzzzzzzzzzzzzzz9"}, "RLE"),
        ({"size": [HEIGHT, WIDTH], "counts": "größe"}, "text"),
        ({"size": [HEIGHT, WIDTH], "counts": ""}, "0 pixels"),
    ],
)
def test_segmentation_to_rle_malformed_is_refused_with_the_reason(segmentation: object, said: str) -> None:
    with pytest.raises(DatasetError, match=said):
        segmentation_to_rle(segmentation, HEIGHT, WIDTH)
