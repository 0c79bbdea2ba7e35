"""Cases 16, 17, 37, 47 to 50: what every model gives at test time."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import pytest
import torch
from detectron2.structures import Instances

from segzoo.evaluation.timing import peak_memory_mb
from tests.acceptance.runs import SMALL_BACKBONE
from tests.contract.toys import (
    FIND_ALL,
    FIND_NONE,
    NUM_CLASSES,
    build_toy,
    check_fields,
    make_input,
    predict,
)

Build = Callable[..., torch.nn.Module]


def test_case_47_no_detections_leave_all_fields_empty(build: Build, model_name: str) -> None:
    (instances,) = predict(build(*FIND_NONE), [make_input((64, 96), [], height=50, width=70)])
    assert len(instances.scores) == 0
    check_fields(instances, model_name, (50, 70))


def test_case_37_all_candidates_above_the_threshold_stay_bounded(build: Build, model_name: str) -> None:
    model = build(*FIND_ALL, "TEST.DETECTIONS_PER_IMAGE", 40)
    (instances,) = predict(model, [make_input((64, 96), [], height=128, width=192)])
    assert 0 < len(instances.scores) <= 40
    check_fields(instances, model_name, (128, 192))
    assert (instances.scores[:-1] >= instances.scores[1:]).all()
    assert ((instances.pred_classes >= 0) & (instances.pred_classes < NUM_CLASSES)).all()
    boxes = instances.pred_boxes.tensor
    assert (boxes >= 0).all()
    assert (boxes[:, [0, 2]] <= 192).all()
    assert (boxes[:, [1, 3]] <= 128).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1)])
def test_case_16_images_smaller_than_a_stride_give_results(
    build: Build, model_name: str, size: tuple[int, int]
) -> None:
    (instances,) = predict(build(*FIND_ALL), [make_input(size, [])])
    check_fields(instances, model_name, size)


def test_case_17_results_of_an_extreme_aspect_come_in_original_size(build: Build, model_name: str) -> None:
    (instances,) = predict(build(*FIND_ALL), [make_input((8, 320), [], height=80, width=9600)])
    check_fields(instances, model_name, (80, 9600))


def test_case_50_a_batch_of_equal_padded_size_equals_one_by_one(build: Build, model_name: str) -> None:
    # A network whose random scores lie further apart than rounding, which would change their order.
    model = build(*FIND_ALL, "TEST.DETECTIONS_PER_IMAGE", 30, "MODEL.TIMM.NAME", "efficientnet_lite0")
    inputs = [
        make_input((60, 96), [], 0, height=120, width=192),
        make_input((64, 90), [], 1),
        make_input((61, 93), [], 2),
    ]
    together = predict(model, inputs)
    for single_input, batched in zip(inputs, together, strict=True):
        (single,) = predict(model, [single_input])
        check_fields(batched, model_name, (single_input["height"], single_input["width"]))
        torch.testing.assert_close(batched.scores, single.scores, rtol=0, atol=1e-5)
        torch.testing.assert_close(batched.pred_boxes.tensor, single.pred_boxes.tensor, rtol=0, atol=1e-3)
        assert torch.equal(batched.pred_classes, single.pred_classes)
        if batched.has("pred_masks"):
            agreement = batched.pred_masks.to_tensor() == single.pred_masks.to_tensor()
            assert agreement.float().mean() >= 0.999


def test_case_48_features_that_are_not_finite_give_no_garbage_and_a_warning(
    build: Build, model_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = build(*FIND_ALL)
    sample = make_input((64, 96), [])
    with torch.no_grad():
        names = ("backbone.fpn_", "neck.", "fusion.", "backbone.cnvs.1.")
        next(p for name, p in model.named_parameters() if name.startswith(names)).fill_(float("nan"))
    (instances,) = predict(model, [sample])
    assert torch.isfinite(instances.pred_boxes.tensor).all()
    assert torch.isfinite(instances.scores).all()
    check_fields(instances, model_name, (64, 96))
    assert "not finite" in caplog.text or "NaN" in caplog.text


# What runs out of memory first in each method's masks, on a device that is full. PolarMask draws contours on the CPU.
IN_MASKS = {
    "CenterMask": "segzoo.geometry.tiles.find_edges",
    "OrienMask": "orienmask.decode._end_points",
    "FCOSIS": "segzoo.geometry.tiles.find_edges",
    "MaskRCNN": "segzoo.geometry.paste._sample",
}


@pytest.mark.parametrize("num_failures", [1, 3])
@pytest.mark.parametrize("name", IN_MASKS)
def test_case_49_masks_without_device_memory_are_made_in_smaller_parts_then_on_the_cpu(
    name: str, num_failures: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = build_toy(name, *SMALL_BACKBONE, *FIND_ALL, "TEST.DETECTIONS_PER_IMAGE", 5)
    sample = make_input((64, 96), [], height=128, width=192)
    (expected,) = predict(model, [sample])
    place, _, attribute = IN_MASKS[name].rpartition(".")
    module = importlib.import_module(place)
    original, failures = getattr(module, attribute), iter(range(num_failures))

    def fail_at_first(*args: object) -> object:
        if next(failures, None) is not None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return original(*args)

    monkeypatch.setattr(module, attribute, fail_at_first)
    (found,) = predict(model, [sample])
    assert found.pred_masks.rles == expected.pred_masks.rles
    assert caplog.text.count("no memory to make masks within") == num_failures
    assert ("masks are made on the CPU" in caplog.text) == (num_failures == 3)


# Beside the budget of a quarter of what the masks take as bool: the network's own maps and the runs of the masks.
BUDGET_MB, BESIDE_MB = 16, 96


@pytest.mark.slow
def test_case_49_masks_of_100_detections_on_12_megapixels_stay_within_the_budget(method: str) -> None:
    options = [*FIND_ALL, "TEST.DETECTIONS_PER_IMAGE", 100, "TEST.MASK_BUDGET_MB", BUDGET_MB]
    model = build_toy(method, *SMALL_BACKBONE, *options)
    sample = make_input((96, 128), [], height=3000, width=4000)
    found: list[Instances] = []
    peak = peak_memory_mb(lambda: found.extend(predict(model, [sample])))
    assert len(found[0]) > 50
    assert found[0].pred_masks.image_size == (3000, 4000)
    # 100 masks of one byte a pixel would be 1,144 MiB.
    assert peak < BUDGET_MB + BESIDE_MB


def test_case_49_masks_do_not_depend_on_the_budget(method: str) -> None:
    sample = make_input((64, 96), [], height=500, width=700)
    rles = []
    for budget_mb in (1, 4096):
        options = [*FIND_ALL, "TEST.DETECTIONS_PER_IMAGE", 40, "TEST.MASK_BUDGET_MB", budget_mb]
        (instances,) = predict(build_toy(method, *SMALL_BACKBONE, *options), [sample])
        rles.append(instances.pred_masks.rles)
    assert len(rles[0]) > 10
    assert rles[0] == rles[1]
