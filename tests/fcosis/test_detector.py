"""FCOS with regularised targets: its losses against FCOS's own and by hand, and FCOSReg as a whole."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Instances
from torch import Tensor

from fcosis.detector import detection_losses, regularized_arguments
from fcosis.fcos_reg import FCOSReg
from fcosis.regularization import location_shares
from fcosis.targets import RegularizedTargets, regularized_targets
from segzoo.errors import ConfigError
from segzoo.modeling.fcos import FCOS
from segzoo.modeling.fcos.head import FCOSMaps
from segzoo.modeling.fcos.locations import Locations, compute_locations
from tests.contract.toys import NUM_CLASSES, ellipse, losses_and_gradients, make_input
from tests.fcosis.batches import KINDS, THIRDS, fcosis_config, hard_batch

SIZE = (128, 192)
STRIDES = (8, 16, 32, 64, 128)
SIZES_OF_INTEREST = [64, 128, 256, 512]
CENTERNESS = (1.0, 0.0, 0.0)
OPTIONS: dict[str, Any] = {"focal_alpha": 0.25, "focal_gamma": 2.0, "normalizer_mode": "local"}


def build_toy(architecture: str, *options: object, regularization: tuple[float, ...] = THIRDS) -> FCOS:
    torch.manual_seed(1)
    model = build_model(fcosis_config(architecture, *options, regularization=regularization))
    assert isinstance(model, FCOS)
    return model


def apart() -> list[dict]:
    """Two images of objects whose boxes do not overlap."""
    masks = [ellipse(SIZE, (40, 30), (35, 25)), ellipse(SIZE, (140, 80), (45, 40)), ellipse(SIZE, (30, 100), (20, 20))]
    return [make_input(SIZE, masks, 0), make_input(SIZE, masks[:1], 1)]


def instances_of(batch: list[dict]) -> list[Instances]:
    return [sample["instances"] for sample in batch]


def find_targets(locations: Locations, instances: list[Instances]) -> RegularizedTargets:
    shares = location_shares([own.gt_masks.tensor for own in instances], locations)
    return regularized_targets(locations, instances, shares, NUM_CLASSES, SIZES_OF_INTEREST)


def random_maps(num_images: int) -> tuple[FCOSMaps, Locations]:
    sizes = [(SIZE[0] // stride, -(-SIZE[1] // stride)) for stride in STRIDES]
    generator = torch.Generator().manual_seed(4)
    columns = [
        [(torch.randn(num_images, channels, *size, generator=generator) + mean).requires_grad_() for size in sizes]
        for channels, mean in ((NUM_CLASSES, -2.0), (4, 3.0), (1, 0.0))
    ]
    return FCOSMaps(*columns), compute_locations(sizes, STRIDES, torch.device("cpu"))


def at_locations(maps: list[Tensor]) -> list[list[float]]:
    """Values of all channels at each of the N * R locations, image by image, level by level, row by row."""
    return [
        level[image, :, y, x].tolist()
        for image in range(len(maps[0]))
        for level in maps
        for y, x in np.ndindex(*level.shape[2:])
    ]


def losses_slowly(maps: FCOSMaps, targets: RegularizedTargets, rule: tuple[float, ...]) -> dict[str, float]:
    cls_logits, box_logits, centerness_logits = (at_locations(column) for column in maps)
    cls_loss = box_loss = centerness_loss = weight_sum = 0.0
    for logits, own in zip(cls_logits, targets.classes.tolist(), strict=True):
        for k, logit in enumerate(logits):
            p = 1 / (1 + math.exp(-logit))
            cls_loss -= 0.25 * (1 - p) ** 2 * math.log(p) if k == own else 0.75 * p**2 * math.log(1 - p)
    rows = zip(targets.positives.tolist(), targets.box_distances_px.tolist(), targets.shares.tolist(), strict=True)
    for location, (left, top, right, bottom), share in rows:
        centerness = math.sqrt(min(left, right) / max(left, right) * min(top, bottom) / max(top, bottom))
        weight = rule[0] * centerness + rule[1] * share + rule[2] * math.sqrt(centerness * share)
        sides = [math.exp(logit) for logit in box_logits[location]]
        low = [min(pair) for pair in zip(sides, (left, top, right, bottom), strict=True)]
        both = (low[0] + low[2]) * (low[1] + low[3])
        union = (sides[0] + sides[2]) * (sides[1] + sides[3]) + (left + right) * (top + bottom) - both
        box_loss -= weight * math.log((both + 1) / (union + 1))
        p = 1 / (1 + math.exp(-centerness_logits[location][0]))
        centerness_loss -= weight * math.log(p) + (1 - weight) * math.log(1 - p)
        weight_sum += weight
    count = len(targets.positives)
    return {
        "loss_cls": cls_loss / count,
        "loss_box": box_loss / weight_sum,
        "loss_centerness": centerness_loss / count,
    }


@pytest.mark.parametrize("rule", [CENTERNESS, (0.0, 1.0, 0.0), THIRDS, (0.2, 0.3, 0.5)])
def test_detection_losses_equal_the_slow_oracle(rule: tuple[float, float, float]) -> None:
    maps, locations = random_maps(2)
    targets = find_targets(locations, instances_of(apart()))
    assert len(targets.positives) > 50
    assert 0 <= float(targets.shares.min()) < 0.5 < float(targets.shares.max()) <= 1
    losses = detection_losses(maps, targets, rule, **OPTIONS)
    expected = losses_slowly(maps, targets, rule)
    assert {name: float(loss.detach()) for name, loss in losses.items()} == pytest.approx(expected, rel=1e-4)


def test_detection_losses_of_centerness_and_boxes_apart_are_fcos_own() -> None:
    fcos = build_toy("FCOS", "MODEL.FCOS.SIZES_OF_INTEREST", SIZES_OF_INTEREST)
    maps, locations = random_maps(2)
    expected = fcos.losses(maps, locations, instances_of(apart()))
    targets = find_targets(locations, instances_of(apart()))
    found = detection_losses(maps, targets, CENTERNESS, **OPTIONS)
    assert list(found) == list(expected)
    for name, loss in expected.items():
        torch.testing.assert_close(found[name], loss)
    regularized = detection_losses(maps, targets, THIRDS, **OPTIONS)
    assert torch.equal(regularized["loss_cls"], found["loss_cls"])
    assert not torch.allclose(regularized["loss_box"], found["loss_box"])
    assert not torch.allclose(regularized["loss_centerness"], found["loss_centerness"])


@pytest.mark.parametrize("sign", [1e4, -1e4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=["fp16", "bf16", "fp32"])
def test_detection_losses_of_extreme_maps_are_finite(dtype: torch.dtype, sign: float) -> None:
    maps, locations = random_maps(2)
    leaves = FCOSMaps(*([torch.full_like(m, sign, dtype=dtype).requires_grad_() for m in column] for column in maps))
    targets = find_targets(locations, instances_of(apart()))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        losses = detection_losses(leaves, targets, THIRDS, **OPTIONS)
    assert all(loss.dtype == torch.float32 and torch.isfinite(loss) for loss in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    assert all(m.grad is not None and m.grad.isfinite().all() for column in leaves for m in column)


def test_detection_losses_without_objects_reach_every_map() -> None:
    maps, locations = random_maps(2)
    empty = instances_of([make_input(SIZE, [], seed) for seed in range(2)])
    targets = find_targets(locations, empty)
    losses = detection_losses(maps, targets, THIRDS, **OPTIONS)
    torch.stack(list(losses.values())).sum().backward()
    values = {name: float(loss.detach()) for name, loss in losses.items()}
    assert values["loss_box"] == values["loss_centerness"] == 0.0 < values["loss_cls"]
    assert all(m.grad is not None and m.grad.isfinite().all() for column in maps for m in column)


@pytest.mark.parametrize("kind", KINDS)
def test_fcos_reg_trains_on(kind: str) -> None:
    losses = losses_and_gradients(build_toy("FCOSReg"), hard_batch(kind, SIZE))
    assert set(losses) == {"loss_cls", "loss_box", "loss_centerness"}
    assert float(losses["loss_cls"]) > 0
    # No location lies strictly within one pixel.
    assert (float(losses["loss_box"]) == 0) == (kind in ("none", "pixel"))


def test_fcos_reg_has_the_network_and_the_inference_of_fcos() -> None:
    fcos, regularized = build_toy("FCOS"), build_toy("FCOSReg")
    assert isinstance(regularized, FCOSReg)
    regularized.load_state_dict(fcos.state_dict())
    outputs = []
    for model in (fcos, regularized):
        model.eval()
        model.decode_rule = model.decode_rule._replace(score_threshold=0.0)
        with torch.no_grad():
            outputs.append(model([make_input(SIZE, [], height=50, width=70)])[0]["instances"])
    assert len(outputs[0]) == 100
    assert torch.equal(outputs[0].pred_boxes.tensor, outputs[1].pred_boxes.tensor)
    assert torch.equal(outputs[0].scores, outputs[1].scores)


def test_fcos_reg_losses_are_detection_losses_of_its_rule() -> None:
    batch = apart()
    losses = {}
    for rule in (CENTERNESS, THIRDS):
        model = build_toy("FCOSReg", regularization=rule)
        assert isinstance(model, FCOSReg)
        assert model.regularization == rule
        losses[rule] = losses_and_gradients(model, batch)
    fcos = losses_and_gradients(build_toy("FCOS"), batch)
    for name, loss in fcos.items():
        torch.testing.assert_close(losses[CENTERNESS][name], loss)
    assert not torch.allclose(losses[THIRDS]["loss_box"], fcos["loss_box"])


def test_centre_sampling_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"(?s)CENTER_SAMPLING_RADIUS is 1.5.*set it to 0"):
        regularized_arguments(fcosis_config("FCOSReg", "MODEL.FCOS.CENTER_SAMPLING_RADIUS", 1.5))
