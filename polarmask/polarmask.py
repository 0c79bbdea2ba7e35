"""PolarMask's meta-architecture.

Shape shorthand: N images, R locations, K classes, P positives, n rays.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone
from detectron2.structures import Instances
from torch import Tensor, nn

from polarmask.check import check_polarmask
from polarmask.decode import ContourRule, contour_boxes, contour_rles, rays_to_contours
from polarmask.export import export_plan
from polarmask.losses import RAY_LOSSES, box_iou_loss, polar_centerness
from polarmask.pictures import map_pictures
from polarmask.polar_head import PolarHead, PolarMaps
from polarmask.targets import TargetRule, polar_targets
from segzoo.export.plan import ExportPlan
from segzoo.geometry.rle import RLEMasks
from segzoo.modeling.fcos.decode import (
    Candidates,
    DecodeRule,
    clip_boxes,
    distances_to_boxes,
    output_scale,
    select_candidates,
    suppress,
    usable_locations,
)
from segzoo.modeling.fcos.fcos import detector_arguments, head_arguments
from segzoo.modeling.fcos.head import exp_size
from segzoo.modeling.fcos.locations import Locations, compute_locations, flatten_levels, map_sizes
from segzoo.modeling.fcos.losses import box_centerness, centerness_loss, focal_loss
from segzoo.modeling.normalizer import loss_normalizers
from segzoo.modeling.postprocess import build_instances
from segzoo.modeling.preprocess import ImagePreprocessor


@META_ARCH_REGISTRY.register()
class PolarMask(nn.Module):
    """Contours as rays around mass centres, predicted densely (Xie et al., CVPR 2020)."""

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        preprocessor: ImagePreprocessor,
        head: PolarHead,
        in_features: list[str],
        num_classes: int,
        target_rule: TargetRule,
        contour_rule: ContourRule,
        mask_loss: str,
        mask_loss_weight: float,
        centerness: str,
        centerness_bias: float,
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
            target_rule: how objects become targets.
            contour_rule: how contours become boxes and masks.
            mask_loss: a key of RAY_LOSSES.
            mask_loss_weight: factor of the ray loss.
            centerness: target of the centerness, "polar" (Eq. 1) or "cartesian" (of the box, as in FCOS).
            centerness_bias: added to the centerness in the score, see `select_candidates`.
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
        self.target_rule = target_rule
        self.contour_rule = contour_rule
        self.mask_loss = RAY_LOSSES[mask_loss]
        self.mask_loss_weight = mask_loss_weight
        self.centerness = centerness
        self.centerness_bias = centerness_bias
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.normalizer_mode = normalizer_mode
        self.decode_rule = decode_rule

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        polar = cfg.MODEL.POLARMASK
        check_polarmask(polar)
        is_official = polar.CONVENTION == "official"
        arguments = detector_arguments(cfg)
        head_options = head_arguments(cfg, arguments["backbone"])
        return arguments | {
            "head": PolarHead(num_rays=polar.NUM_RAYS, box_branch=polar.BOX_BRANCH, **head_options),
            "target_rule": TargetRule(
                num_rays=polar.NUM_RAYS,
                sizes_of_interest=arguments.pop("sizes_of_interest"),
                center_radius=arguments.pop("center_radius"),
                center=polar.CENTER,
                parts=polar.PARTS,
                is_official=is_official,
            ),
            "contour_rule": ContourRule(uses_predicted_boxes=polar.BOXES == "predicted", is_official=is_official),
            "mask_loss": polar.MASK_LOSS,
            "mask_loss_weight": polar.MASK_LOSS_WEIGHT,
            "centerness": polar.CENTERNESS,
            "centerness_bias": polar.CTR_BIAS,
        }

    @property
    def device(self) -> torch.device:
        return self.head.cls_logits.weight.device

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """Losses in training, else one {"instances": Instances} an image, at its original size."""
        images = self.preprocessor(batched_inputs, self.device)
        maps = self.dense_outputs(images.tensor)
        locations = compute_locations(map_sizes(maps.cls_logits), self.strides, self.device)
        if self.training:
            return self.losses(maps, locations, [x["instances"].to(self.device) for x in batched_inputs])
        return self.inference(maps, locations, images.image_sizes, batched_inputs)

    def losses(self, maps: PolarMaps, locations: Locations, gt_instances: list[Instances]) -> dict[str, Tensor]:
        """Class, ray, centerness and perhaps box losses of a batch (section 3.3)."""
        targets = polar_targets(locations, gt_instances, self.num_classes, self.target_rule)
        positives = targets.positives
        is_polar = self.centerness == "polar"
        weights = polar_centerness(targets.rays_px) if is_polar else box_centerness(targets.box_distances_px)
        normalizers = loss_normalizers(positives.new_tensor(len(positives)), weights.sum(), self.normalizer_mode)
        cls_logits = flatten_levels(maps.cls_logits).flatten(0, 1)
        pred_rays = exp_size(flatten_levels(maps.ray_logits).flatten(0, 1)[positives])
        centerness_logits = flatten_levels(maps.centerness_logits).flatten()[positives]
        ray_loss = self.mask_loss(pred_rays, targets.rays_px, weights) * self.mask_loss_weight
        # The authors' code adds the number of images to the class loss's normaliser.
        cls_loss = focal_loss(cls_logits, targets.classes, self.focal_alpha, self.focal_gamma)
        losses = {
            "loss_cls": cls_loss / (normalizers.num_positives + len(gt_instances)),
            "loss_mask": ray_loss / normalizers.weight_sum,
            "loss_centerness": centerness_loss(centerness_logits, weights) / normalizers.positives,
        }
        if maps.box_logits:
            pred_boxes = exp_size(flatten_levels(maps.box_logits).flatten(0, 1)[positives])
            margin_px = float(self.target_rule.is_official)
            box_loss = box_iou_loss(pred_boxes, targets.box_distances_px, weights, margin_px)
            losses["loss_box"] = box_loss / normalizers.weight_sum
        return losses

    def inference(
        self,
        maps: PolarMaps,
        locations: Locations,
        image_sizes: list[tuple[int, int]],
        batched_inputs: list[dict],
    ) -> list[dict[str, Instances]]:
        """Detections of every image in its original pixels."""
        cls_scores = flatten_levels(maps.cls_logits).float().sigmoid()
        centerness = flatten_levels(maps.centerness_logits).float().sigmoid().squeeze(2)
        ray_logits = flatten_levels(maps.ray_logits)
        box_logits = flatten_levels(maps.box_logits) if self.contour_rule.uses_predicted_boxes else None
        outputs = (cls_scores, centerness[..., None], ray_logits) + (() if box_logits is None else (box_logits,))
        is_usable = usable_locations(locations.points_px, image_sizes, outputs)
        level_sizes = [height * width for height, width in map_sizes(maps.cls_logits)]
        results = []
        for image, (size, inputs) in enumerate(zip(image_sizes, batched_inputs, strict=True)):
            candidates = select_candidates(
                cls_scores[image],
                centerness[image],
                is_usable[image],
                level_sizes,
                score_threshold=self.decode_rule.score_threshold,
                topk=self.decode_rule.pre_nms_topk,
                centerness_bias=self.centerness_bias,
            )
            points = locations.points_px[candidates.locations]
            contours = rays_to_contours(points, exp_size(ray_logits[image, candidates.locations]))
            if box_logits is None:
                boxes = contour_boxes(contours)
            else:
                boxes = distances_to_boxes(points, exp_size(box_logits[image, candidates.locations]))
            output_size = (inputs.get("height", size[0]), inputs.get("width", size[1]))
            results.append({"instances": self._detections(points, contours, boxes, candidates, size, output_size)})
        return results

    def _detections(
        self,
        points_px: Tensor,
        contours_px: Tensor,
        boxes: Tensor,
        candidates: Candidates,
        input_size: tuple[int, int],
        output_size: tuple[int, int],
    ) -> Instances:
        """The survivors of NMS of one image, at the output size.

        Beside the usual fields they have pred_centers (the locations) and pred_contours, for pictures.

        Args:
            points_px, contours_px, boxes: (D, 2), (D, n, 2), (D, 4) of the candidates, in network input pixels.
            candidates: D candidates.
            input_size, output_size: (height, width).
        """
        rule, decode = self.contour_rule, self.decode_rule
        scale = output_scale(input_size, output_size, boxes.device)
        margin_px = float(rule.is_official)
        boxes = clip_boxes(boxes, (input_size[0] - margin_px, input_size[1] - margin_px)) * scale.repeat(2)
        # A box that ends at its last pixel has one pixel more, in NMS as in what is given out.
        boxes[:, 2:] += margin_px
        keep = suppress(boxes, candidates, nms_threshold=decode.nms_threshold, max_detections=decode.max_detections)
        contours = contours_px[keep]
        if rule.is_official:
            contours = contours.clamp(min=0).minimum(contours.new_tensor([input_size[1] - 1, input_size[0] - 1]))
        contours = contours * scale
        detections = candidates.select(keep)
        return build_instances(
            output_size,
            boxes[keep],
            detections.scores,
            detections.classes,
            RLEMasks(contour_rles(contours, output_size, rule), output_size),
            pred_centers=points_px[keep] * scale,
            pred_contours=contours,
        )

    def dense_outputs(self, images: Tensor) -> PolarMaps:
        """(N, 3, H, W) normalised images, padded to the size divisibility -> the raw maps of every level."""
        features = self.backbone(images)
        return self.head([features[name] for name in self.in_features])

    def export_plan(self) -> ExportPlan:
        """How this model is exported, see `polarmask.export`."""
        return export_plan(self)

    def map_pictures(self, inputs: dict[str, Any]) -> dict[str, np.ndarray]:
        """Pictures of what the masks of one image come from, by title; see `polarmask.pictures`."""
        return map_pictures(self, inputs)
