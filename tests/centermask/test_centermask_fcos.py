"""CenterMask-FCOS's own parts: targets and the draw among them, shapes over levels, saliency, losses, config errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from torch import Tensor
from torch.nn import functional

from centermask.centermask_fcos import CenterMaskFCOS
from centermask.fcos_head import FCOSMaskMaps
from centermask.fcos_targets import draw_positives, fcos_targets
from centermask.saliency import SaliencyBranch
from segzoo.errors import ConfigError
from segzoo.modeling.fcos.assign import assign_batch
from segzoo.modeling.fcos.locations import compute_locations, map_sizes
from tests.contract.toys import NUM_CLASSES, ellipse, losses_and_gradients, make_input, toy_config

SIZE = (64, 96)
STRIDES = (8, 16, 32, 64, 128)


def build_toy(*options: Any) -> CenterMaskFCOS:
    torch.manual_seed(1)
    model = build_model(toy_config("CenterMaskFCOS", *options))
    assert isinstance(model, CenterMaskFCOS)
    return model


def two_images() -> list[dict]:
    masks = [ellipse(SIZE, (40, 30), (22, 17)), ellipse(SIZE, (70, 40), (12, 20)), ellipse(SIZE, (15, 50), (9, 9))]
    return [make_input(SIZE, masks, 0), make_input(SIZE, masks[:1], 1)]


def test_targets_name_the_ground_truth_of_every_positive() -> None:
    instances = [sample["instances"] for sample in two_images()]
    locations = compute_locations([(8, 12), (4, 6), (2, 3), (1, 2), (1, 1)], STRIDES, torch.device("cpu"))
    found = fcos_targets(locations, instances, NUM_CLASSES, [16, 64, 128, 256], center_radius=0.0)
    boxes, classes = torch.cat([i.gt_boxes.tensor for i in instances]), torch.cat([i.gt_classes for i in instances])
    matched = assign_batch(locations, [16, 64, 128, 256], boxes, [3, 1])
    assert len(found.positives) >= 20
    assert found.classes.tolist() == [int(classes[m]) if m >= 0 else NUM_CLASSES for m in matched]
    for row, positive in enumerate(found.positives.tolist()):
        assert found.owners[row] == matched[positive] >= 0
        x, y = locations.points_px[positive % len(locations.points_px)].tolist()
        x0, y0, x1, y1 = boxes[matched[positive]].tolist()
        assert found.box_distances_px[row].tolist() == pytest.approx([x - x0, y - y0, x1 - x, y1 - y])


def pixel(x: int, y: int) -> np.ndarray:
    mask = np.zeros(SIZE, dtype=bool)
    mask[y, x] = True
    return mask


# The rules are those of centermask/fcos_targets.py; of how many objects a location is.
WIDE, SMALL = ellipse(SIZE, (48, 32), (30, 22)), ellipse(SIZE, (48, 32), (13, 13))
HARD = {
    "no objects": ([], 0),
    "a pixel": ([pixel(61, 33)], 0),
    "one centre": ([WIDE, SMALL], 2),
    "one place": ([SMALL, SMALL], 1),
}


def one_class(masks: list[np.ndarray]) -> dict:
    sample = make_input(SIZE, masks)
    sample["instances"].gt_classes.zero_()
    return sample


@pytest.mark.parametrize("kind", HARD)
def test_hard_batches_give_finite_losses_and_gradients(kind: str) -> None:
    masks, num_trained = HARD[kind]
    sample = one_class(masks)
    model = build_toy()
    losses = losses_and_gradients(model, [sample, sample])
    for part in ("box", "centerness", "mask"):
        assert (float(losses[f"loss_{part}"]) > 0) == (num_trained > 0), part
    assert min(float(losses["loss_cls"]), float(losses["loss_saliency"])) > 0
    # Of a cell the shares of all objects, 1 at most: a pixel is a sixteenth.
    total = np.sum([np.zeros(SIZE), *masks], axis=0).reshape(SIZE[0] // 4, 4, SIZE[1] // 4, 4).mean(axis=(1, 3))
    assert float(model.running_foreground) == pytest.approx(2 * total.clip(max=1).sum())


@pytest.mark.parametrize("kind", HARD)
def test_of_two_objects_around_a_location_the_smaller_or_the_first_has_it(kind: str) -> None:
    masks, num_trained = HARD[kind]
    instances = one_class(masks)["instances"]
    locations = compute_locations([(8, 12), (4, 6), (2, 3), (1, 2), (1, 1)], STRIDES, torch.device("cpu"))
    found = fcos_targets(locations, [instances], NUM_CLASSES, [64, 128, 256, 512], center_radius=0.0)
    assert found.owners.unique().tolist() == list(range(num_trained))
    areas = instances.gt_boxes.area()
    for positive, owner in zip(found.positives.tolist(), found.owners.tolist()):
        x, y = locations.points_px[positive].tolist()
        boxes = instances.gt_boxes.tensor.tolist()
        around = [i for i, (x0, y0, x1, y1) in enumerate(boxes) if x0 < x < x1 and y0 < y < y1]
        assert owner == min(around, key=lambda i: (float(areas[i]), i))


def test_draw_positives_keeps_all_of_few_and_draws_of_many_by_the_images_seed() -> None:
    images = torch.tensor([0] * 5 + [2] * 200 + [3] * 100)
    drawn = draw_positives(images, [1, 2, 3, 4], 20)
    assert torch.equal(drawn, drawn.unique())
    assert torch.bincount(images[drawn]).tolist() == [5, 0, 20, 20]
    assert drawn[:5].tolist() == list(range(5))
    # Other images and their seeds change nothing.
    alone = draw_positives(torch.zeros(200).long(), [3], 20)
    assert torch.equal(drawn[5:25] - 5, alone)
    assert not torch.equal(draw_positives(torch.zeros(200).long(), [4], 20), alone)
    assert torch.equal(draw_positives(images, [1, 2, 3, 4], 200), torch.arange(305))
    assert len(draw_positives(images[:0], [1, 2], 20)) == 0


def test_draw_positives_has_no_preference() -> None:
    counts = np.zeros(30)
    for seed in range(600):
        counts[draw_positives(torch.zeros(30).long(), [seed], 10).numpy()] += 1
    assert (np.abs(counts / 600 - 1 / 3) < 0.08).all()


def test_shapes_of_all_levels_equal_the_dense_convolution() -> None:
    head = build_toy("MODEL.CENTERMASK_FCOS.SHAPE_SIZE", 3).head
    features = [torch.randn(2, 64, *size) for size in ((8, 12), (4, 6), (2, 3), (1, 2), (1, 1))]
    levels, images = torch.tensor([4, 0, 2, 0, 3, 0]), torch.tensor([1, 0, 1, 1, 0, 0])
    cells = torch.tensor([[0, 0], [0, 7], [2, 1], [11, 3], [1, 0], [5, 5]])
    found = head.shapes_at(features, levels, images, cells)
    assert found is not None
    assert head.shape_pred is not None
    for row, (level, image, (x, y)) in enumerate(zip(levels.tolist(), images.tolist(), cells.tolist(), strict=True)):
        expected = head.shape_pred(features[level])[image, :, y, x].view(3, 3)
        torch.testing.assert_close(found[row], expected, rtol=0, atol=1e-5)


def test_shapes_are_taken_at_the_cells_of_their_locations(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_toy()
    sizes = [(8, 12), (4, 6), (2, 3), (1, 2), (1, 1)]
    locations = compute_locations(sizes, STRIDES, torch.device("cpu"))
    seen: list[tuple[int, int, int]] = []
    monkeypatch.setattr(
        model.head,
        "shapes_at",
        lambda _, levels, images, cells: seen.extend(zip(levels.tolist(), *cells.T.tolist(), strict=True)),
    )
    index = torch.arange(len(locations.points_px))
    model._shapes_at(FCOSMaskMaps([], [], [], []), locations, index, index)
    assert seen == [(level, x, y) for level, (height, width) in enumerate(sizes) for y, x in np.ndindex(height, width)]


def test_saliency_is_the_prediction_of_the_enlarged_feature() -> None:
    branch = SaliencyBranch(channels=32, num_convs=1, norm="GN", num_outputs=3, prior_prob=0.01, enlargement=2)
    features = [torch.randn(2, 32, *size) for size in ((8, 12), (4, 6), (2, 3))]
    found = branch(features)
    assert found.shape == (2, 3, 16, 24)
    enlarge = {"mode": "bilinear", "align_corners": False}
    middle = features[1] + functional.interpolate(features[2], size=(4, 6), **enlarge)
    total = branch.tower(features[0] + functional.interpolate(middle, size=(8, 12), **enlarge))
    expected = branch.pred(functional.interpolate(total, size=(16, 24), **enlarge))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert float(found.detach().sigmoid().mean()) == pytest.approx(0.01, rel=0.2)


@pytest.mark.parametrize(
    "options",
    [
        ("SALIENCY", "class_agnostic"),
        ("SALIENCY", "none", "SALIENCY_LOSS_WEIGHT", "0.0"),
        ("SHAPE_ON", "False"),
        ("SALIENCY_LOSS_WEIGHT", "0.0"),
        ("MAX_MASKS", "3"),
    ],
)
def test_every_variant_trains_with_and_without_objects_and_gives_masks(options: tuple[str, ...]) -> None:
    words = [word if index % 2 else f"MODEL.CENTERMASK_FCOS.{word}" for index, word in enumerate(options)]
    model = build_toy(*words)
    losses = losses_and_gradients(model, two_images())
    assert ("loss_saliency" in losses) == (options[-2:] != ("SALIENCY_LOSS_WEIGHT", "0.0"))
    empty = losses_and_gradients(model, [make_input(SIZE, [], 3)])
    assert float(empty["loss_mask"]) == 0.0 < float(losses["loss_mask"])
    model.eval()
    model.decode_rule = model.decode_rule._replace(score_threshold=0.0)
    with torch.no_grad():
        (output,) = model([make_input(SIZE, [], height=50, width=70)])
    assert output["instances"].pred_masks.to_tensor().shape == (100, 50, 70)


def mask_losses(max_masks: int, seeds: tuple[int, int]) -> float:
    batch = [sample | {"draw_seed": seed} for sample, seed in zip(two_images(), seeds, strict=True)]
    model = build_toy("MODEL.CENTERMASK_FCOS.MAX_MASKS", max_masks).train()
    with torch.no_grad():
        return float(model(batch)["loss_mask"])


def test_the_draw_of_masks_follows_the_samples_seeds_and_no_other_state() -> None:
    torch.rand(5)
    assert mask_losses(3, (7, 8)) == mask_losses(3, (7, 8))
    assert mask_losses(3, (7, 8)) != mask_losses(3, (9, 8))
    assert mask_losses(1000, (7, 8)) == mask_losses(1000, (9, 8))


def test_the_mask_loss_is_weighted_by_centerness(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = build_toy(), two_images()
    locations = compute_locations([(8, 12), (4, 6), (2, 3), (1, 2), (1, 1)], STRIDES, torch.device("cpu"))
    targets = fcos_targets(
        *(locations, [sample["instances"] for sample in batch], NUM_CLASSES, model.sizes_of_interest), center_radius=0.0
    )
    # A loss that tells whose it is.
    monkeypatch.setattr("centermask.centermask_fcos.mask_loss", lambda *given: 1.0 + given[-1])
    with torch.no_grad():
        loss = float(model.train()(batch)["loss_mask"])
    left, top, right, bottom = targets.box_distances_px.T
    low, high = torch.minimum, torch.maximum
    weights = (low(left, right) / high(left, right) * low(top, bottom) / high(top, bottom)).sqrt()
    assert loss == pytest.approx(float(((1 + targets.owners) * weights).sum() / weights.sum()), rel=1e-5)


@pytest.mark.parametrize("sign", [1e4, -1e4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=["fp16", "bf16", "fp32"])
def test_case_33_losses_and_gradients_of_extreme_maps_are_finite(dtype: torch.dtype, sign: float) -> None:
    model = build_toy().train()
    with torch.no_grad():
        maps = model.dense_outputs(torch.zeros(2, 3, *SIZE))

    def extreme(values: Tensor) -> Tensor:
        return torch.full_like(values, sign).to(dtype).requires_grad_()

    assert maps.saliency is not None
    columns = [[extreme(values) for values in column] for column in maps[:3]]
    leaves = FCOSMaskMaps(*columns, maps.box_features, extreme(maps.saliency))
    batch = two_images()
    locations = compute_locations(map_sizes(maps.cls_logits), model.strides, model.device)
    # On a CPU there is no autocast to fp16: its maps are given as they would come.
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        losses = model.losses(leaves, locations, [sample["instances"] for sample in batch], [0, 0])
    assert all(loss.dtype == torch.float32 and torch.isfinite(loss) for loss in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    assert leaves.saliency is not None
    assert leaves.saliency.grad is not None
    assert leaves.saliency.grad.isfinite().all()
    assert leaves.saliency.grad.any()


def test_batches_without_objects_keep_the_saliencys_divisor() -> None:
    model = build_toy()
    losses_and_gradients(model, two_images())
    foreground = float(model.running_foreground)
    assert foreground > 10
    losses_and_gradients(model, [make_input(SIZE, [], 3)])
    assert float(model.running_foreground) == foreground
    assert "running_foreground" in model.state_dict()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("SHAPE_SIZE", "1"), "SHAPE_SIZE is 1"),
        (("MAX_MASKS", "0"), "MAX_MASKS is 0"),
        (("MASK_THRESH", "1.0"), "MASK_THRESH is 1.0"),
        (("SALIENCY_PRIOR", "0.0"), "SALIENCY_PRIOR is 0.0"),
        (("MASK_LOSS_WEIGHT", "-1.0"), "MASK_LOSS_WEIGHT is -1.0"),
        (("SALIENCY", "global"), "use one of class_specific"),
        (("SALIENCY", "none"), "SALIENCY_LOSS_WEIGHT is 1.0, but SALIENCY is 'none'"),
        (("SALIENCY", "none", "SHAPE_ON", "False"), "nothing is left"),
        (("SALIENCY_FEATURES", "['p2', 'p3']"), "SALIENCY_FEATURES"),
        (("SALIENCY_FEATURES", "['p4', 'p5']"), "begin with 'p3'"),
        (("SALIENCY_FEATURES", "['p3', 'p5', 'p4']"), "strides"),
        (("SALIENCY_FEATURES", "[]"), "SALIENCY_FEATURES"),
    ],
)
def test_impossible_values_are_refused(options: tuple[str, ...], text: str) -> None:
    words = [word if index % 2 else f"MODEL.CENTERMASK_FCOS.{word}" for index, word in enumerate(options)]
    with pytest.raises(ConfigError, match=r"MODEL\.CENTERMASK_FCOS") as error:
        build_toy(*words)
    assert text in str(error.value)
