"""What every model promises at test time (ACCEPTANCE cases in the names)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

from segzoo.geometry.rle import RLEMasks
from tests.contract.toys import NUM_CLASSES, WITHOUT_MASKS, make_input, toy_config

Build = Callable[..., torch.nn.Module]
# Thresholds 0: an untrained model finds as much as it may.
THRESHOLDS = [f"MODEL.{head}.SCORE_THRESH_TEST" for head in ("FCOS", "ROI_HEADS", "ORIENMASK", "CENTERMASK")]
FIND_ALL = [word for key in THRESHOLDS for word in (key, 0.0)]
FIND_NONE = [word for key in THRESHOLDS for word in (key, 1.0)]


def predict(model: torch.nn.Module, batch: list[dict]) -> list[Instances]:
    model.eval()
    with torch.no_grad():
        return [output["instances"] for output in model(batch)]


def check_fields(instances: Instances, model_name: str, size: tuple[int, int]) -> None:
    count = len(instances.scores)
    assert instances.image_size == size
    assert isinstance(instances.pred_boxes, Boxes)
    assert instances.pred_boxes.tensor.shape == (count, 4)
    assert instances.pred_classes.shape == (count,)
    assert instances.pred_classes.dtype == torch.int64
    assert instances.has("pred_masks") == (model_name not in WITHOUT_MASKS)
    if instances.has("pred_masks"):
        assert isinstance(instances.pred_masks, RLEMasks)
        assert instances.pred_masks.to_tensor().shape == (count, *size)


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
    model = build(*FIND_ALL, "TEST.DETECTIONS_PER_IMAGE", 30)
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


@pytest.mark.parametrize("pad_to", [(64, 96), (256, 256)])
def test_padding_gives_no_detections(build: Build, pad_to: tuple[int, int]) -> None:
    model = build(*FIND_ALL)
    (instances,) = predict(model, [make_input((40, 40), [], pad_to=pad_to)])
    assert len(instances.scores) > 0
    assert (instances.pred_boxes.area() > 0).all()


def test_results_scale_with_the_output_size(build: Build, model_name: str) -> None:
    model = build(*FIND_ALL, "TEST.DETECTIONS_PER_IMAGE", 20)
    (small,) = predict(model, [make_input((64, 96), [])])
    (large,) = predict(model, [make_input((64, 96), [], height=128, width=288)])
    scale = torch.tensor([3.0, 2.0, 3.0, 2.0])
    if model_name.endswith("-official"):
        # The authors' boxes end at their last pixel, whatever its size: what is given out ends one pixel later.
        pixel = torch.tensor([0.0, 0.0, 1.0, 1.0])
        last = (small.pred_boxes.tensor - pixel) * scale + pixel
        inside = (last < torch.tensor([288.0, 128.0, 288.0, 128.0])).all(dim=1)
        inside &= (small.pred_boxes.tensor < torch.tensor([96.0, 64.0, 96.0, 64.0])).all(dim=1)
        torch.testing.assert_close(large.pred_boxes.tensor[inside], last[inside], rtol=1e-4, atol=1e-2)
        return
    torch.testing.assert_close(large.pred_boxes.tensor, small.pred_boxes.tensor * scale, rtol=1e-4, atol=1e-2)


def test_polarmask_keeps_centres_and_contours_for_pictures() -> None:
    torch.manual_seed(1)
    model = build_model(toy_config("PolarMask", *FIND_ALL))
    (instances,) = predict(model, [make_input((64, 96), [], height=128, width=288)])
    contours = instances.pred_contours
    assert instances.pred_centers.shape == (len(instances.scores), 2)
    assert contours.shape == (len(instances.scores), 36, 2)
    # Ray 0 points down and ray 9 of 36 to the right of the centre.
    assert torch.equal(contours[:, 0, 0], instances.pred_centers[:, 0])
    assert (contours[:, 0, 1] > instances.pred_centers[:, 1]).all()
    assert (contours[:, 9, 0] > instances.pred_centers[:, 0]).all()
    corners = torch.cat((contours.amin(dim=1), contours.amax(dim=1)), dim=1)
    limit = torch.tensor([288.0, 128.0, 288.0, 128.0])
    torch.testing.assert_close(instances.pred_boxes.tensor, corners.clamp(min=0).minimum(limit))
