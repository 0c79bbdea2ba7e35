"""MaskFCOS: the paper's two-stage counterpart of FCOSIS, Mask R-CNN's mask branch on FCOS's boxes (tables 1 and 2).

Shape shorthand: N images, R locations, K classes, M ground truths, D detections, C channels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone
from detectron2.structures import Instances
from torch import Tensor, nn

from fcosis.box_masks import MAX_PROPOSALS, BoxMaskHead, box_mask_arguments, training_proposals
from fcosis.detector import detection_losses, regularized_arguments
from fcosis.export import mask_fcos_plan
from fcosis.regularization import location_shares
from fcosis.targets import regularized_targets
from segzoo.export.plan import ExportPlan
from segzoo.modeling.fcos.decode import DecodeRule, detect_boxes, output_scale
from segzoo.modeling.fcos.fcos import head_arguments
from segzoo.modeling.fcos.head import FCOSHead, FCOSMaps
from segzoo.modeling.fcos.locations import Locations, compute_locations, map_sizes
from segzoo.modeling.postprocess import build_instances
from segzoo.modeling.preprocess import ImagePreprocessor


class MaskFCOSMaps(NamedTuple):
    """detection: FCOS's raw maps. features: (N, C, Hi, Wi) by name, what masks are made of."""

    detection: FCOSMaps
    features: dict[str, Tensor]


@META_ARCH_REGISTRY.register()
class MaskFCOS(nn.Module):
    """FCOS v1 with regularised targets; masks are predicted in its boxes by a second stage."""

    # What the second stage is done for.
    OBJECT_UNIT = "box"

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        preprocessor: ImagePreprocessor,
        head: FCOSHead,
        mask_head: BoxMaskHead,
        in_features: list[str],
        num_classes: int,
        sizes_of_interest: list[float],
        regularization: tuple[float, float, float],
        focal_alpha: float,
        focal_gamma: float,
        normalizer_mode: str,
        decode_rule: DecodeRule,
        iou_threshold: float,
        mask_budget_mb: float,
    ) -> None:
        """
        Args:
            backbone: gives `in_features` and the mask head's.
            preprocessor: normalises and pads the images.
            head: raw maps of every level.
            mask_head: masks of boxes.
            in_features: names of the detector's levels, finest first.
            num_classes: K.
            sizes_of_interest, focal_alpha, focal_gamma, normalizer_mode: see `FCOS`.
            regularization: (alpha, beta, gamma) of `regularized_weights`.
            decode_rule: which candidates become detections, at test and, of the best MAX_PROPOSALS, in training.
            iou_threshold: see `training_proposals`.
            mask_budget_mb: MiB of full-size masks held at once while they are pasted and encoded.
        """
        super().__init__()
        self.backbone = backbone
        self.preprocessor = preprocessor
        self.head = head
        self.mask_head = mask_head
        self.in_features = in_features
        self.strides = [backbone.output_shape()[name].stride for name in in_features]
        self.num_classes = num_classes
        self.sizes_of_interest = sizes_of_interest
        self.regularization = regularization
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.normalizer_mode = normalizer_mode
        self.decode_rule = decode_rule
        self.iou_threshold = iou_threshold
        self.mask_budget_mb = mask_budget_mb

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        arguments = regularized_arguments(cfg)
        backbone = arguments["backbone"]
        return arguments | {
            "head": FCOSHead(**head_arguments(cfg, backbone)),
            "mask_head": BoxMaskHead(**box_mask_arguments(cfg, backbone)),
            "iou_threshold": cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS[0],
            "mask_budget_mb": cfg.TEST.MASK_BUDGET_MB,
        }

    @property
    def device(self) -> torch.device:
        return self.head.cls_logits.weight.device

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """Losses in training, else one {"instances": Instances} an image, at its original size."""
        images = self.preprocessor(batched_inputs, self.device)
        maps = self.dense_outputs(images.tensor)
        locations = compute_locations(map_sizes(maps.detection.cls_logits), self.strides, self.device)
        if self.training:
            gt_instances = [x["instances"].to(self.device) for x in batched_inputs]
            return self.losses(maps, locations, images.image_sizes, gt_instances)
        return self.inference(maps, locations, images.image_sizes, batched_inputs)

    def losses(
        self,
        maps: MaskFCOSMaps,
        locations: Locations,
        image_sizes: list[tuple[int, int]],
        gt_instances: list[Instances],
    ) -> dict[str, Tensor]:
        """FCOS's three losses (see `detection_losses`) and that of the masks in its boxes."""
        shares = location_shares([x.gt_masks.tensor for x in gt_instances], locations)
        losses = detection_losses(
            maps.detection,
            regularized_targets(locations, gt_instances, shares, self.num_classes, self.sizes_of_interest),
            self.regularization,
            focal_alpha=self.focal_alpha,
            focal_gamma=self.focal_gamma,
            normalizer_mode=self.normalizer_mode,
        )
        rule = self.decode_rule._replace(max_detections=MAX_PROPOSALS)
        with torch.no_grad():
            boxes = [found.boxes_px for found in detect_boxes(*maps.detection, locations, image_sizes, rule)]
        proposals = training_proposals(boxes, gt_instances, iou_threshold=self.iou_threshold)
        mask_loss = self.mask_head.losses(maps.features, proposals, normalizer_mode=self.normalizer_mode)
        return losses | {"loss_mask": mask_loss}

    def inference(
        self,
        maps: MaskFCOSMaps,
        locations: Locations,
        image_sizes: list[tuple[int, int]],
        batched_inputs: list[dict],
    ) -> list[dict[str, Instances]]:
        """Detections of every image in its original pixels."""
        results = []
        detections = detect_boxes(*maps.detection, locations, image_sizes, self.decode_rule)
        for image, found in enumerate(detections):
            size, inputs = image_sizes[image], batched_inputs[image]
            output_size = (inputs.get("height", size[0]), inputs.get("width", size[1]))
            masks = self.mask_head.masks(
                {name: feature[image : image + 1] for name, feature in maps.features.items()},
                found.boxes_px,
                found.classes,
                input_size=size,
                output_size=output_size,
                budget_mb=self.mask_budget_mb,
            )
            boxes = found.boxes_px * output_scale(size, output_size, self.device).repeat(2)
            results.append({"instances": build_instances(output_size, boxes, found.scores, found.classes, masks)})
        return results

    def dense_outputs(self, images: Tensor) -> MaskFCOSMaps:
        """(N, 3, H, W) normalised images, padded to the size divisibility -> raw maps, and features for masks."""
        features = self.backbone(images)
        detection = self.head([features[name] for name in self.in_features])
        return MaskFCOSMaps(detection, {name: features[name] for name in self.mask_head.in_features})

    def export_plan(self) -> ExportPlan:
        """How this model is exported, see `fcosis.export`."""
        return mask_fcos_plan(self)

    def mask_maps(self, maps: MaskFCOSMaps) -> list[Tensor]:
        """The maps that masks are built from."""
        return list(maps.features.values())

    def object_stage(self, maps: MaskFCOSMaps, count: int) -> Tensor:
        """Mask logits of the first image in `count` boxes, for the counting of what they cost."""
        boxes = maps.detection.cls_logits[0].new_tensor([[0.0, 0.0, 200.0, 200.0]]).expand(count, 4)
        features = {name: feature[:1] for name, feature in maps.features.items()}
        return self.mask_head(features, [boxes], torch.zeros(count, dtype=torch.int64, device=self.device))
