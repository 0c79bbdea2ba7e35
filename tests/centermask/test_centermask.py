"""The meta-architecture: which maps it is trained on and tested with, hard batches, and maps that are right."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Instances

from centermask.centermask import CenterMask
from centermask.heads import CenterHead, FeatureSum
from centermask.maps import CenterMaps
from centermask.objective import build_targets
from tests.centermask.center_oracle import focal_of, heatmap_of, list_objects, masks_to_instances
from tests.contract.toys import ellipse, keep_norm_statistics, losses_and_gradients, make_input, toy_config

SIZE, MAP_SIZE, NUM_CLASSES = (96, 128), (24, 32), 3
LOSSES = {"loss_heatmap", "loss_offset", "loss_size", "loss_mask", "loss_saliency"}


def toy(name: str = "CenterMask", **changes: Any) -> CenterMask:
    options = [word for key, value in changes.items() for word in (f"MODEL.CENTERMASK.{key}", value)]
    torch.manual_seed(1)
    model = build_model(toy_config(name, *options))
    assert isinstance(model, CenterMask)
    return model


def two_objects() -> list[np.ndarray]:
    return [ellipse(SIZE, (40, 50), (30, 22)), ellipse(SIZE, (95, 40), (18, 30))]


# What a mask is made of: the losses and the heads that are there.
PARTS = {
    "both": ({}, LOSSES, {"shape", "saliency"}),
    "agnostic": ({"SALIENCY": "class_agnostic"}, LOSSES, {"shape", "saliency"}),
    "no direct supervision": ({"SALIENCY_LOSS_WEIGHT": 0.0}, LOSSES - {"loss_saliency"}, {"shape", "saliency"}),
    "saliency alone": ({"SHAPE_ON": False}, LOSSES, {"saliency"}),
    "shape alone": ({"SALIENCY": "none", "SALIENCY_LOSS_WEIGHT": 0.0}, LOSSES - {"loss_saliency"}, {"shape"}),
    "predicted crops": ({"CROP_BOXES": "predicted"}, LOSSES, {"shape", "saliency"}),
}


@pytest.mark.parametrize("parts", PARTS)
def test_every_choice_of_parts_trains_and_detects(parts: str) -> None:
    changes, losses, heads = PARTS[parts]
    model = toy(**changes)
    for batch in ([make_input(SIZE, two_objects(), 0), make_input(SIZE, [], 1)], [make_input(SIZE, [], 0)]):
        assert set(losses_and_gradients(model, batch)) == losses
    head = model.heads[0]
    assert isinstance(head, CenterHead)
    assert {name for name in ("shape", "saliency") if getattr(head, name) is not None} == heads
    torch.nn.init.constant_(head.size[2].bias, 6.0)
    with torch.no_grad():
        (found,) = model.eval()([make_input(SIZE, [])])
    assert len(found["instances"].pred_masks) == len(found["instances"].scores) > 0


def test_losses_are_the_mean_of_those_of_the_supervised_stacks() -> None:
    model = keep_norm_statistics(toy("CenterMask-stacks"))
    batch = [make_input(SIZE, two_objects())]
    instances = [sample["instances"] for sample in batch]
    maps = model.dense_outputs(model.preprocessor(batch).tensor)
    assert len(maps) == len(model.heads) == 2
    both = model.losses(maps, instances)
    heads, single = model.heads, []
    for head, own in zip(heads, maps, strict=True):
        model.heads = torch.nn.ModuleList([head])
        single.append({name: value.item() for name, value in model.losses([own], instances).items()})
    for name, value in both.items():
        assert value.item() == pytest.approx((single[0][name] + single[1][name]) / 2, rel=1e-5)
        assert single[0][name] != single[1][name]


def test_at_test_the_last_stack_alone_has_maps() -> None:
    model = toy("CenterMask-stacks").eval()
    images = torch.rand(1, 3, *SIZE)
    with torch.no_grad():
        (maps,) = model.dense_outputs(images)
        last = model.heads[1](model.backbone(images)["stack1"])
    assert torch.equal(maps.heatmap, last.heatmap)


def test_heatmap_loss_of_the_model_is_the_oracle_s_by_peaks() -> None:
    model = keep_norm_statistics(toy())
    batch = [make_input(SIZE, two_objects(), 0), make_input(SIZE, [], 1)]
    instances = [sample["instances"] for sample in batch]
    with torch.no_grad():
        (maps,) = model.dense_outputs(model.preprocessor(batch).tensor)
        losses = model.losses([maps], instances)
    heatmap = np.stack([heatmap_of(list_objects(one, MAP_SIZE, 128), NUM_CLASSES, MAP_SIZE) for one in instances])
    assert float(losses["loss_heatmap"]) == pytest.approx(focal_of(maps.heatmap.numpy(), heatmap) / 2, rel=1e-4)


def pixel(x: int, y: int) -> np.ndarray:
    mask = np.zeros(SIZE, dtype=bool)
    mask[y, x] = True
    return mask


# The rules are those of centermask/targets.py.
HARD = {
    "no objects": [],
    "a pixel": [pixel(61, 33)],
    "a pixel in the last cell": [pixel(127, 95)],
    "one centre": [ellipse(SIZE, (60, 50), (30, 20)), ellipse(SIZE, (60, 50), (12, 12))],
}


@pytest.mark.parametrize("name", ["CenterMask", "CenterMask-stacks"])
@pytest.mark.parametrize("kind", HARD)
def test_hard_batches_give_finite_losses_and_gradients(kind: str, name: str) -> None:
    sample = make_input(SIZE, HARD[kind])
    # All of one class.
    sample["instances"].gt_classes.zero_()
    model = toy(name)
    losses = losses_and_gradients(model, [sample, sample])
    is_trained = kind in ("a pixel", "one centre")
    for part in ("offset", "size", "mask"):
        assert (float(losses[f"loss_{part}"]) > 0) == is_trained, part
    assert float(losses["loss_heatmap"]) > 0
    # Two peaks a batch, also where four objects share two.
    assert float(model.running_counts[0]) == (2 if is_trained else 0)


def test_a_batch_without_objects_is_divided_by_what_batches_had_before() -> None:
    model = keep_norm_statistics(toy())
    full, empty = [make_input(SIZE, two_objects())], [make_input(SIZE, [])]
    with torch.no_grad():
        undivided = model(empty)
        assert model.running_counts.tolist() == [0, 0]
        model(full)
        peaks, foreground = model.running_counts.tolist()
        divided = model(empty)
    assert peaks == 2
    assert foreground == pytest.approx(sum(mask.sum() for mask in two_objects()) / 16, rel=1e-5)
    assert float(divided["loss_heatmap"]) == pytest.approx(float(undivided["loss_heatmap"]) / peaks, rel=1e-5)
    assert float(divided["loss_saliency"]) == pytest.approx(float(undivided["loss_saliency"]) / foreground, rel=1e-5)


def test_the_counts_are_in_checkpoints() -> None:
    model = toy()
    model.train()([make_input(SIZE, two_objects())])
    again = toy()
    again.load_state_dict(model.state_dict())
    assert again.running_counts.tolist() == model.running_counts.tolist() != [0, 0]


def test_objects_that_are_not_trained_on_are_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    model = toy(MAX_OBJECTS=1)
    with caplog.at_level(logging.WARNING, logger="centermask"):
        for _ in range(4):
            model.train()([make_input(SIZE, [*two_objects(), pixel(127, 95)])])
    assert (model.left_out.surplus, model.left_out.flat) == (4, 4)
    # At 2 and at 4 of them, then at 8.
    assert [record.name for record in caplog.records].count("centermask.left_out") == 3
    assert "4 objects beyond MODEL.CENTERMASK.MAX_OBJECTS 1 of an image, 4 without" in caplog.text


def right_maps(model: CenterMask, instances: Instances, shape_size: int) -> tuple[CenterMaps, torch.Tensor]:
    """Maps that say what the targets ask for, and (P, S, S) shapes: the masks at the centres of their cells."""
    targets = build_targets([instances], MAP_SIZE, model.objective)
    objects = targets.objects
    heatmap = (targets.heatmap.clamp(1e-4, 0.999)).logit()
    offset, size = torch.zeros(1, 2, *MAP_SIZE), torch.zeros(1, 2, *MAP_SIZE)
    x, y = objects.cells.unbind(dim=1)
    offset[0, :, y, x], size[0, :, y, x] = objects.offsets.T, objects.sizes.T
    assert targets.unions is not None
    saliency = (targets.unions - 0.5) * 20
    masks = instances.gt_masks.tensor[objects.order]
    places = (torch.arange(shape_size) + 0.5) / shape_size
    boxes = objects.boxes * 4
    rows = (boxes[:, 1:2] + places * (boxes[:, 3:4] - boxes[:, 1:2])).long()
    columns = (boxes[:, 0:1] + places * (boxes[:, 2:3] - boxes[:, 0:1])).long()
    inside = masks[torch.arange(len(masks))[:, None, None], rows[:, :, None], columns[:, None]]
    return CenterMaps(heatmap, offset, size, saliency, torch.zeros(1, 1, *MAP_SIZE)), (inside.float() - 0.5) * 20


@pytest.mark.parametrize("output_size", [SIZE, (192, 192)])
def test_right_maps_give_the_objects_back(output_size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy(SCORE_THRESH_TEST=0.5).eval()
    masks = two_objects()
    instances = masks_to_instances(masks, [2, 0], SIZE)
    maps, shapes = right_maps(model, instances, 32)
    order = {0: 1, 2: 0}
    monkeypatch.setattr(
        model, "shapes_of", lambda maps, found, image: shapes[[order[int(label)] for label in found.classes]]
    )
    inputs = [{"height": output_size[0], "width": output_size[1]}]
    (result,) = model.inference(maps, [SIZE], inputs)
    found = result["instances"]
    assert sorted(found.pred_classes.tolist()) == [0, 2]
    scale = torch.tensor([output_size[1] / SIZE[1], output_size[0] / SIZE[0]])
    for label, box, center, mask in zip(
        found.pred_classes.tolist(), found.pred_boxes.tensor, found.pred_centers, found.pred_masks.to_tensor()
    ):
        truth = instances.gt_boxes.tensor[order[label]] * scale.repeat(2)
        torch.testing.assert_close(box, truth, rtol=0, atol=1e-3)
        torch.testing.assert_close(center, (truth[:2] + truth[2:]) / 2, rtol=0, atol=1e-3)
        y, x = np.mgrid[: output_size[0], : output_size[1]] + 0.5
        expected = masks[order[label]][(y / float(scale[1])).astype(int), (x / float(scale[0])).astype(int)]
        assert (mask.numpy() & expected).sum() / (mask.numpy() | expected).sum() > 0.95


def test_feature_sum_adds_interpolated_laterals() -> None:
    fusion = FeatureSum([3, 4, 5], 32)
    features = [torch.rand(1, width, side, side + 2) for width, side in ((3, 8), (4, 4), (5, 2))]
    features[1], features[2] = features[1][..., :5], features[2][..., :3]
    found = fusion(features)
    total = fusion.laterals[2](features[2])
    for level in (1, 0):
        total = torch.nn.functional.interpolate(total, features[level].shape[2:], mode="bilinear")
        total = total + fusion.laterals[level](features[level])
    expected = torch.nn.functional.group_norm(
        torch.nn.functional.conv2d(total, fusion.output.weight, padding=1), 32, fusion.norm.weight, fusion.norm.bias
    ).relu()
    torch.testing.assert_close(found, expected)
    assert found.shape == (1, 32, 8, 10)


def test_heads_begin_with_few_centres_and_little_saliency() -> None:
    model = toy(SALIENCY_PRIOR=0.02).eval()
    with torch.no_grad():
        (maps,) = model.dense_outputs(torch.rand(1, 3, *SIZE))
    assert maps.saliency is not None
    assert 0.07 < float(maps.heatmap.sigmoid().mean()) < 0.13
    assert 0.015 < float(maps.saliency.sigmoid().mean()) < 0.027
