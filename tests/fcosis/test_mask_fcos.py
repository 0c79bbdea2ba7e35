"""MaskFCOS as a whole: what it trains on, masks at output size, and batches that are hard."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectron2.modeling import build_model
from torch import Tensor

from fcosis.box_masks import training_proposals
from fcosis.detector import detection_losses
from fcosis.mask_fcos import MaskFCOS
from fcosis.regularization import location_shares
from fcosis.targets import regularized_targets
from segzoo.errors import ConfigError
from segzoo.geometry.rle import RLEMasks
from segzoo.modeling.fcos.decode import DecodeRule, detect_boxes
from segzoo.modeling.fcos.locations import compute_locations, map_sizes
from tests.contract.toys import ellipse, losses_and_gradients, make_input
from tests.fcosis.batches import KINDS, THIRDS, fcosis_config, hard_batch

SIZE = (96, 128)
ROI = [
    *("MODEL.ROI_HEADS.IN_FEATURES", "['p3', 'p4', 'p5']", "MODEL.ROI_MASK_HEAD.NUM_CONV", "1"),
    *("MODEL.ROI_MASK_HEAD.CONV_DIM", "16"),
]


def build_toy(*options: object) -> MaskFCOS:
    torch.manual_seed(1)
    model = build_model(fcosis_config("MaskFCOS", *ROI, *options))
    assert isinstance(model, MaskFCOS)
    return model


def two_images() -> list[dict]:
    masks = [ellipse(SIZE, (40, 30), (35, 25)), ellipse(SIZE, (90, 60), (30, 30)), ellipse(SIZE, (15, 75), (9, 9))]
    return [make_input(SIZE, masks, 0), make_input(SIZE, masks[:1], 1)]


@pytest.mark.parametrize("kind", KINDS)
def test_losses_finite_and_gradient_on_every_parameter(kind: str) -> None:
    model = build_toy()
    # Detections of every kind, so that proposals are not the ground truths alone.
    model.decode_rule = model.decode_rule._replace(score_threshold=0.0)
    losses = losses_and_gradients(model, hard_batch(kind, SIZE))
    assert set(losses) == {"loss_cls", "loss_box", "loss_centerness", "loss_mask"}
    assert (float(losses["loss_mask"]) == 0) == (kind == "none")


def test_losses_are_those_of_the_detector_and_of_masks_in_its_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = build_toy("TEST.DETECTIONS_PER_IMAGE", 7).train(), two_images()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    instances = [sample["instances"] for sample in batch]
    boxes = [found.gt_boxes.tensor for found in instances]
    # An untrained detector finds nothing that would match: these are near, far, and beyond the best hundred.
    detections = [torch.cat((boxes[0] + 2, boxes[0][:, [1, 0, 3, 2]], boxes[0].repeat(40, 1))), boxes[1] - 1]
    seen: list[tuple[DecodeRule, bool]] = []

    def found_boxes(*given: Any) -> list:
        seen.append((given[-1], torch.is_grad_enabled()))
        originals = detect_boxes(*given)
        return [own._replace(boxes_px=own_boxes) for own, own_boxes in zip(originals, detections, strict=True)]

    monkeypatch.setattr("fcosis.mask_fcos.detect_boxes", found_boxes)
    with torch.no_grad():
        losses = model(batch)
        images = model.preprocessor(batch, model.device)
        maps = model.dense_outputs(images.tensor)
        locations = compute_locations(map_sizes(maps.detection.cls_logits), model.strides, model.device)
        shares = location_shares([own.gt_masks.tensor for own in instances], locations)
        targets = regularized_targets(locations, instances, shares, model.num_classes, model.sizes_of_interest)
        expected = detection_losses(
            *(maps.detection, targets, THIRDS), focal_alpha=0.25, focal_gamma=2.0, normalizer_mode="local"
        )
        proposals = training_proposals(detections, instances)
        expected["loss_mask"] = model.mask_head.losses(maps.features, proposals, normalizer_mode="local")
    assert seen == [(DecodeRule(0.05, 1000, 0.6, 100), False)]
    assert len(proposals[0].boxes_px) < 3 + 3 + 100
    assert list(losses) == list(expected)
    for name, loss in expected.items():
        torch.testing.assert_close(losses[name], loss)


def test_detections_in_training_carry_no_gradient() -> None:
    model, batch = build_toy().train(), two_images()
    model.decode_rule = model.decode_rule._replace(score_threshold=0.0)
    model(batch)["loss_mask"].backward()
    assert all(parameter.grad is None for parameter in model.head.parameters())
    assert all(parameter.grad is not None for parameter in model.mask_head.parameters())


@pytest.mark.parametrize("output_size", [SIZE, (50, 70), (31, 200)])
def test_inference_gives_masks_at_output_size(output_size: tuple[int, int]) -> None:
    model = build_toy().eval()
    model.decode_rule = model.decode_rule._replace(score_threshold=0.0)
    assert model.head.box_pred.bias is not None
    torch.nn.init.constant_(model.head.box_pred.bias, 3.0)
    # All of a box belongs to its mask.
    torch.nn.init.constant_(model.mask_head.head.predictor.bias, 20.0)
    batch = [make_input(SIZE, [], seed, height=output_size[0], width=output_size[1]) for seed in range(2)]
    with torch.no_grad():
        outputs = [output["instances"] for output in model(batch)]
        alone = model(batch[1:])[0]["instances"]
    for found in outputs:
        assert found.image_size == output_size
        assert len(found) == 100
        assert isinstance(found.pred_masks, RLEMasks)
        assert found.pred_masks.to_tensor().shape == (100, *output_size)
        is_large = box_sides(found.pred_boxes.tensor) > 4
        boxes = found.pred_boxes.tensor[is_large]
        assert len(boxes) > 50
        assert float((found.pred_masks.boxes()[is_large] - boxes).abs().max()) <= 1.0
    torch.testing.assert_close(alone.pred_boxes.tensor, outputs[1].pred_boxes.tensor, atol=1e-3, rtol=1e-4)


def box_sides(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).amin(dim=1)


def test_inference_nothing_found_has_all_fields() -> None:
    model = build_toy("MODEL.FCOS.SCORE_THRESH_TEST", 1.0).eval()
    with torch.no_grad():
        found = model([make_input(SIZE, [], height=50, width=70)])[0]["instances"]
    assert len(found) == 0
    assert set(found.get_fields()) == {"pred_boxes", "scores", "pred_classes", "pred_masks"}
    assert found.pred_masks.to_tensor().shape == (0, 50, 70)


def test_impossible_second_stage_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"MODEL.ROI_HEADS.IN_FEATURES is \['p1'\]"):
        build_toy("MODEL.ROI_HEADS.IN_FEATURES", "['p1']")
