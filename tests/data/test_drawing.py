"""Drawing: masks are pycocotools' bit for bit, and cv2's where they are resized by its rule (case 22)."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
import torch
from fvcore.transforms.transform import TransformList
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from segzoo.data.drawing import draw_instances, original_rle
from segzoo.data.transforms import FlipTransform, Resampling, ResizeTransform
from segzoo.errors import DatasetError
from segzoo.geometry.masks import mask_boxes

OPENCV = Resampling("opencv", "opencv")


def record_of(height: int, width: int) -> dict[str, Any]:
    return {"file_name": "none.png", "image_id": 1, "height": height, "width": width}


def draw(segmentations: list[Any], height: int, width: int, *transforms: Any) -> tuple[Any, int]:
    size = (height, width)
    for transform in transforms:
        size = transform.apply_segmentation(np.zeros(size, dtype=np.uint8)).shape
    annotations = [{"id": k, "segmentation": s, "category_id": k} for k, s in enumerate(segmentations)]
    return draw_instances(annotations, TransformList(list(transforms)), record_of(height, width), size)


@st.composite
def polygons(draw_value: Any) -> tuple[int, int, list[list[float]]]:
    height, width = draw_value(st.integers(1, 40)), draw_value(st.integers(1, 40))
    coordinate = st.floats(-0.5, 60.0, allow_nan=False).map(lambda value: round(value, 2))
    part = st.lists(coordinate, min_size=6, max_size=16).map(lambda values: values[: len(values) // 2 * 2])
    return height, width, draw_value(st.lists(part, min_size=1, max_size=3))


def oracle(parts: list[list[float]], height: int, width: int) -> np.ndarray:
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(parts, height, width))).astype(bool)


@settings(max_examples=150, deadline=None)
@given(case=polygons())
def test_case_22_draw_instances_polygons_equal_pycocotools_bit_for_bit(case: tuple[int, int, list]) -> None:
    height, width, parts = case
    expected = oracle(parts, height, width)
    instances, num_lost = draw([parts], height, width)
    assert num_lost == int(not expected.any())
    np.testing.assert_array_equal(instances.gt_masks.tensor.numpy(), expected[None][: int(expected.any())])
    assert torch.equal(instances.gt_boxes.tensor, mask_boxes(instances.gt_masks.tensor))


@settings(max_examples=60, deadline=None)
@given(case=polygons(), new_size=st.tuples(st.integers(1, 60), st.integers(1, 60)), is_flipped=st.booleans())
def test_case_22_draw_instances_transformed_polygons_are_drawn_at_the_final_size(
    case: tuple[int, int, list], new_size: tuple[int, int], is_flipped: bool
) -> None:
    height, width, parts = case
    new_height, new_width = new_size
    moved = []
    for part in parts:
        points = np.array(part).reshape(-1, 2) * [new_width / width, new_height / height]
        if is_flipped:
            points[:, 0] = new_width - points[:, 0]
        moved.append(points.reshape(-1).tolist())
    expected = oracle(moved, new_height, new_width)
    transforms = [ResizeTransform(height, width, new_height, new_width)]
    transforms += [FlipTransform(new_height, new_width)] if is_flipped else []
    instances, _ = draw([parts], height, width, *transforms)
    np.testing.assert_array_equal(instances.gt_masks.tensor.numpy(), expected[None][: int(expected.any())])


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 20), width=st.integers(1, 20), seed=st.integers(0, 99), density=st.sampled_from([0.1, 0.9])
)
def test_case_22_draw_instances_rle_is_transformed_pixel_by_pixel(
    height: int, width: int, seed: int, density: float
) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < density
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    resize, flip = ResizeTransform(height, width, 17, 9), FlipTransform(17, 9)
    for transforms, expected in (
        ([], mask),
        ([resize, flip], flip.apply_segmentation(resize.apply_segmentation(mask))),
    ):
        instances, _ = draw([rle], height, width, *transforms)
        kept = expected[None][: int(expected.any())]
        np.testing.assert_array_equal(instances.gt_masks.tensor.numpy(), kept)
        assert torch.equal(instances.gt_boxes.tensor, mask_boxes(torch.from_numpy(kept.copy())))


def test_draw_instances_bad_segmentation_of_foreign_code_names_file_and_ids() -> None:
    with pytest.raises(DatasetError, match=r"none\.png: image id 1: annotation id 0: a polygon with 2 points"):
        draw([[[1.0, 1.0, 2.0, 2.0]]], 10, 10)


@settings(max_examples=150, deadline=None)
@given(
    case=polygons(),
    new_size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    flips=st.lists(st.booleans(), max_size=2),
)
def test_draw_instances_opencv_rule_equals_cv2_resize_of_the_whole_mask(
    case: tuple[int, int, list], new_size: tuple[int, int], flips: list[bool]
) -> None:
    height, width, parts = case
    expected = oracle(parts, height, width).astype(np.uint8)
    expected = cv2.resize(np.ascontiguousarray(expected), new_size[::-1], interpolation=cv2.INTER_NEAREST).astype(bool)
    for is_horizontal in flips:
        expected = expected[:, ::-1] if is_horizontal else expected[::-1]
    rle = original_rle({"segmentation": parts}, record_of(height, width))
    transforms = [FlipTransform(*new_size, is_horizontal) for is_horizontal in flips]
    instances, num_lost = draw([rle], height, width, ResizeTransform(height, width, *new_size, OPENCV), *transforms)
    kept = expected[None][: int(expected.any())]
    np.testing.assert_array_equal(instances.gt_masks.tensor.numpy(), kept)
    assert torch.equal(instances.gt_boxes.tensor, mask_boxes(torch.from_numpy(kept.copy())))
    assert num_lost == 1 - len(kept)


def test_draw_instances_lost_ones_leave_the_others_in_their_order() -> None:
    def square(x: float, side: float) -> list[list[float]]:
        return [[x, x, x + side, x, x + side, x + side, x, x + side]]

    segmentations = [square(2, 1), square(0, 30), square(3, 1), square(10, 15), square(5, 1)]
    rles = [original_rle({"segmentation": parts}, record_of(40, 40)) for parts in segmentations]
    instances, num_lost = draw(rles, 40, 40, ResizeTransform(40, 40, 5, 5, OPENCV))
    assert num_lost == 3
    assert instances.gt_classes.tolist() == [1, 3]
    # Columns 0, 8, 16, 24, 32 of the original.
    assert instances.gt_boxes.tensor.tolist() == [[0, 0, 4, 4], [2, 2, 4, 4]]
    assert torch.equal(instances.gt_boxes.tensor, mask_boxes(instances.gt_masks.tensor))


def test_draw_instances_rle_with_empty_runs_gets_the_box_of_its_pixels() -> None:
    # The first run of the object is empty, and so is the second one of the background.
    rle = {"size": [5, 4], "counts": [1, 0, 11, 2, 0, 1, 5]}
    instances, _ = draw([rle], 5, 4)
    assert instances.gt_boxes.tensor.tolist() == [[2, 2, 3, 5]]
    assert instances.gt_masks.tensor.sum() == 3


def test_draw_instances_rle_of_another_size_names_file_and_ids() -> None:
    with pytest.raises(DatasetError, match=r"none\.png: image id 1: annotation id 0: an RLE of size \[3, 3\]"):
        draw([{"size": [3, 3], "counts": [9]}], 10, 10)


def test_original_rle_bad_polygon_names_file_and_ids() -> None:
    annotation = {"id": 7, "segmentation": [[0.0, 0.0, 5.0, 0.0, 5.0, 5.0], [1.0, 1.0, 2.0, 2.0, 3.0]]}
    with pytest.raises(DatasetError, match=r"none\.png: image id 1: annotation id 7: a polygon with 5 numbers"):
        original_rle(annotation, record_of(10, 10))
