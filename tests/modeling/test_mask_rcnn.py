"""The Mask R-CNN baseline: Detectron2's numbers, SegZoo's masks, and batches without objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

import segzoo.geometry.paste as paste_module
from segzoo.config import get_segzoo_cfg, merge_config
from segzoo.evaluation.timing import peak_memory_mb
from segzoo.geometry.masks import mask_boxes
from segzoo.geometry.rle import ENCODING_BYTES_PER_PIXEL, RLEMasks
from segzoo.modeling.mask_rcnn import MaskRCNN
from segzoo.modeling.shared_masks import SharedMasks

SIZE = (64, 96)


@pytest.fixture
def tiny_cfg(repository: Path) -> CfgNode:
    """The R-50 recipe with a small ResNet-18 from scratch and few proposals."""
    cfg = merge_config(get_segzoo_cfg(), str(repository / "configs" / "mask_rcnn_R50.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[8], [16], [32], [64], [128]]
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 40
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 30
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 32
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 32
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 16
    cfg.TEST.DETECTIONS_PER_IMAGE = 20
    return cfg


def image_of(num_objects: int, seed: int = 0) -> dict:
    """A mapper's training sample with rectangles."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(num_objects, *SIZE, dtype=torch.bool)
    for number in range(num_objects):
        masks[number, 5 + 4 * number : 40, 8 * number : 30 + 8 * number] = True
    instances = Instances(
        SIZE,
        gt_boxes=Boxes(mask_boxes(masks)),
        gt_classes=torch.arange(num_objects) % 3,
        gt_masks=BitMasks(masks),
    )
    pixels = torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8, generator=generator)
    return {"image": pixels, "instances": instances, "height": 100, "width": 120, "image_id": seed}


@pytest.mark.parametrize("counts", [(0, 0), (0, 3), (2, 1)])
def test_losses_finite_and_gradient_on_every_parameter(tiny_cfg: CfgNode, counts: tuple[int, int]) -> None:
    model = build_model(tiny_cfg).train()
    losses = model([image_of(count, seed) for seed, count in enumerate(counts)])
    assert set(losses) == {"loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc"}
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert missing == []
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
    if not any(counts):
        assert [losses[name].item() for name in ("loss_box_reg", "loss_mask", "loss_rpn_loc")] == [0.0, 0.0, 0.0]
        assert losses["loss_cls"] > 0


def test_losses_under_bfloat16_are_finite(tiny_cfg: CfgNode) -> None:
    model = build_model(tiny_cfg).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model([image_of(2), image_of(0)])
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(loss.dtype == torch.float32 for loss in losses.values())


def test_losses_diverged_network_gives_nan_that_the_trainer_can_share(tiny_cfg: CfgNode) -> None:
    model = build_model(tiny_cfg).train()
    names = set(model([image_of(2)]))
    torch.nn.init.constant_(model.proposal_generator.rpn_head.anchor_deltas.bias, float("nan"))
    losses = model([image_of(2)])
    assert set(losses) == names
    assert all(torch.isnan(loss) for loss in losses.values())
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_losses_equal_detectron2_with_bit_masks(tiny_cfg: CfgNode) -> None:
    model = build_model(tiny_cfg).train()
    batch = [image_of(3, 1), image_of(2, 2)]
    torch.manual_seed(1)
    ours = model(batch)
    torch.manual_seed(1)
    with EventStorage():
        theirs = super(MaskRCNN, model).forward(batch)
    for name, loss in theirs.items():
        assert torch.equal(ours[name], loss), name
    assert isinstance(batch[0]["instances"].gt_masks, BitMasks), "the caller's batch must not change"


@pytest.mark.parametrize("height_width", [(100, 120), (64, 96), (31, 200)])
def test_inference_equals_detectron2_pasting(tiny_cfg: CfgNode, height_width: tuple[int, int]) -> None:
    model = build_model(tiny_cfg).eval()
    batch = [{**image_of(0, 1), "height": height_width[0], "width": height_width[1]}]
    with torch.no_grad():
        ours = model(batch)[0]["instances"]
        theirs = super(MaskRCNN, model).inference(batch)[0]["instances"]
    assert len(ours) == len(theirs) > 0
    assert ours.image_size == height_width
    assert isinstance(ours.pred_masks, RLEMasks)
    torch.testing.assert_close(ours.pred_boxes.tensor, theirs.pred_boxes.tensor)
    assert torch.equal(ours.scores, theirs.scores)
    assert torch.equal(ours.pred_classes, theirs.pred_classes)
    assert theirs.pred_masks.any()
    assert torch.equal(ours.pred_masks.to_tensor(), theirs.pred_masks)


def test_inference_never_asks_for_more_masks_than_the_budget(
    tiny_cfg: CfgNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    three_masks = 3 * 100 * 120 * ENCODING_BYTES_PER_PIXEL
    model = build_model(tiny_cfg).eval()
    batch = [image_of(0, 1)]
    with torch.no_grad():
        expected = model(batch)[0]["instances"]
    model.mask_budget_mb = 2 * three_masks / 2**20
    asked = []
    original = paste_module.paste_masks

    def counting(*args: Any, **kwargs: Any) -> torch.Tensor:
        masks = original(*args, **kwargs)
        asked.append(masks.numel() * ENCODING_BYTES_PER_PIXEL)
        return masks

    monkeypatch.setattr(paste_module, "paste_masks", counting)
    with torch.no_grad():
        found = model(batch)[0]["instances"]
    assert len(asked) > 1
    assert max(asked) <= three_masks
    assert found.pred_masks.rles == expected.pred_masks.rles


def test_inference_nothing_found_has_all_fields(tiny_cfg: CfgNode) -> None:
    tiny_cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 1.1
    model = build_model(tiny_cfg).eval()
    with torch.no_grad():
        none = model([image_of(0)])[0]["instances"]
    assert len(none) == 0
    assert set(none.get_fields()) == {"pred_boxes", "scores", "pred_classes", "pred_masks"}
    assert none.pred_masks.to_tensor().shape == (0, 100, 120)


def test_inference_not_finite_predictions_are_dropped(tiny_cfg: CfgNode) -> None:
    model = build_model(tiny_cfg).eval()
    predictor = model.roi_heads.box_predictor.bbox_pred
    # Class 0 of 3 loses its boxes.
    torch.nn.init.constant_(predictor.bias[:4], float("nan"))
    with torch.no_grad():
        found = model([image_of(0)])[0]["instances"]
        assert torch.isfinite(found.pred_boxes.tensor).all()
        torch.nn.init.constant_(model.roi_heads.mask_head.predictor.bias, float("nan"))
        assert model([image_of(0)])[0]["instances"].pred_masks.area().sum() == 0


def test_inference_batch_equals_one_by_one(tiny_cfg: CfgNode) -> None:
    model = build_model(tiny_cfg).eval()
    images = [image_of(0, 1), image_of(0, 2)]
    with torch.no_grad():
        together = [output["instances"] for output in model(images)]
        alone = [model([image])[0]["instances"] for image in images]
    for first, second in zip(together, alone, strict=True):
        torch.testing.assert_close(first.pred_boxes.tensor, second.pred_boxes.tensor, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(first.scores, second.scores, atol=1e-5, rtol=1e-5)


def test_shared_masks_crops_equal_bit_masks() -> None:
    stack = torch.rand(3, *SIZE) > 0.5
    index = torch.tensor([2, 0, 2, 1, 1])
    boxes = torch.rand(5, 4) * 30
    boxes[:, 2:] += boxes[:, :2] + 2
    chosen = SharedMasks(stack)[index]
    expected = BitMasks(stack[index]).crop_and_resize(boxes, 28)
    for max_pixels in (10**8, 2 * SIZE[0] * SIZE[1], 1):
        assert torch.equal(chosen.crop_and_resize(boxes, 28, max_pixels), expected)
    keep = torch.tensor([False, True, False, True, True])
    expected = BitMasks(stack[index[keep]]).crop_and_resize(boxes[keep], 14)
    assert torch.equal(chosen[keep].to("cpu").crop_and_resize(boxes[keep], 14), expected)
    assert chosen[:0].crop_and_resize(boxes[:0], 14).shape == (0, 14, 14)


def test_shared_masks_of_300_objects_are_never_all_floats() -> None:
    stack = torch.rand(300, 200, 300) > 0.5
    boxes = torch.tensor([[10.0, 20, 200, 180]]).expand(300, 4)
    peak = peak_memory_mb(lambda: SharedMasks(stack).crop_and_resize(boxes, 28, max_pixels=2_000_000))
    assert peak < stack.numel() * 4 / 2**20 / 3


def test_small_recipe_fits_small_images(repository: Path) -> None:
    cfg = merge_config(get_segzoo_cfg(), str(repository / "configs" / "mask_rcnn_EffLite0.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.TIMM.WEIGHTS = ""
    pytest.importorskip("timm")
    model = build_model(cfg).train()
    losses = model([image_of(2), image_of(0)])
    sum(losses.values()).backward()
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    assert all(torch.isfinite(loss) for loss in losses.values())
