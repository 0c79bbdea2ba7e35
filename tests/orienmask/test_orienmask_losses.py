"""Box targets and all losses of OrienMask against a float64 program prediction by prediction, for both models."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.structures import Instances
from torch.nn import functional

from orienmask.anchors import flatten_predictions, list_predictions, to_corners
from orienmask.losses import PixelCounts, box_losses, count_pixels, orientation_losses
from orienmask.orientation import orientation_targets
from orienmask.targets import (
    BoxTargets,
    Objects,
    TargetRule,
    assign_anchors,
    box_targets,
    objectness_negatives,
)
from tests.orienmask import oracle
from tests.orienmask.objects import RULE, blob, instances_of, map_sizes, random_objects

SIZE, NUM_CLASSES, NUM_ANCHORS = (96, 128), 4, 3
# Small anchors, so that all three levels have objects.
ANCHORS = [[8, 8], [14, 10], [10, 16], [20, 20], [34, 22], [24, 36], [48, 40], [44, 70], [90, 80]]
FINAL = RULE._replace(anchors_px=ANCHORS)
BASE = FINAL._replace(base_position="grid")
BOTH = pytest.mark.parametrize("rule", [FINAL, BASE], ids=["final", "base"])


def make_batch() -> list[Instances]:
    rng = np.random.default_rng(0)
    batch = [random_objects(6, SIZE, 1, max_radius=45), random_objects(0, SIZE, 2), random_objects(9, SIZE, 3, 30)]
    for instances in batch:
        instances.gt_classes = torch.from_numpy(rng.integers(0, NUM_CLASSES, len(instances)))
    return batch


def make_maps(scale: float = 1.0) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Raw box maps of a batch of three, and orientation maps, in float64."""
    channels = NUM_ANCHORS * (5 + NUM_CLASSES)
    boxes = [scale * torch.randn(3, channels, *size, dtype=torch.float64) for size in map_sizes(SIZE)]
    return boxes, torch.randn(3, 18, SIZE[0] // 4, SIZE[1] // 4, dtype=torch.float64)


def targets_of(batch: list[Instances], rule: TargetRule) -> tuple[Objects, BoxTargets]:
    objects = assign_anchors(batch, map_sizes(SIZE), rule)
    num_predictions = NUM_ANCHORS * sum(height * width for height, width in map_sizes(SIZE))
    return objects, box_targets(objects, len(batch), num_predictions, NUM_CLASSES, rule)


@BOTH
@pytest.mark.parametrize("ignore_threshold", [0.3, 0.5])
def test_box_losses_equal_the_oracle_at_every_level(rule: TargetRule, ignore_threshold: float) -> None:
    batch, (maps, _) = make_batch(), make_maps(0.5)
    objects, targets = targets_of(batch, rule)
    assert (objects.anchors // NUM_ANCHORS).unique().tolist() == [0, 1, 2]
    raw = flatten_predictions(maps, NUM_ANCHORS)
    places = list_predictions(map_sizes(SIZE), rule.strides, rule.anchors_px, raw.device)
    is_negative = objectness_negatives(raw, places, targets.positives, batch, ignore_threshold)
    ignored = raw.shape[0] * raw.shape[1] - int(is_negative.sum()) - len(targets.positives)
    assert ignored > 0
    losses = box_losses(raw, targets, is_negative)
    split = [level.view(3, NUM_ANCHORS, 5 + NUM_CLASSES, *level.shape[-2:]).numpy() for level in maps]
    expected = oracle.box_losses(split, batch, rule, ignore_threshold)
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        assert float(losses[name]) == pytest.approx(value, rel=1e-5), name


@BOTH
def test_orientation_losses_equal_the_oracle_in_value_and_gradient(rule: TargetRule) -> None:
    batch, (_, maps) = make_batch(), make_maps()
    objects, targets = targets_of(batch, rule)
    painted = orientation_targets(objects, batch, SIZE, 9, rule)
    levels = objects.anchors[targets.owners] // NUM_ANCHORS
    ours = maps.clone().requires_grad_()
    losses = orientation_losses(ours, painted, count_pixels(painted, levels, NUM_ANCHORS, 3), NUM_ANCHORS)
    torch.stack(list(losses.values())).sum().backward()
    theirs = maps.clone().requires_grad_()
    enlarged = functional.interpolate(theirs, size=SIZE, mode="bilinear", align_corners=False).view(3, 9, 2, *SIZE)
    expected = oracle_orientation_losses(enlarged, batch, rule, levels.bincount(minlength=3).tolist())
    for name, value in zip(("loss_orien_pos", "loss_orien_neg"), expected, strict=True):
        assert float(losses[name].detach()) == pytest.approx(float(value.detach()), rel=1e-5)
    torch.stack(expected).sum().backward()
    assert theirs.grad is not None
    scale = float(theirs.grad.abs().max())
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-4 * scale)


def oracle_orientation_losses(
    enlarged: torch.Tensor, batch: list[Instances], rule: TargetRule, objects: list[int]
) -> list[torch.Tensor]:
    """Positive and negative loss: on each level a mean over pixels times the number of objects, summed over levels."""
    sums, pixels = torch.zeros(2, 3, dtype=torch.float64), torch.zeros(2, 3)
    for image, instances in enumerate(batch):
        for anchor, (vectors, *masks) in oracle.orientation_maps(instances, rule).items():
            target = torch.from_numpy(vectors).permute(2, 0, 1)
            for kind, mask in enumerate(masks):
                chosen = torch.from_numpy(mask)
                difference = (enlarged[image, anchor] - target)[:, chosen].abs()
                loss = torch.where(difference < 1, difference.square() / 2, difference - 0.5).sum()
                sums = sums.index_put((torch.tensor([kind]), torch.tensor([anchor // 3])), loss[None], accumulate=True)
                pixels[kind, anchor // 3] += chosen.sum()
    return list((sums / pixels.clamp(min=1) * torch.tensor(objects)).sum(dim=1))


def test_means_over_ranks_scale_the_orientation_losses() -> None:
    batch, (_, maps) = make_batch(), make_maps()
    objects, targets = targets_of(batch, FINAL)
    painted = orientation_targets(objects, batch, SIZE, 9, FINAL)
    counts = count_pixels(painted, objects.anchors[targets.owners] // NUM_ANCHORS, NUM_ANCHORS, 3)
    own = orientation_losses(maps, painted, counts, NUM_ANCHORS)
    shared = PixelCounts(counts.positive * 2, counts.negative * 4, counts.objects)
    other = orientation_losses(maps, painted, shared, NUM_ANCHORS)
    assert float(other["loss_orien_pos"]) == pytest.approx(float(own["loss_orien_pos"]) / 2)
    assert float(other["loss_orien_neg"]) == pytest.approx(float(own["loss_orien_neg"]) / 4)


def test_objects_that_share_a_cell_leave_the_last_box_and_all_classes() -> None:
    masks = [blob(SIZE, (60, 50), radius) for radius in (21, 19, 20)]
    batch = [instances_of(masks, SIZE, classes=[2, 0, 3])]
    for order, owner in (("large_first", 1), ("given", 2)):
        objects, targets = targets_of(batch, FINAL._replace(overlap_order=order))
        assert len(targets.positives) == 1
        assert int(objects.order[targets.owners[0]]) == owner
        assert targets.classes[0].tolist() == [1.0, 0.0, 1.0, 1.0]


def test_an_object_takes_the_first_of_equally_good_anchors() -> None:
    rule = FINAL._replace(anchors_px=[[10, 10]] * 9)
    objects, _ = targets_of([instances_of([blob(SIZE, (60, 50), 20)], SIZE)], rule)
    assert objects.anchors.tolist() == [0]


def test_an_object_at_the_last_pixel_is_in_the_last_cell() -> None:
    mask = np.zeros(SIZE, dtype=bool)
    mask[-1, -1] = True
    objects, targets = targets_of([instances_of([mask], SIZE)], FINAL)
    assert objects.cells.tolist() == [[SIZE[1] // 8 - 1, SIZE[0] // 8 - 1]]
    assert torch.isfinite(targets.log_sizes).all()
    assert ((targets.offsets >= 0) & (targets.offsets < 1)).all()


@pytest.mark.parametrize("logit", [-1e4, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_case_33_losses_stay_finite_at_wild_logits(logit: float, dtype: torch.dtype) -> None:
    batch = make_batch()
    maps = [torch.full_like(level, logit).to(dtype) for level in make_maps()[0]]
    _, targets = targets_of(batch, FINAL)
    raw = flatten_predictions(maps, NUM_ANCHORS)
    places = list_predictions(map_sizes(SIZE), FINAL.strides, FINAL.anchors_px, raw.device)
    is_negative = objectness_negatives(raw, places, targets.positives, batch, 0.7)
    for name, value in box_losses(raw, targets, is_negative).items():
        assert torch.isfinite(value), name


@pytest.mark.parametrize("column", [0, 2, 4])
def test_a_nan_beside_objects_is_a_negative_and_spoils_the_loss(column: int) -> None:
    batch, (maps, _) = make_batch(), make_maps()
    _, targets = targets_of(batch, FINAL)
    raw = flatten_predictions(maps, NUM_ANCHORS)
    free = int((~torch.isin(torch.arange(raw.shape[1]), targets.positives)).nonzero()[0])
    raw[0, free, [column, 4]] = float("nan")
    places = list_predictions(map_sizes(SIZE), FINAL.strides, FINAL.anchors_px, raw.device)
    is_negative = objectness_negatives(raw, places, targets.positives, batch, 0.5)
    assert is_negative[0, free]
    assert torch.isnan(box_losses(raw, targets, is_negative)["loss_noobj"])


def test_cells_in_the_padding_are_no_negatives() -> None:
    small = (48, 72)
    batch = [instances_of([blob(small, (30, 24), 15)], small), instances_of([blob(SIZE, (90, 50), 30)], SIZE)]
    _, targets = targets_of(batch, FINAL)
    places = list_predictions(map_sizes(SIZE), FINAL.strides, FINAL.anchors_px, torch.device("cpu"))
    raw = torch.zeros(2, len(places.anchors), 5 + NUM_CLASSES)
    is_negative = objectness_negatives(raw, places, targets.positives, batch, 1.0)
    corners = places.cells * places.strides[:, None]
    is_inside = (corners[:, 0] < small[1]) & (corners[:, 1] < small[0])
    assert torch.equal(is_negative[0] | (targets.positives[0] == torch.arange(len(is_inside))), is_inside)
    assert int((~is_negative[1]).sum()) == len(targets.positives) - 1


def test_a_box_without_an_extent_has_finite_targets() -> None:
    instances = instances_of([blob(SIZE, (60, 50), 20)], SIZE)
    instances.gt_boxes.tensor[0, 2] = instances.gt_boxes.tensor[0, 0]
    _, targets = targets_of([instances], FINAL)
    assert torch.isfinite(targets.log_sizes).all()


def test_a_prediction_over_an_object_of_another_scale_is_no_negative() -> None:
    batch = [instances_of([blob(SIZE, (60, 50), 20)], SIZE)]
    objects, targets = targets_of(batch, FINAL)
    places = list_predictions(map_sizes(SIZE), FINAL.strides, FINAL.anchors_px, torch.device("cpu"))
    raw = torch.zeros(1, len(places.anchors), 5 + NUM_CLASSES)
    other = int(((places.anchors == 8) & (places.cells == torch.tensor([1, 1])).all(dim=1)).nonzero()[0])
    assert int(objects.anchors[0]) != 8
    center = objects.boxes[0, :2] / 32 - 1
    raw[0, other, :2] = (center / (1 - center)).log()
    raw[0, other, 2:4] = (objects.boxes[0, 2:] / torch.tensor(ANCHORS[8])).log()
    is_negative = objectness_negatives(raw, places, targets.positives, batch, 0.7)
    assert not is_negative[0, other]
    assert to_corners(objects.boxes).shape == (1, 4)
