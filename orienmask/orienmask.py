"""OrienMask's meta-architecture.

Shape shorthand: N images, R predictions of an image, K classes, A anchors a level, L levels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.structures import Instances
from torch import Tensor, nn

from orienmask.anchors import Predictions, flatten_predictions, list_predictions, to_corners
from orienmask.check import FEATURE_STRIDES, check_orienmask
from orienmask.decode import DecodeRule, orientation_masks, select_candidates, suppress
from orienmask.export import export_plan
from orienmask.heads import BoxHead, OrienHead, build_network
from orienmask.losses import PixelCounts, box_losses, count_pixels, orientation_losses
from orienmask.maps import OrienMaps
from orienmask.neck import YOLONeck
from orienmask.orientation import orientation_targets
from orienmask.pictures import map_pictures
from orienmask.targets import TargetRule, assign_anchors, box_targets, objectness_negatives
from segzoo.export.plan import ExportPlan
from segzoo.modeling.fcos.decode import output_scale
from segzoo.modeling.fcos.locations import map_sizes
from segzoo.modeling.normalizer import mean_over_ranks
from segzoo.modeling.norms import norm_of_run
from segzoo.modeling.postprocess import build_instances
from segzoo.modeling.preprocess import ImagePreprocessor


@META_ARCH_REGISTRY.register()
class OrienMask(nn.Module):
    """YOLOv3 boxes, and masks of the pixels whose predicted vectors end near a box's centre (Du et al., ICCV 2021)."""

    anchors_px: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        preprocessor: ImagePreprocessor,
        neck: YOLONeck,
        box_head: BoxHead,
        orien_head: OrienHead,
        in_features: list[str],
        num_classes: int,
        target_rule: TargetRule,
        ignore_threshold: float,
        orientation_weight: float,
        normalizer_mode: str,
        decode_rule: DecodeRule,
        mask_budget_mb: float,
    ) -> None:
        """
        Args:
            backbone: gives `in_features`.
            preprocessor: normalises and pads the images.
            neck: of the features of strides 8, 16 and 32.
            box_head: box maps of these strides.
            orien_head: orientation maps at stride 4.
            in_features: names of the features of strides 4, 8, 16 and 32.
            num_classes: K.
            target_rule: how objects become targets.
            ignore_threshold: largest IoU with an object of a negative prediction.
            orientation_weight: factor of the orientation losses.
            normalizer_mode: "reduce" or "local", see `mean_over_ranks`.
            decode_rule: which predictions become detections.
            mask_budget_mb: MiB held at once while masks are made.
        """
        super().__init__()
        self.backbone = backbone
        self.preprocessor = preprocessor
        self.neck = neck
        self.box_head = box_head
        self.orien_head = orien_head
        self.in_features = in_features
        self.num_classes = num_classes
        self.target_rule = target_rule
        self.num_anchors = len(target_rule.anchors_px) // len(target_rule.strides)
        self.ignore_threshold = ignore_threshold
        self.orientation_weight = orientation_weight
        self.normalizer_mode = normalizer_mode
        self.decode_rule = decode_rule
        self.mask_budget_mb = mask_budget_mb
        anchors_px = torch.tensor(target_rule.anchors_px, dtype=torch.float32)
        self.register_buffer("anchors_px", anchors_px, persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        node = cfg.MODEL.ORIENMASK
        backbone = build_backbone(cfg)
        check_orienmask(cfg, backbone)
        return {
            "backbone": backbone,
            "preprocessor": ImagePreprocessor(
                cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD, FEATURE_STRIDES[-1], cfg.INPUT.FORMAT
            ),
            **build_network(
                feature_channels=[backbone.output_shape()[name].channels for name in node.IN_FEATURES],
                neck_channels=list(node.NECK_CHANNELS),
                orien_channels=node.ORIEN_CHANNELS,
                num_anchors=len(node.ANCHORS) // 3,
                num_classes=node.NUM_CLASSES,
                orien_input=node.ORIEN_INPUT,
                norm=norm_of_run("MODEL.ORIENMASK.NORM", node.NORM, cfg.MODEL.DEVICE),
            ),
            "in_features": list(node.IN_FEATURES),
            "num_classes": node.NUM_CLASSES,
            "target_rule": TargetRule(
                anchors_px=[list(anchor) for anchor in node.ANCHORS],
                strides=FEATURE_STRIDES[1:],
                base_position=node.BASE_POSITION,
                expand_ratio=node.EXPAND_RATIO,
                overlap_order=node.OVERLAP_ORDER,
            ),
            "ignore_threshold": node.IGNORE_THRESH,
            "orientation_weight": node.ORIEN_LOSS_WEIGHT,
            "normalizer_mode": cfg.SOLVER.POSITIVE_COUNT,
            "decode_rule": DecodeRule(
                score_threshold=node.SCORE_THRESH_TEST,
                pre_nms_topk=node.PRE_NMS_TOPK,
                nms_threshold=node.NMS_THRESH_TEST,
                max_detections=cfg.TEST.DETECTIONS_PER_IMAGE,
                base_position=node.BASE_POSITION,
                tau=node.TAU,
            ),
            "mask_budget_mb": cfg.TEST.MASK_BUDGET_MB,
        }

    @property
    def device(self) -> torch.device:
        return self.orien_head.pred.weight.device

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """Losses in training, else one {"instances": Instances} an image, at its original size."""
        images = self.preprocessor(batched_inputs, self.device)
        maps = self.dense_outputs(images.tensor)
        places = list_predictions(
            map_sizes(maps.boxes), self.target_rule.strides, self.target_rule.anchors_px, self.device
        )
        if self.training:
            return self.losses(maps, places, [x["instances"].to(self.device) for x in batched_inputs])
        return self.inference(maps, places, images.image_sizes, batched_inputs)

    def losses(self, maps: OrienMaps, places: Predictions, gt_instances: list[Instances]) -> dict[str, Tensor]:
        """The losses of boxes and orientations of a batch, a mean over its images (section 3.3)."""
        rule, num_images = self.target_rule, len(gt_instances)
        raw = flatten_predictions(maps.boxes, self.num_anchors)
        objects = assign_anchors(gt_instances, map_sizes(maps.boxes), rule)
        targets = box_targets(objects, num_images, raw.shape[1], self.num_classes, rule)
        is_negative = objectness_negatives(raw, places, targets.positives, gt_instances, self.ignore_threshold)
        height, width = (side * FEATURE_STRIDES[0] for side in maps.orientations.shape[-2:])
        orientations = orientation_targets(objects, gt_instances, (height, width), len(rule.anchors_px), rule)
        levels = objects.anchors[targets.owners] // self.num_anchors
        counts = count_pixels(orientations, levels, self.num_anchors, len(rule.strides))
        counts = PixelCounts(*mean_over_ranks(torch.stack(counts), self.normalizer_mode))
        losses = box_losses(raw, targets, is_negative)
        for name, loss in orientation_losses(maps.orientations, orientations, counts, self.num_anchors).items():
            losses[name] = loss * self.orientation_weight
        return {name: loss / num_images for name, loss in losses.items()}

    def inference(
        self,
        maps: OrienMaps,
        places: Predictions,
        image_sizes: list[tuple[int, int]],
        batched_inputs: list[dict],
    ) -> list[dict[str, Instances]]:
        """Detections of every image in its original pixels; beside the usual fields they have pred_anchors."""
        raw = flatten_predictions(maps.boxes, self.num_anchors)
        results = []
        for image, (size, inputs) in enumerate(zip(image_sizes, batched_inputs, strict=True)):
            candidates = select_candidates(raw[image], places, size, self.decode_rule)
            detections = suppress(candidates, self.decode_rule)
            output_size = (inputs.get("height", size[0]), inputs.get("width", size[1]))
            masks = orientation_masks(
                maps.orientations[image],
                self.anchors_px,
                detections,
                input_size=size,
                output_size=output_size,
                tau=self.decode_rule.tau,
                budget_mb=self.mask_budget_mb,
            )
            boxes = to_corners(detections.boxes) * output_scale(size, output_size, raw.device).repeat(2)
            instances = build_instances(
                output_size, boxes, detections.scores, detections.classes, masks, pred_anchors=detections.anchors
            )
            results.append({"instances": instances})
        return results

    def dense_outputs(self, images: Tensor) -> OrienMaps:
        """(N, 3, H, W) normalised images, padded to a multiple of 32 -> the raw maps."""
        features = self.backbone(images)
        fine, *coarser = (features[name] for name in self.in_features)
        levels = self.neck(coarser)
        return OrienMaps(self.box_head(levels), self.orien_head(fine, levels))

    def mask_maps(self, maps: OrienMaps) -> Tensor:
        """The part of the raw maps that masks are built from (table 6 of the paper counts its bytes)."""
        return maps.orientations

    def export_plan(self) -> ExportPlan:
        """How this model is exported, see `orienmask.export`."""
        return export_plan(self)

    def map_pictures(self, inputs: dict[str, Any]) -> dict[str, np.ndarray]:
        """Pictures of what the best detection of one image is made of, by title; see `orienmask.pictures`."""
        return map_pictures(self, inputs)
