"""The orientation targets: against a slow oracle, and by what they mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from detectron2.structures import Instances

from orienmask import orientation, painting
from orienmask.decode import Detections, orientation_masks
from orienmask.orientation import OrientationTargets, orientation_targets, valid_areas
from orienmask.targets import Objects, TargetRule, assign_anchors
from tests.orienmask.objects import RULE, blob, instances_of, map_sizes, random_objects
from tests.orienmask.oracle import orientation_maps

SIZE = (288, 352)
BASES = pytest.mark.parametrize("base_position", ["box", "grid"])


def targets_of(batch: list[Instances], rule: TargetRule = RULE, size: tuple[int, int] = SIZE) -> tuple[Objects, Any]:
    objects = assign_anchors(batch, map_sizes(size), rule)
    return objects, orientation_targets(objects, batch, size, len(rule.anchors_px), rule)


def pair_of(targets: OrientationTargets, image: int, anchor: int) -> int:
    return int(((targets.image == image) & (targets.anchor == anchor)).nonzero()[0, 0])


@BASES
@pytest.mark.parametrize("overlap_order", ["large_first", "given"])
@pytest.mark.parametrize("expand_ratio", [1.0, 1.2, 1.6])
def test_orientation_targets_equal_the_slow_oracle(base_position: str, overlap_order: str, expand_ratio: float) -> None:
    rule = RULE._replace(base_position=base_position, overlap_order=overlap_order, expand_ratio=expand_ratio)
    batch = [random_objects(12, SIZE, 1), random_objects(0, SIZE, 2), random_objects(5, SIZE, 3)]
    _, targets = targets_of(batch, rule)
    expected = {(i, a): maps for i, one in enumerate(batch) for a, maps in orientation_maps(one, rule).items()}
    assert set(zip(targets.image.tolist(), targets.anchor.tolist(), strict=True)) == set(expected)
    for (image, anchor), (vectors, positive, negative) in expected.items():
        pair = pair_of(targets, image, anchor)
        assert np.array_equal(targets.is_positive[pair].numpy(), positive)
        assert np.array_equal(targets.is_negative[pair].numpy(), negative)
        found = targets.vectors[:, pair].permute(1, 2, 0).numpy()
        np.testing.assert_allclose(found, vectors, rtol=0, atol=2e-5)


@pytest.mark.parametrize("max_pixels", [painting.MAX_PIXELS, 1000])
def test_painting_at_once_equals_painting_one_by_one(monkeypatch: pytest.MonkeyPatch, max_pixels: int) -> None:
    batch = [random_objects(9, SIZE, 4), random_objects(0, SIZE, 1), random_objects(30, SIZE, 5)]
    _, one_by_one = targets_of(batch)
    monkeypatch.setattr(orientation, "paint", painting.paint_at_once)
    monkeypatch.setattr(painting, "MAX_PIXELS", max_pixels)
    _, at_once = targets_of(batch)
    torch.testing.assert_close(at_once.vectors, one_by_one.vectors, rtol=0, atol=2e-5)
    assert torch.equal(at_once.is_positive, one_by_one.is_positive)
    assert torch.equal(at_once.is_negative, one_by_one.is_negative)


def test_the_base_position_in_a_hole_points_to_the_right_border(monkeypatch: pytest.MonkeyPatch) -> None:
    # A box from 40 to 120: its centre is a whole number, and lies in the hole.
    ring = np.zeros(SIZE, dtype=bool)
    ring[40:120, 40:120] = True
    ring[60:100, 60:100] = False
    for way in (painting.paint_one_by_one, painting.paint_at_once):
        monkeypatch.setattr(orientation, "paint", way)
        objects, targets = targets_of([instances_of([ring], SIZE)])
        vector = targets.vectors[:, 0, 80, 80] * torch.tensor(RULE.anchors_px)[objects.anchors[0]] / 2
        reach = float(valid_areas(objects, RULE).reach_px[0, 0])
        assert targets.is_negative[0, 80, 80]
        torch.testing.assert_close(vector, torch.tensor([reach, 0.0]))


@BASES
def test_positive_pixels_point_to_the_base_and_negative_ones_to_the_border(base_position: str) -> None:
    rule = RULE._replace(base_position=base_position)
    batch = [instances_of([blob(SIZE, (170, 140), 60)], SIZE)]
    objects, targets = targets_of(batch, rule)
    areas = valid_areas(objects, rule)
    half_anchor = torch.tensor(rule.anchors_px)[objects.anchors[0]] / 2
    pixels = torch.stack(torch.meshgrid(torch.arange(SIZE[1]), torch.arange(SIZE[0]), indexing="xy"), dim=2)
    ends = pixels + targets.vectors[:, 0].permute(1, 2, 0) * half_anchor
    at_base = ends[targets.is_positive[0]]
    torch.testing.assert_close(at_base, areas.base_px.expand_as(at_base), rtol=0, atol=1e-3)
    negative = targets.is_negative[0]
    reached = ((ends[negative] - areas.base_px).abs() / areas.reach_px).amax(dim=1)
    # The area's border lies between pixels: the outermost ones may lie beyond it, and stay where they are.
    own = ((pixels[negative] - areas.base_px).abs() / areas.reach_px).amax(dim=1)
    assert float(((own - 1) * areas.reach_px.amin()).max()) <= 0.5
    torch.testing.assert_close(reached, own.clamp(min=1), rtol=0, atol=1e-4)


def perfect_detections(objects: Objects, base_position: str) -> Detections:
    bases, scores = objects.base_px(base_position), torch.ones(len(objects.anchors))
    return Detections(objects.boxes, bases, scores, objects.classes, objects.anchors)


def maps_of(targets: OrientationTargets, num_anchors: int = 9) -> torch.Tensor:
    """(2 A, H, W) maps of image 0, pixels without a target pointing far away."""
    maps = torch.full((num_anchors, 2, *SIZE), 1e4)
    for pair, anchor in enumerate(targets.anchor.tolist()):
        has_target = targets.is_positive[pair] | targets.is_negative[pair]
        maps[anchor] = torch.where(has_target, targets.vectors[:, pair], 1e4)
    return maps.flatten(0, 1)


def decode_at_full_size(maps: torch.Tensor, detections: Detections, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Masks from maps that are not reduced by 4."""
    monkeypatch.setattr("orienmask.decode.MAP_STRIDE", 1)
    anchors = torch.tensor(RULE.anchors_px, dtype=torch.float32)
    masks = orientation_masks(maps, anchors, detections, input_size=SIZE, output_size=SIZE, tau=0.6, budget_mb=16)
    return np.asarray(masks)


def apart() -> list[np.ndarray]:
    ring = blob(SIZE, (270, 70), 45) & ~blob(SIZE, (270, 70), 15, seed=3)
    two_parts = blob(SIZE, (70, 220), 18, seed=1) | blob(SIZE, (118, 200), 14, seed=2)
    return [blob(SIZE, (80, 80), 50), ring, two_parts, blob(SIZE, (270, 215), 30)]


@BASES
def test_ground_truth_maps_give_the_ground_truth_masks_back(
    base_position: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = [instances_of(apart(), SIZE)]
    objects, targets = targets_of(batch, RULE._replace(base_position=base_position))
    masks = decode_at_full_size(maps_of(targets), perfect_detections(objects, base_position), monkeypatch)
    assert np.array_equal(masks, batch[0].gt_masks.tensor[objects.order].numpy())


@BASES
def test_swapped_anchors_give_other_masks(base_position: str, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = [instances_of(apart(), SIZE)]
    objects, targets = targets_of(batch, RULE._replace(base_position=base_position))
    assert len(objects.anchors.unique()) > 1
    swapped = list(range(9))
    first, second = objects.anchors.unique()[:2].tolist()
    swapped[first], swapped[second] = second, first
    maps = maps_of(targets).view(9, 2, *SIZE)[swapped].flatten(0, 1)
    masks = decode_at_full_size(maps, perfect_detections(objects, base_position), monkeypatch)
    truth = batch[0].gt_masks.tensor[objects.order].numpy()
    hurt = np.isin(objects.anchors.numpy(), [first, second])
    overlap = (masks & truth).sum(axis=(1, 2)) / (masks | truth).sum(axis=(1, 2))
    assert overlap[hurt].max() < 0.5
    assert (overlap[~hurt] == 1).all()


@pytest.mark.parametrize(("overlap_order", "winner"), [("large_first", 1), ("given", 2)])
def test_the_last_object_in_the_order_has_a_shared_pixel(overlap_order: str, winner: int) -> None:
    rule = RULE._replace(overlap_order=overlap_order)
    # Three sizes of one anchor around one pixel, the smallest in the middle of the list.
    masks = [blob(SIZE, (150 + shift, 140), radius) for shift, radius in ((0, 60), (3, 55), (-4, 64))]
    objects, targets = targets_of([instances_of(masks, SIZE)], rule)
    assert len(objects.anchors.unique()) == 1
    assert int(objects.order[-1]) == winner
    half_anchor = torch.tensor(rule.anchors_px)[objects.anchors[0]] / 2
    end = torch.tensor([150.0, 140.0]) + targets.vectors[:, 0, 140, 150] * half_anchor
    torch.testing.assert_close(end, objects.boxes[-1, :2], rtol=0, atol=1e-3)


def test_orientation_targets_of_images_of_several_sizes_stay_inside_their_image() -> None:
    small = (192, 224)
    batch = [instances_of([blob(small, (215, 180), 40)], small), random_objects(4, SIZE, 7)]
    _, targets = targets_of(batch)
    for pair in (targets.image == 0).nonzero().flatten().tolist():
        has_target = targets.is_positive[pair] | targets.is_negative[pair]
        assert not has_target[small[0] :].any()
        assert not has_target[:, small[1] :].any()
        assert has_target[small[0] - 1].any()


def test_orientation_targets_without_objects_are_empty() -> None:
    _, targets = targets_of([random_objects(0, SIZE, 1)])
    assert targets.vectors.shape == (2, 0, *SIZE)
    assert targets.is_positive.shape == targets.is_negative.shape == (0, *SIZE)
