"""MaskFCOS's second stage: levels of boxes, proposals, the loss and the masks, against oracles and Detectron2."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.layers.mask_ops import paste_masks_in_image
from detectron2.modeling import Backbone
from detectron2.modeling.poolers import assign_boxes_to_levels
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor

from fcosis.box_masks import BoxMaskHead, Proposals, box_mask_arguments, match_boxes, training_proposals
from segzoo.config import get_segzoo_cfg
from segzoo.errors import ConfigError
from segzoo.geometry.masks import mask_boxes
from tests.contract.toys import NUM_CLASSES, ellipse

SIZE = (96, 128)
STRIDES = {"p3": 8, "p4": 16, "p5": 32}


class Pyramid(Backbone):
    """Nothing but its levels; "res3" has other channels."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {}

    def output_shape(self) -> dict[str, ShapeSpec]:
        levels = {f"p{i}": ShapeSpec(channels=16, stride=2**i) for i in range(2, 8)}
        return levels | {"res3": ShapeSpec(channels=32, stride=8), "res2": ShapeSpec(channels=16, stride=3)}


def mask_cfg(**changes: Any) -> CfgNode:
    cfg = get_segzoo_cfg()
    cfg.MODEL.FCOS.NUM_CLASSES = NUM_CLASSES
    cfg.MODEL.ROI_HEADS.IN_FEATURES = list(STRIDES)
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV, cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 2, 16
    for key, value in changes.items():
        node = cfg.MODEL.ROI_HEADS if key in cfg.MODEL.ROI_HEADS and key != "NAME" else cfg.MODEL.ROI_MASK_HEAD
        node[key] = value
    return cfg


def toy_head(**changes: Any) -> BoxMaskHead:
    torch.manual_seed(1)
    head = BoxMaskHead(**box_mask_arguments(mask_cfg(**changes), Pyramid()))
    # The predictor starts so near to 0 that every mask would be one half.
    torch.nn.init.normal_(head.head.predictor.weight, std=0.3)
    return head


def toy_features(num_images: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    sizes = {name: (SIZE[0] // stride, SIZE[1] // stride) for name, stride in STRIDES.items()}
    return {name: torch.randn(num_images, 16, *size, generator=generator) for name, size in sizes.items()}


def instances_of(masks: list[np.ndarray]) -> Instances:
    stack = torch.from_numpy(np.stack(masks)) if masks else torch.zeros(0, *SIZE, dtype=torch.bool)
    return Instances(
        SIZE,
        gt_boxes=Boxes(mask_boxes(stack)),
        gt_classes=torch.arange(len(stack)) % NUM_CLASSES,
        gt_masks=BitMasks(stack),
    )


def three_objects() -> Instances:
    return instances_of(
        [ellipse(SIZE, (40, 30), (25, 20)), ellipse(SIZE, (80, 60), (30, 25)), ellipse(SIZE, (20, 70), (6, 9))]
    )


def jittered(boxes: Tensor, count: int, strength: float, seed: int = 3) -> Tensor:
    """(count * M, 4) boxes near the given ones, inside the image."""
    generator = torch.Generator().manual_seed(seed)
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(count, 2)
    moved = boxes.repeat(count, 1) + strength * sides * torch.randn(len(sides), 4, generator=generator)
    corners = torch.sort(moved.view(-1, 2, 2), dim=1).values.flatten(1)
    limits = torch.tensor([SIZE[1], SIZE[0]]).repeat(2)
    return torch.minimum(corners.clamp(min=0), limits)


def level_of(box: Tensor) -> int:
    """FCOSIS, Eq. 4, in exact numbers: log2(sqrt(w h) / 224) reaches k where w h reaches 224^2 * 4^k."""
    width, height = (box[2:] - box[:2]).double().tolist()
    return min(max(4 + math.floor(math.log2(width * height / 224**2) / 2), 3), 5) if width * height else 3


def test_levels_of_boxes_follow_equation_4() -> None:
    generator = torch.Generator().manual_seed(0)
    sides = torch.cat(
        (
            # Whole and halved pixels around both limits, 224^2 and 448^2, and everything else.
            torch.stack(torch.meshgrid(*2 * [torch.arange(216, 232, 0.5)], indexing="ij"), dim=-1).view(-1, 2),
            torch.stack(torch.meshgrid(*2 * [torch.arange(440, 456, 0.5)], indexing="ij"), dim=-1).view(-1, 2),
            torch.tensor([[0.0, 5.0], [1.0, 1.0], [112.0, 448.0], [448.0, 448.0], [112.0, 112.0], [1333.0, 800.0]]),
            torch.rand(3000, 2, generator=generator) * 900 + 1,
        )
    )
    boxes = torch.cat((torch.zeros_like(sides), sides), dim=1)
    expected = [level_of(box) for box in boxes]
    assert (assign_boxes_to_levels([Boxes(boxes)], 3, 5, 224, 4) + 3).tolist() == expected
    # And the head's pooler uses it: each level's features tell their number.
    features = [torch.full((1, 1, 1024 // s, 1408 // s), float(i + 3)) for i, s in enumerate(STRIDES.values())]
    pooled = toy_head().pooler(features, [Boxes(boxes[::17])])
    torch.testing.assert_close(pooled.flatten(1), torch.tensor(expected[::17]).float()[:, None].expand(-1, 14 * 14))


def iou(first: list[float], second: list[float]) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    both = max(width, 0) * max(height, 0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return both / (areas - both) if both else 0.0


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_match_boxes_equals_the_slow_oracle(threshold: float) -> None:
    gt_boxes = three_objects().gt_boxes.tensor
    gt_boxes = torch.cat((gt_boxes, gt_boxes[:1]))  # twins: the first one is taken
    boxes = jittered(gt_boxes, 30, 0.15)
    expected = []
    for box in boxes.tolist():
        values = [iou(box, gt) for gt in gt_boxes.tolist()]
        best = max(range(len(values)), key=values.__getitem__)
        expected.append(best if values[best] >= threshold else -1)
    assert match_boxes(boxes, gt_boxes, threshold).tolist() == expected
    assert {-1, 0, 1, 2} >= set(expected) > {0, 1}
    assert match_boxes(boxes, gt_boxes[:0], threshold).tolist() == [-1] * len(boxes)


def test_match_boxes_takes_an_iou_of_exactly_the_threshold() -> None:
    gt_boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    boxes = torch.tensor([[0.0, 0.0, 10.0, 5.0], [0.0, 0.0, 10.0, 4.9]])
    assert match_boxes(boxes, gt_boxes, 0.5).tolist() == [0, -1]


def test_training_proposals_are_the_best_detections_with_a_ground_truth_and_all_ground_truths() -> None:
    images = [three_objects(), instances_of([]), instances_of([ellipse(SIZE, (60, 50), (9, 9))])]
    detections = [jittered(images[0].gt_boxes.tensor, 10, 0.2), torch.rand(5, 4).cumsum(1) * 20, torch.zeros(0, 4)]
    proposals = training_proposals(detections, images, max_proposals=12)
    owners = match_boxes(detections[0][:12], images[0].gt_boxes.tensor, 0.5)
    kept = owners >= 0
    assert 3 <= int(kept.sum()) < 12
    expected = torch.cat((detections[0][:12][kept], images[0].gt_boxes.tensor))
    assert torch.equal(proposals[0].boxes_px, expected)
    assert proposals[0].masks.index.tolist() == [*owners[kept].tolist(), 0, 1, 2]
    assert torch.equal(proposals[0].classes, images[0].gt_classes[proposals[0].masks.index])
    assert [len(own.boxes_px) for own in proposals[1:]] == [0, 1]
    assert proposals[0].masks.stack is images[0].gt_masks.tensor, "masks must not be copied"


def test_training_proposals_with_one_box_are_each_trained_on_their_own_mask() -> None:
    full, frame = np.zeros(SIZE, bool), np.zeros(SIZE, bool)
    full[20:60, 30:70] = frame[20:60, 30:70] = True
    frame[25:55, 35:65] = False
    instances = instances_of([full, frame])
    assert torch.equal(instances.gt_boxes.tensor[0], instances.gt_boxes.tensor[1])
    (own,) = training_proposals([torch.zeros(0, 4)], [instances])
    assert own.masks.index.tolist() == [0, 1]
    targets = own.masks.crop_and_resize(own.boxes_px, 28)
    assert targets[0].all()
    assert not targets[1, 14, 14]


def test_training_proposals_leave_out_ground_truths_without_an_area() -> None:
    instances = instances_of([ellipse(SIZE, (40, 30), (9, 9)), np.zeros(SIZE, bool)])
    (own,) = training_proposals([instances.gt_boxes.tensor], [instances])
    assert own.masks.index.tolist() == [0, 0]


@pytest.mark.parametrize("agnostic", [False, True])
def test_loss_equals_detectron2s_in_value_and_gradient(agnostic: bool) -> None:
    head, features = toy_head(CLS_AGNOSTIC_MASK=agnostic), toy_features(2)
    images = [three_objects(), instances_of([ellipse(SIZE, (60, 50), (30, 30))])]
    detections = [jittered(image.gt_boxes.tensor, 4, 0.05) for image in images]
    proposals = training_proposals(detections, images)
    loss = head.losses(features, proposals, normalizer_mode="local")
    loss.backward()
    found = {name: parameter.grad for name, parameter in head.named_parameters()}
    head.zero_grad(set_to_none=True)
    theirs = [
        Instances(
            SIZE,
            proposal_boxes=Boxes(own.boxes_px),
            gt_classes=own.classes,
            gt_masks=BitMasks(own.masks.stack[own.masks.index]),
        )
        for own in proposals
    ]
    pooled = head.pooler(list(features.values()), [own.proposal_boxes for own in theirs])
    with EventStorage():
        expected = head.head.train()(pooled, theirs)["loss_mask"]
    expected.backward()
    assert expected > 0.1
    torch.testing.assert_close(loss, expected)
    for name, parameter in head.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-7)


def test_loss_is_the_mean_entropy_of_the_own_class() -> None:
    head, features = toy_head(), toy_features(1)
    proposals = training_proposals([torch.zeros(0, 4)], [three_objects()])
    loss = float(head.losses(features, proposals, normalizer_mode="local").detach())
    with torch.no_grad():
        logits = head.head.layers(head.pooler(list(features.values()), [Boxes(proposals[0].boxes_px)])).double()
    targets = proposals[0].masks.crop_and_resize(proposals[0].boxes_px, 28)
    assert logits.shape == (3, NUM_CLASSES, 28, 28)
    total = 0.0
    for mask, (own, target) in enumerate(zip(logits, targets, strict=True)):
        for y, x in np.ndindex(28, 28):
            probability = 1 / (1 + math.exp(-float(own[int(proposals[0].classes[mask]), y, x])))
            total -= math.log(probability if target[y, x] else 1 - probability)
    assert loss == pytest.approx(total / (3 * 28 * 28), rel=1e-5)


def check_gradients(head: BoxMaskHead, features: dict[str, Tensor], proposals: list[Proposals]) -> float:
    for feature in features.values():
        feature.requires_grad_()
    loss = head.losses(features, proposals, normalizer_mode="local")
    loss.backward()
    assert torch.isfinite(loss)
    assert loss.dtype == torch.float32
    for name, leaf in [*head.named_parameters(), *features.items()]:
        assert leaf.grad is not None, name
        assert torch.isfinite(leaf.grad).all(), name
    return float(loss.detach())


@pytest.mark.parametrize("norm", ["", "GN"])
def test_loss_without_proposals_is_zero_and_reaches_every_parameter(norm: str) -> None:
    head = toy_head(NORM=norm, CONV_DIM=32)
    proposals = training_proposals([torch.rand(3, 4).cumsum(1) * 30] * 2, [instances_of([])] * 2)
    assert check_gradients(head, toy_features(2), proposals) == 0.0


def test_loss_of_300_objects_one_pixel_and_twins_is_finite() -> None:
    pixel = np.zeros(SIZE, bool)
    pixel[SIZE[0] - 1, SIZE[1] - 1] = True
    whole = np.ones(SIZE, bool)
    generator = np.random.default_rng(0)
    small = [ellipse(SIZE, tuple(generator.uniform(10, 90, 2)), (4, 3)) for _ in range(296)]
    images = [instances_of([pixel, whole, whole, pixel, *small])]
    detections = [jittered(images[0].gt_boxes.tensor, 1, 0.05)]
    proposals = training_proposals(detections, images)
    assert 300 < len(proposals[0].boxes_px) <= 400
    assert check_gradients(toy_head(), toy_features(1), proposals) > 0.1


@pytest.mark.parametrize("sign", [1e4, -1e4])
def test_loss_of_extreme_features_under_bfloat16_is_finite(sign: float) -> None:
    features = {name: torch.full_like(feature, sign) for name, feature in toy_features(1).items()}
    proposals = training_proposals([torch.zeros(0, 4)], [three_objects()])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        check_gradients(toy_head(), features, proposals)


def test_boxes_keep_their_place_under_bfloat16() -> None:
    head = toy_head()
    ramp = torch.arange(0.0, 1024, 8).expand(1, 16, 128, 128).contiguous()
    features = {"p3": ramp, "p4": ramp[..., ::2, ::2], "p5": ramp[..., ::4, ::4]}
    seen: list[Tensor] = []
    head.pooler.register_forward_hook(lambda module, inputs, output: seen.append(output))
    box = torch.tensor([[901.9, 901.9, 929.9, 929.9]])
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        # bfloat16 would make 900 and 928 of it.
        head({name: feature.bfloat16() for name, feature in features.items()}, [box], torch.tensor([0]))
    assert float(seen[0].mean()) == pytest.approx(915.9 - 4, abs=0.5)


@pytest.mark.parametrize("output_size", [SIZE, (50, 200)])
@pytest.mark.parametrize("budget_mb", [64.0, 0.02])
def test_masks_are_those_that_detectron2_pastes(output_size: tuple[int, int], budget_mb: float) -> None:
    head, features = toy_head().eval(), toy_features(1)
    boxes = jittered(three_objects().gt_boxes.tensor, 5, 0.2)
    classes = torch.arange(len(boxes)) % NUM_CLASSES
    with torch.no_grad():
        found = head.masks(
            features, boxes, classes, input_size=SIZE, output_size=output_size, budget_mb=budget_mb
        ).to_tensor()
        detections = Instances(SIZE, pred_boxes=Boxes(boxes), pred_classes=classes)
        assert isinstance(head.head, MaskRCNNConvUpsampleHead)
        (theirs,) = head.head(head.pooler(list(features.values()), [Boxes(boxes)]), [detections])
    scale = torch.tensor([output_size[1] / SIZE[1], output_size[0] / SIZE[0]]).repeat(2)
    expected = paste_masks_in_image(theirs.pred_masks[:, 0], boxes * scale, output_size)
    assert found.shape == (len(boxes), *output_size)
    assert torch.equal(found, expected)
    assert 0.1 < float(expected.float().sum() / (boxes * scale)[:, 2:].sub((boxes * scale)[:, :2]).prod(1).sum()) < 0.9


def test_masks_of_nothing_of_one_pixel_and_of_no_width() -> None:
    head, features = toy_head().eval(), toy_features(1)
    torch.nn.init.constant_(head.head.predictor.bias, 50.0)
    boxes = torch.tensor([[10.0, 20.0, 11.0, 21.0], [30.0, 20.0, 30.0, 40.0]])
    sizes: dict[str, Any] = {"input_size": SIZE, "output_size": SIZE, "budget_mb": 1.0}
    with torch.no_grad():
        masks = head.masks(features, boxes, torch.tensor([0, 1]), **sizes)
        none = head.masks(features, boxes[:0], torch.zeros(0, dtype=torch.int64), **sizes)
    assert masks.area().tolist() == [1, 0]
    assert masks.to_tensor()[0, 20, 10]
    assert none.to_tensor().shape == (0, *SIZE)


def test_head_has_the_layers_of_the_paper() -> None:
    head = BoxMaskHead(**box_mask_arguments(mask_cfg(NUM_CONV=4, CONV_DIM=256), Pyramid()))
    kernels = {name: tuple(value.shape[2:]) for name, value in head.named_parameters() if name.endswith("weight")}
    assert list(kernels.values()) == [(3, 3)] * 4 + [(2, 2), (1, 1)]
    logits = head(toy_features(1), [torch.tensor([[3.0, 4.0, 50.0, 60.0]])], torch.tensor([2]))
    assert logits.shape == (1, 28, 28)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"IN_FEATURES": ["res4"]}, r"IN_FEATURES is \['res4'\].*the backbone Pyramid gives"),
        ({"IN_FEATURES": []}, r"IN_FEATURES is \[\]"),
        ({"IN_FEATURES": ["p3", "p5"]}, r"strides \[8, 32\].*twice"),
        ({"IN_FEATURES": ["p4", "p3"]}, r"strides \[16, 8\]"),
        ({"IN_FEATURES": ["res3", "p4"]}, r"\[32, 16\] channels"),
        ({"IOU_THRESHOLDS": [0.5, 0.7]}, r"IOU_THRESHOLDS is \[0.5, 0.7\]"),
        ({"IOU_THRESHOLDS": [0.0]}, "IOU_THRESHOLDS"),
        ({"NUM_CONV": -1}, "NUM_CONV is -1.*at least 0"),
        ({"CONV_DIM": 0}, "CONV_DIM is 0"),
        ({"POOLER_RESOLUTION": 0}, "POOLER_RESOLUTION is 0"),
        ({"POOLER_TYPE": "ROIAlignRotated"}, "POOLER_TYPE is 'ROIAlignRotated'.*ROIAlignV2"),
        ({"NORM": "GN"}, "NORM is 'GN' over 16"),
        ({"NAME": "PointRendMaskHead"}, "NAME is 'PointRendMaskHead'"),
    ],
)
def test_impossible_values_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        box_mask_arguments(mask_cfg(**changes), Pyramid())
