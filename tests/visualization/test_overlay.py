"""Overlays are checked at their pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances

from segzoo.geometry.rle import RLEMasks, encode_masks
from segzoo.modeling.postprocess import build_instances
from segzoo.visualization import draw_boxes, draw_instances, draw_mask, instance_color
from segzoo.visualization.overlay import MASK_OPACITY

SIZE = (120, 160)
GREY = 90


@pytest.fixture
def image() -> np.ndarray:
    return np.full((*SIZE, 3), GREY, dtype=np.uint8)


def _instances(boxes: list[list[int]], scores: list[float], masks: bool = True) -> Instances:
    """Instances whose masks fill their boxes."""
    full = np.zeros((len(boxes), *SIZE), dtype=bool)
    for mask, (left, top, right, bottom) in zip(full, boxes, strict=True):
        mask[top:bottom, left:right] = True
    rles = RLEMasks(encode_masks(full), SIZE) if masks else None
    tensor = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return build_instances(SIZE, tensor, torch.tensor(scores), torch.arange(len(boxes)) % 3, rles)


def _tinted(index: int) -> np.ndarray:
    return np.round(GREY * (1 - MASK_OPACITY) + np.array(instance_color(index)) * MASK_OPACITY)


def test_draw_instances_tints_the_mask_and_outlines_it(image: np.ndarray) -> None:
    drawn = draw_instances(image, _instances([[40, 50, 90, 100]], [0.9]))
    assert np.array_equal(drawn[75, 65], _tinted(0))
    for row, col in ((50, 80), (99, 60), (75, 40), (75, 89)):
        assert np.array_equal(drawn[row, col], instance_color(0))
    for row, col in ((101, 60), (75, 38), (75, 91), (10, 150)):
        assert np.array_equal(drawn[row, col], [GREY] * 3)
    assert np.all(image == GREY)


def test_draw_instances_label_lies_above_the_box_and_says_something(image: np.ndarray) -> None:
    drawn = draw_instances(image, _instances([[40, 50, 90, 100]], [0.9]), ["leaf"])
    label = drawn[40:50, 40:60]
    is_background = np.all(label == instance_color(0), axis=2)
    assert 0.3 < is_background.mean() < 0.95
    assert not np.array_equal(drawn, draw_instances(image, _instances([[40, 50, 90, 100]], [0.9]), ["star"]))
    assert not np.array_equal(drawn, draw_instances(image, _instances([[40, 50, 90, 100]], [0.5]), ["leaf"]))


def test_draw_instances_small_one_lies_on_top_of_a_large_one(image: np.ndarray) -> None:
    drawn = draw_instances(image, _instances([[60, 60, 80, 80], [20, 30, 140, 110]], [0.3, 0.9]))
    below = _tinted(1)
    expected = np.round(below * (1 - MASK_OPACITY) + np.array(instance_color(0)) * MASK_OPACITY)
    assert np.abs(drawn[72, 72].astype(float) - expected).max() <= 1
    assert np.array_equal(drawn[100, 120], below)


def test_draw_instances_threshold_leaves_low_scores_out(image: np.ndarray) -> None:
    instances = _instances([[10, 60, 50, 100], [90, 60, 130, 100]], [0.2, 1.4])
    drawn = draw_instances(image, instances, threshold=0.5)
    assert np.array_equal(drawn[80, 30], [GREY] * 3)
    assert np.array_equal(drawn[80, 110], _tinted(1))
    assert np.array_equal(draw_instances(image, instances, threshold=2.0), image)


def test_draw_instances_without_detections_is_a_copy(image: np.ndarray) -> None:
    drawn = draw_instances(image, _instances([], []))
    assert np.array_equal(drawn, image)
    assert drawn is not image


def test_draw_instances_boxes_only(image: np.ndarray) -> None:
    drawn = draw_instances(image, _instances([[40, 50, 90, 100]], [0.9], masks=False))
    assert np.array_equal(drawn[75, 65], [GREY] * 3)
    assert np.array_equal(drawn[99, 60], instance_color(0))


@pytest.mark.parametrize("kind", ["bit_masks", "tensor"])
def test_draw_instances_ground_truth_of_a_training_sample(image: np.ndarray, kind: str) -> None:
    masks = torch.zeros(1, *SIZE, dtype=torch.bool)
    masks[0, 50:100, 40:90] = True
    sample = Instances(SIZE)
    sample.gt_boxes = Boxes(torch.tensor([[40.0, 50.0, 90.0, 100.0]]))
    sample.gt_classes = torch.tensor([7])
    sample.gt_masks = BitMasks(masks) if kind == "bit_masks" else masks
    drawn = draw_instances(image, sample, ["leaf"])
    assert np.array_equal(drawn[75, 65], _tinted(0))


def test_draw_instances_mask_empty_or_at_the_border_is_drawn(image: np.ndarray) -> None:
    instances = _instances([[0, 0, 160, 120]], [0.9])
    drawn = draw_instances(image, instances)
    assert np.array_equal(drawn[119, 159], instance_color(0))
    assert np.array_equal(drawn[60, 80], _tinted(0))
    instances.pred_masks = RLEMasks(encode_masks(np.zeros((1, *SIZE), dtype=bool)), SIZE)
    assert np.array_equal(draw_instances(image, instances)[60, 80], [GREY] * 3)


def test_draw_instances_of_another_size_is_refused(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="image of"):
        draw_instances(image[:100], _instances([], []))


@pytest.mark.parametrize("bad", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)])
def test_draw_instances_on_no_image_is_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match="uint8"):
        draw_instances(bad, _instances([], []))


def test_draw_instances_class_names_beyond_ascii_do_not_fail(image: np.ndarray) -> None:
    instances = _instances([[10, 60, 50, 100]], [0.9])
    named = draw_instances(image, instances, ["\u6811"])
    assert np.array_equal(named, draw_instances(image, instances))  # both say "class 0"


def test_draw_mask_hole_keeps_the_image_and_gets_a_contour(image: np.ndarray) -> None:
    mask = np.zeros(SIZE, dtype=bool)
    mask[20:100, 20:100] = True
    mask[50:70, 50:70] = False
    drawn = draw_mask(image, mask, (0, 0, 255))
    assert np.array_equal(drawn[60, 60], [GREY] * 3)
    assert np.array_equal(drawn[60, 49], [0, 0, 255])
    assert np.array_equal(drawn[35, 35], np.round(GREY * (1 - MASK_OPACITY) + np.array([0, 0, 255]) * MASK_OPACITY))


def test_draw_boxes_draws_the_outermost_pixels_inside(image: np.ndarray) -> None:
    drawn = draw_boxes(image, np.array([[10.0, 20.0, 30.0, 40.0]]), (1, 2, 3))
    rows, cols = np.nonzero(np.all(drawn == (1, 2, 3), axis=2))
    assert (rows.min(), rows.max(), cols.min(), cols.max()) == (20, 39, 10, 29)


def test_instance_color_neighbours_differ() -> None:
    colors = np.array([instance_color(index) for index in range(20)])
    for step in (1, 2, 3):
        assert np.abs(colors[step:] - colors[:-step]).sum(axis=1).min() > 60
