"""build_instances: the fields are always there, and nothing that is not finite gets through."""

from __future__ import annotations

import logging

import pytest
import torch

from segzoo.geometry.rle import RLEMasks, encode_masks
from segzoo.modeling.postprocess import build_instances

SIZE = (20, 30)


def some_masks(count: int) -> RLEMasks:
    masks = torch.zeros(count, *SIZE, dtype=torch.bool)
    for number in range(count):
        masks[number, : number + 1] = True
    return RLEMasks(encode_masks(masks), SIZE)


def test_build_instances_none_has_all_fields_of_length_zero() -> None:
    none = build_instances(SIZE, torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long), some_masks(0))
    assert set(none.get_fields()) == {"pred_boxes", "scores", "pred_classes", "pred_masks"}
    assert len(none) == 0
    assert none.pred_masks.to_tensor().shape == (0, *SIZE)


def test_build_instances_boxes_are_clipped_to_the_image() -> None:
    boxes = torch.tensor([[-5.0, -6.0, 40.0, 50.0], [1.0, 2.0, 3.0, 4.0]])
    one = build_instances(SIZE, boxes, torch.tensor([1.4, 0.2]), torch.tensor([0, 1]), None)
    assert one.pred_boxes.tensor.tolist() == [[0, 0, 30, 20], [1, 2, 3, 4]]
    assert one.scores.tolist() == pytest.approx([1.4, 0.2])
    assert not one.has("pred_masks")
    assert boxes[0, 0] == -5.0, "the caller's tensor must not change"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_build_instances_rows_not_finite_are_dropped_from_every_field(bad: float, caplog) -> None:
    boxes = torch.tensor([[0.0, 0.0, 5.0, 5.0], [0.0, bad, 6.0, 6.0], [0.0, 0.0, 7.0, 7.0], [0.0, 0.0, 8.0, 8.0]])
    scores = torch.tensor([0.9, 0.8, bad, 0.6])
    with caplog.at_level(logging.WARNING):
        kept = build_instances(SIZE, boxes, scores, torch.arange(4), some_masks(4))
    assert "dropped 2 of 4" in caplog.text
    assert kept.pred_classes.tolist() == [0, 3]
    assert kept.pred_boxes.tensor[:, 2].tolist() == [5, 8]
    assert kept.pred_masks.area().tolist() == [30, 120]


def test_build_instances_fields_that_disagree_are_refused() -> None:
    one_box = torch.zeros(1, 4)
    with pytest.raises(ValueError, match="length"):
        build_instances(SIZE, one_box, torch.zeros(1), torch.zeros(1), some_masks(2))
    with pytest.raises(ValueError, match="size"):
        build_instances((30, 20), one_box, torch.zeros(1), torch.zeros(1), some_masks(1))
