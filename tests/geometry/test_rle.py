"""RLEMasks and the encoders against pycocotools, and the bound on the memory they take."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.visualizer import Visualizer
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask

from segzoo.geometry.rle import (
    ENCODING_BYTES_PER_PIXEL,
    RLEMasks,
    encode_columns,
    encode_in_chunks,
    encode_masks,
    run_lengths,
)

bool_stacks = hnp.arrays(bool, st.tuples(st.integers(0, 4), st.integers(1, 12), st.integers(1, 12)))


def random_masks(count: int = 3, height: int = 7, width: int = 11, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, height, width, generator=torch.Generator().manual_seed(seed)) > 0.5


@settings(max_examples=60, deadline=None)
@given(bool_stacks)
def test_encode_masks_any_stack_gives_pycocotools_bytes(masks: np.ndarray) -> None:
    expected = [coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]
    assert encode_masks(masks) == expected
    assert encode_masks(torch.from_numpy(masks)) == expected


@settings(max_examples=60, deadline=None)
@given(bool_stacks)
def test_rle_masks_round_trip_keeps_every_pixel(masks: np.ndarray) -> None:
    held = RLEMasks(encode_masks(masks), masks.shape[1:])
    array = np.asarray(held)
    assert array.dtype == bool
    assert array.flags.c_contiguous
    np.testing.assert_array_equal(array, masks)
    np.testing.assert_array_equal(held.area().numpy(), masks.sum(axis=(1, 2)))


@settings(max_examples=60, deadline=None)
@given(bool_stacks)
def test_run_lengths_any_mask_are_the_runs_of_its_columns(masks: np.ndarray) -> None:
    for mask, rle in zip(masks, encode_masks(masks), strict=True):
        flat = mask.T.reshape(-1)
        lengths = run_lengths(rle)
        assert (lengths >= 0).all()
        np.testing.assert_array_equal(np.repeat(np.arange(len(lengths)) % 2 == 1, lengths), flat)


def test_run_lengths_long_runs_are_read_exactly() -> None:
    counts = [0, 70_000, 3, 5_000_000, 1, 40_000, 2_000_000_000]
    rle = coco_mask.frPyObjects({"size": [1, sum(counts)], "counts": counts}, 1, sum(counts))
    assert run_lengths(rle).tolist() == counts


def test_rle_masks_indices_choose_the_same_masks_as_a_tensor() -> None:
    masks = random_masks(4)
    held = RLEMasks(encode_masks(masks), (7, 11))
    keep = torch.tensor([True, False, False, True])
    order = torch.tensor([2, 0, 2])
    for index in (slice(1, 3), keep, keep.numpy(), order, [3, 1], torch.tensor([], dtype=torch.long), []):
        assert torch.equal(held[index].to_tensor(), masks[index])
    assert torch.equal(held[-1].to_tensor(), masks[-1:])
    with pytest.raises(IndexError):
        held[torch.tensor([True])]


def test_rle_masks_in_instances_are_indexed_moved_and_joined() -> None:
    masks = random_masks(3)
    instances = Instances(
        (7, 11), pred_boxes=Boxes(torch.zeros(3, 4)), pred_masks=RLEMasks(encode_masks(masks), (7, 11))
    )
    kept = instances[torch.tensor([False, True, True])].to("cpu")
    joined = Instances.cat([kept, instances[0]])
    assert torch.equal(joined.pred_masks.to_tensor(), masks[[1, 2, 0]])


def test_rle_masks_boxes_hold_the_last_row_and_column() -> None:
    masks = torch.zeros(3, 5, 8, dtype=torch.bool)
    masks[0, 4, 7] = True
    masks[1, 1:3, 0:4] = True
    boxes = RLEMasks(encode_masks(masks), (5, 8)).boxes()
    assert boxes.tolist() == [[7, 4, 8, 5], [0, 1, 4, 3], [0, 0, 0, 0]]


def test_rle_masks_none_have_shapes_of_length_zero() -> None:
    none = RLEMasks([], (5, 8))
    assert none.to_tensor().shape == (0, 5, 8)
    assert none.to_tensor().dtype == torch.bool
    assert none.boxes().shape == (0, 4)
    assert none.area().shape == (0,)
    with pytest.raises(ValueError, match="size"):
        RLEMasks(encode_masks(random_masks()), (5, 8))


@pytest.mark.parametrize("masks_in_budget", [1, 2, 3, 100])
def test_encode_in_chunks_never_asks_for_more_than_the_budget(masks_in_budget: int) -> None:
    masks = random_masks(7, 64, 128)
    budget_mb = masks_in_budget * 64 * 128 * ENCODING_BYTES_PER_PIXEL / 2**20
    asked = []

    def make_masks(chosen: slice) -> torch.Tensor:
        asked.append(masks[chosen].numel() * ENCODING_BYTES_PER_PIXEL)
        return masks[chosen]

    held = encode_in_chunks(make_masks, 7, (64, 128), budget_mb)
    assert max(asked) <= budget_mb * 2**20
    assert held.rles == encode_masks(masks)


def test_encode_in_chunks_one_mask_over_the_budget_still_comes() -> None:
    masks = random_masks(2, 64, 128)
    assert encode_in_chunks(lambda chosen: masks[chosen], 2, (64, 128), 1e-6).rles == encode_masks(masks)
    assert len(encode_in_chunks(lambda chosen: masks[chosen], 0, (64, 128), 1.0)) == 0


@pytest.mark.parametrize("count", [0, 2])
def test_rle_masks_are_drawn_by_detectron2s_visualizer(count: int) -> None:
    masks = torch.zeros(2, 40, 50, dtype=torch.bool)
    masks[0, 5:20, 5:30] = True
    masks[1, 25:35, 20:45] = True
    held = RLEMasks(encode_masks(masks), (40, 50))
    found = Instances(
        (40, 50), pred_boxes=Boxes(held.boxes()), scores=torch.ones(2), pred_classes=torch.zeros(2), pred_masks=held
    )[:count]
    black = np.zeros((40, 50, 3), np.uint8)
    assert bool(Visualizer(black).draw_instance_predictions(found).get_image().any()) == (count > 0)


def test_encode_in_chunks_takes_the_memory_it_says() -> None:
    size, budget_mb = (1024, 1024), 4.0
    tracemalloc.start()
    try:
        held = encode_in_chunks(lambda chosen: np.ones((chosen.stop - chosen.start, *size), bool), 12, size, budget_mb)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(held) == 12
    assert 2.0 * 2**20 < peak < (budget_mb + 0.5) * 2**20


@pytest.mark.parametrize("left", [0, 3, 9])
def test_encode_columns_equals_the_rle_of_the_whole_mask(left: int) -> None:
    rng = np.random.default_rng(left)
    for density in (0.0, 0.3, 1.0):
        mask = np.zeros((11, 13), dtype=bool)
        mask[:, left : left + 4] = rng.random((11, 4)) < density
        assert encode_columns(mask[:, left : left + 4], left, (11, 13)) == encode_masks(mask[None])[0]
    assert encode_columns(np.zeros((11, 0), dtype=bool), left, (11, 13)) == encode_masks(np.zeros((1, 11, 13), bool))[0]
