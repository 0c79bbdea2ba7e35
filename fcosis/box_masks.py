"""MaskFCOS's second stage: Mask R-CNN's mask branch (He et al., ICCV 2017) on the boxes of FCOS.

A box takes its features from level floor(4 + log2(sqrt(w h) / 224)) of P3..P5 (FPN, Eq. 1; FCOSIS, Eq. 4), which is
what Detectron2's ROIPooler does with these levels.

Shape shorthand: N images, M ground truths, B proposals, D detections, K classes, C channels, S side of a small mask.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor, nn
from torch.nn import functional

from segzoo.errors import ConfigError
from segzoo.geometry.paste import paste_as_rle
from segzoo.geometry.rle import RLEMasks
from segzoo.modeling.backbones.pyramid import check_norm
from segzoo.modeling.fcos.decode import output_scale
from segzoo.modeling.normalizer import loss_normalizers
from segzoo.modeling.shared_masks import SharedMasks

# Detections of an image whose masks are trained, the best ones.
MAX_PROPOSALS = 100
HEAD_NAME = MaskRCNNConvUpsampleHead.__name__
# What Detectron2's ROIPooler knows for boxes without an angle.
POOLERS = ("ROIAlignV2", "ROIAlign", "ROIPool")
# Key below MODEL.ROI_MASK_HEAD -> its smallest value.
MINIMA = {"POOLER_RESOLUTION": 1, "POOLER_SAMPLING_RATIO": 0, "NUM_CONV": 0, "CONV_DIM": 1}


class Proposals(NamedTuple):
    """What the mask head is trained on in one image.

    boxes_px: (B, 4) xyxy. classes: (B,) and masks: B, those of each box's ground truth.
    """

    boxes_px: Tensor
    classes: Tensor
    masks: SharedMasks


@torch.no_grad()
def training_proposals(
    boxes_per_image: Sequence[Tensor],
    gt_instances: Sequence[Instances],
    *,
    max_proposals: int = MAX_PROPOSALS,
    iou_threshold: float = 0.5,
) -> list[Proposals]:
    """The detections that have a ground truth, and the ground truths themselves.

    Args:
        boxes_per_image: N times (D, 4) xyxy px of detections, best first.
        gt_instances: N times gt_boxes, gt_classes and gt_masks (BitMasks).
        max_proposals: detections of an image that are looked at, the best ones.
        iou_threshold: smallest IoU with the ground truth whose mask a detection is trained on: that of the largest IoU.
    """
    proposals = []
    for boxes, instances in zip(boxes_per_image, gt_instances, strict=True):
        gt_boxes = instances.gt_boxes.tensor
        best = boxes[:max_proposals]
        owners = match_boxes(best, gt_boxes, iou_threshold)
        # A ground truth is its own match, also where another one has the same box; without an area it has no mask.
        has_area = (gt_boxes[:, 2:] > gt_boxes[:, :2]).all(dim=1)
        own = torch.arange(len(gt_boxes), device=gt_boxes.device)
        owners = torch.cat((owners, torch.where(has_area, own, -1)))
        keep = (owners >= 0).nonzero()[:, 0]
        owners = owners[keep]
        masks = SharedMasks(instances.gt_masks.tensor, owners)
        proposals.append(Proposals(torch.cat((best, gt_boxes))[keep], instances.gt_classes[owners], masks))
    return proposals


def match_boxes(boxes: Tensor, gt_boxes: Tensor, iou_threshold: float) -> Tensor:
    """(D,) int64 index of the ground truth with the largest IoU, of equal ones the first; -1 below the threshold.

    Args:
        boxes, gt_boxes: (D, 4) and (M, 4) xyxy.
        iou_threshold: see `training_proposals`.
    """
    if len(gt_boxes) == 0:
        return torch.full((len(boxes),), -1, dtype=torch.int64, device=boxes.device)
    iou, owners = pairwise_iou(Boxes(gt_boxes), Boxes(boxes)).max(dim=0)
    return torch.where(iou >= iou_threshold, owners, -1)


class BoxMaskHead(nn.Module):
    """RoIAlign, 3x3 convolutions, a 2x2 deconvolution and a 1x1 convolution to a mask of each class."""

    def __init__(
        self,
        *,
        in_features: list[str],
        strides: list[int],
        channels: int,
        num_classes: int,
        class_agnostic: bool,
        pooler_resolution: int,
        sampling_ratio: int,
        pooler_type: str,
        num_convs: int,
        conv_dim: int,
        norm: str,
    ) -> None:
        """
        Args:
            in_features, strides: names and strides of the levels that boxes take features from, finest first.
            channels: C of every level.
            num_classes: K.
            class_agnostic: whether all classes share one mask.
            pooler_resolution: side of a box's features; masks have twice as many cells a side.
            sampling_ratio, pooler_type: see Detectron2's ROIPooler.
            num_convs, conv_dim, norm: the 3x3 convolutions, their channels (the deconvolution's too) and their norm.
        """
        super().__init__()
        self.in_features = in_features
        self.mask_size = 2 * pooler_resolution
        self.class_agnostic = class_agnostic
        self.pooler = ROIPooler(
            output_size=pooler_resolution,
            scales=[1.0 / stride for stride in strides],
            sampling_ratio=sampling_ratio,
            pooler_type=pooler_type,
        )
        self.head = MaskRCNNConvUpsampleHead(
            ShapeSpec(channels=channels),
            num_classes=1 if class_agnostic else num_classes,
            conv_dims=[conv_dim] * (num_convs + 1),
            conv_norm=norm,
        )

    def forward(self, features: Mapping[str, Tensor], boxes_per_image: Sequence[Tensor], classes: Tensor) -> Tensor:
        """The logits of each box's mask of its own class.

        Args:
            features: (N, C, Hi, Wi) by name.
            boxes_per_image: N times (B, 4) xyxy px.
            classes: of all boxes, image by image.

        Returns:
            (B of all images, S, S) float32.
        """
        # Under autocast boxes would be rounded to the features' precision, by whole pixels in large images.
        with torch.autocast(classes.device.type, enabled=False):
            levels = [features[name].float() for name in self.in_features]
            regions = self.pooler(levels, [Boxes(boxes.float()) for boxes in boxes_per_image])
        logits = self.head.layers(regions)
        channels = torch.zeros_like(classes) if self.class_agnostic else classes
        return logits[torch.arange(len(classes), device=classes.device), channels].float()

    def losses(self, features: Mapping[str, Tensor], proposals: Sequence[Proposals], *, normalizer_mode: str) -> Tensor:
        """Mean binary cross entropy of the masks within their boxes, over all proposals.

        Without proposals it is 0, but still depends on everything.

        Args:
            features: (N, C, Hi, Wi) by name.
            proposals: of the N images.
            normalizer_mode: "reduce" for the proposals of all ranks, "local" (Detectron2's) for the rank's own; see
                `mean_over_ranks`.
        """
        logits = self(features, [own.boxes_px for own in proposals], torch.cat([own.classes for own in proposals]))
        targets = torch.cat([own.masks.crop_and_resize(own.boxes_px, self.mask_size) for own in proposals])
        total = functional.binary_cross_entropy_with_logits(logits, targets.float(), reduction="sum")
        count = total.new_tensor(len(logits))
        num_proposals = loss_normalizers(count, count, normalizer_mode).positives
        return total / (num_proposals * self.mask_size**2)

    def masks(
        self,
        features: Mapping[str, Tensor],
        boxes_px: Tensor,
        classes: Tensor,
        *,
        input_size: tuple[int, int],
        output_size: tuple[int, int],
        budget_mb: float,
    ) -> RLEMasks:
        """Masks of the detections of one image at output size.

        Args:
            features: (1, C, Hi, Wi) by name.
            boxes_px: (D, 4) xyxy in pixels of the network's input, with an area.
            classes: (D,).
            input_size: (height, width) of the image in the network's input, without padding.
            output_size: (height, width) of the masks.
            budget_mb: MiB of full-size masks held at once.
        """
        probabilities = self(features, [boxes_px], classes).sigmoid()
        boxes = boxes_px * output_scale(input_size, output_size, boxes_px.device).repeat(2)
        return paste_as_rle(probabilities, boxes, output_size, budget_mb=budget_mb)


def box_mask_arguments(cfg: CfgNode, backbone: Backbone) -> dict[str, Any]:
    """The arguments of `BoxMaskHead` from MODEL.ROI_MASK_HEAD, MODEL.ROI_HEADS.IN_FEATURES and MODEL.FCOS.NUM_CLASSES.

    Raises:
        ConfigError: a value that cannot work, see `check_box_masks`.
    """
    check_box_masks(cfg, backbone)
    node, names = cfg.MODEL.ROI_MASK_HEAD, list(cfg.MODEL.ROI_HEADS.IN_FEATURES)
    shapes = [backbone.output_shape()[name] for name in names]
    return {
        "in_features": names,
        "strides": [shape.stride for shape in shapes],
        "channels": shapes[0].channels,
        "num_classes": cfg.MODEL.FCOS.NUM_CLASSES,
        "class_agnostic": node.CLS_AGNOSTIC_MASK,
        "pooler_resolution": node.POOLER_RESOLUTION,
        "sampling_ratio": node.POOLER_SAMPLING_RATIO,
        "pooler_type": node.POOLER_TYPE,
        "num_convs": node.NUM_CONV,
        "conv_dim": node.CONV_DIM,
        "norm": node.NORM,
    }


def check_box_masks(cfg: CfgNode, backbone: Backbone) -> None:
    """Checks the keys that Detectron2's mask head has and MaskFCOS uses, on their own and against the backbone.

    Raises:
        ConfigError: names the key, its value and what is allowed.
    """
    node, thresholds = cfg.MODEL.ROI_MASK_HEAD, list(cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS)
    for key, least in MINIMA.items():
        if node[key] < least:
            raise ConfigError(f"MODEL.ROI_MASK_HEAD.{key} is {node[key]}", f"it must be at least {least}")
    if node.NAME != HEAD_NAME:
        raise ConfigError(f"MODEL.ROI_MASK_HEAD.NAME is {node.NAME!r}", f"MaskFCOS has {HEAD_NAME!r} only")
    if node.POOLER_TYPE not in POOLERS:
        raise ConfigError(f"MODEL.ROI_MASK_HEAD.POOLER_TYPE is {node.POOLER_TYPE!r}", f"use one of {POOLERS}")
    check_norm("MODEL.ROI_MASK_HEAD.NORM", node.NORM, node.CONV_DIM)
    if len(thresholds) != 1 or not 0 < thresholds[0] <= 1:
        raise ConfigError(
            f"MODEL.ROI_HEADS.IOU_THRESHOLDS is {thresholds}", "MaskFCOS has one, above 0 and at most 1, such as [0.5]"
        )
    _check_levels(list(cfg.MODEL.ROI_HEADS.IN_FEATURES), backbone)


def _check_levels(names: list[Any], backbone: Backbone) -> None:
    shapes = backbone.output_shape()
    given = f"MODEL.ROI_HEADS.IN_FEATURES is {names}"
    if not names or any(name not in list(shapes) for name in names):
        raise ConfigError(
            f"{given}; the backbone {type(backbone).__name__} gives {list(shapes)}", "use p3, p4 and p5 (FCOSIS, Eq. 4)"
        )
    strides = [shapes[name].stride for name in names]
    if any(2 * fine != coarse for fine, coarse in itertools.pairwise(strides)):
        raise ConfigError(f"{given}, with strides {strides}", "each must be twice the one before: finest level first")
    channels = [shapes[name].channels for name in names]
    if len(set(channels)) > 1:
        raise ConfigError(f"{given}, with {channels} channels", "all go through one head: take levels of the pyramid")
