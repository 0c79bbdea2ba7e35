"""FCOS v1, boxes only: what the shared parts give on their own, and a baseline for the box columns.

Shape shorthand: N images, R locations, K classes, P positives.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.structures import Instances
from torch import Tensor, nn

from segzoo.export.plan import ExportPlan
from segzoo.modeling.fcos.assign import assign_batch, box_distances
from segzoo.modeling.fcos.check import check_fcos
from segzoo.modeling.fcos.decode import DecodeRule, detect_boxes, output_scale
from segzoo.modeling.fcos.export import export_plan
from segzoo.modeling.fcos.head import FCOSHead, FCOSMaps, exp_size
from segzoo.modeling.fcos.locations import Locations, compute_locations, flatten_levels, map_sizes
from segzoo.modeling.fcos.losses import box_centerness, centerness_loss, focal_loss, iou_loss
from segzoo.modeling.normalizer import loss_normalizers
from segzoo.modeling.postprocess import build_instances
from segzoo.modeling.preprocess import ImagePreprocessor


def detector_arguments(cfg: CfgNode) -> dict[str, Any]:
    """The arguments that every FCOS-based meta-architecture takes from MODEL.FCOS and the shared keys.

    Raises:
        ConfigError: a value that cannot work, see `check_fcos`.
    """
    fcos = cfg.MODEL.FCOS
    backbone = build_backbone(cfg)
    check_fcos(cfg, backbone)
    return {
        "backbone": backbone,
        "preprocessor": ImagePreprocessor(
            cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD, backbone.size_divisibility, cfg.INPUT.FORMAT
        ),
        "in_features": list(fcos.IN_FEATURES),
        "num_classes": fcos.NUM_CLASSES,
        "sizes_of_interest": list(fcos.SIZES_OF_INTEREST),
        "center_radius": fcos.CENTER_SAMPLING_RADIUS,
        "focal_alpha": fcos.FOCAL_ALPHA,
        "focal_gamma": fcos.FOCAL_GAMMA,
        "normalizer_mode": cfg.SOLVER.POSITIVE_COUNT,
        "decode_rule": DecodeRule(
            fcos.SCORE_THRESH_TEST, fcos.PRE_NMS_TOPK, fcos.NMS_THRESH_TEST, cfg.TEST.DETECTIONS_PER_IMAGE
        ),
    }


def head_arguments(cfg: CfgNode, backbone: Backbone) -> dict[str, Any]:
    """The arguments that every FCOS-like head takes."""
    fcos = cfg.MODEL.FCOS
    return {
        "channels": backbone.output_shape()[fcos.IN_FEATURES[0]].channels,
        "num_classes": fcos.NUM_CLASSES,
        "num_levels": len(fcos.IN_FEATURES),
        "num_convs": fcos.NUM_CONVS,
        "norm": fcos.NORM,
        "prior_prob": fcos.PRIOR_PROB,
        "deformable": fcos.DEFORMABLE,
    }


@META_ARCH_REGISTRY.register()
class FCOS(nn.Module):
    """Fully convolutional one-stage detector, version 1 (no centre sampling, exp, IoU loss, centerness)."""

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        preprocessor: ImagePreprocessor,
        head: FCOSHead,
        in_features: list[str],
        num_classes: int,
        sizes_of_interest: list[float],
        center_radius: float,
        focal_alpha: float,
        focal_gamma: float,
        normalizer_mode: str,
        decode_rule: DecodeRule,
    ) -> None:
        """
        Args:
            backbone: gives `in_features`.
            preprocessor: normalises and pads the images.
            head: raw maps of every level.
            in_features: names of the levels, finest first.
            num_classes: K.
            sizes_of_interest: upper limits in pixels of all levels but the last.
            center_radius: of the sampling square in strides, 0 = whole boxes.
            focal_alpha, focal_gamma: of the focal loss.
            normalizer_mode: "reduce" or "local", see `mean_over_ranks`.
            decode_rule: which candidates become detections.
        """
        super().__init__()
        self.backbone = backbone
        self.preprocessor = preprocessor
        self.head = head
        self.in_features = in_features
        self.strides = [backbone.output_shape()[name].stride for name in in_features]
        self.num_classes = num_classes
        self.sizes_of_interest = sizes_of_interest
        self.center_radius = center_radius
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.normalizer_mode = normalizer_mode
        self.decode_rule = decode_rule

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        arguments = detector_arguments(cfg)
        arguments["head"] = FCOSHead(**head_arguments(cfg, arguments["backbone"]))
        return arguments

    @property
    def device(self) -> torch.device:
        return self.head.cls_logits.weight.device

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """Losses in training, else one {"instances": Instances} (boxes only) an image, at its original size."""
        images = self.preprocessor(batched_inputs, self.device)
        maps = self.dense_outputs(images.tensor)
        locations = compute_locations(map_sizes(maps.cls_logits), self.strides, self.device)
        if self.training:
            return self.losses(maps, locations, [x["instances"].to(self.device) for x in batched_inputs])
        return self.inference(maps, locations, images.image_sizes, batched_inputs)

    def losses(self, maps: FCOSMaps, locations: Locations, gt_instances: list[Instances]) -> dict[str, Tensor]:
        """The three losses of FCOS, Eq. (2), of a batch."""
        classes, distances = self._targets(locations, gt_instances)
        positives = (classes < self.num_classes).nonzero().squeeze(1)
        gt_distances = distances[positives]
        weights = box_centerness(gt_distances)
        normalizers = loss_normalizers(classes.new_tensor(len(positives)), weights.sum(), self.normalizer_mode)
        pred_distances = exp_size(flatten_levels(maps.box_logits).flatten(0, 1)[positives])
        centerness_logits = flatten_levels(maps.centerness_logits).flatten()[positives]
        cls_logits = flatten_levels(maps.cls_logits).flatten(0, 1)
        return {
            "loss_cls": focal_loss(cls_logits, classes, self.focal_alpha, self.focal_gamma) / normalizers.positives,
            "loss_box": iou_loss(pred_distances, gt_distances, weights) / normalizers.weight_sum,
            "loss_centerness": centerness_loss(centerness_logits, weights) / normalizers.positives,
        }

    @torch.no_grad()
    def _targets(self, locations: Locations, gt_instances: list[Instances]) -> tuple[Tensor, Tensor]:
        """(N * R,) classes with K = background, and (N * R, 4) distances (of use at positives only)."""
        boxes = torch.cat([instances.gt_boxes.tensor for instances in gt_instances])
        gt_classes = torch.cat([instances.gt_classes for instances in gt_instances])
        counts = [len(instances) for instances in gt_instances]
        matched = assign_batch(locations, self.sizes_of_interest, boxes, counts, center_radius=self.center_radius)
        # One row more stands for the background, so that nothing needs a branch.
        classes = torch.cat((gt_classes, gt_classes.new_tensor([self.num_classes])))[matched]
        padded_boxes = torch.cat((boxes, boxes.new_zeros(1, 4)))
        points = locations.points_px.repeat(len(gt_instances), 1)
        return classes, box_distances(points, padded_boxes[matched])

    def inference(
        self,
        maps: FCOSMaps,
        locations: Locations,
        image_sizes: list[tuple[int, int]],
        batched_inputs: list[dict],
    ) -> list[dict[str, Instances]]:
        """Detections of every image, boxes in its original pixels."""
        found = detect_boxes(
            *(maps.cls_logits, maps.box_logits, maps.centerness_logits), locations, image_sizes, self.decode_rule
        )
        results = []
        for detections, size, inputs in zip(found, image_sizes, batched_inputs, strict=True):
            output_size = (inputs.get("height", size[0]), inputs.get("width", size[1]))
            boxes = detections.boxes_px * output_scale(size, output_size, self.device).repeat(2)
            instances = build_instances(output_size, boxes, detections.scores, detections.classes, None)
            results.append({"instances": instances})
        return results

    def dense_outputs(self, images: Tensor) -> FCOSMaps:
        """(N, 3, H, W) normalised images, padded to the size divisibility -> the raw maps of every level."""
        features = self.backbone(images)
        return self.head([features[name] for name in self.in_features])

    def export_plan(self) -> ExportPlan:
        """How this model is exported, see `segzoo.modeling.fcos.export`."""
        return export_plan(self)
