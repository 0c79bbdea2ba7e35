"""PolarMask's meta-architecture.

Shape shorthand: N images, R locations, K classes, P positives, n rays.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone
from detectron2.structures import Instances
from torch import Tensor, nn

from polarmask.decode import contour_boxes, rays_to_contours
from polarmask.losses import polar_centerness, polar_iou_loss, smooth_l1_ray_loss
from polarmask.polar_head import PolarHead, PolarMaps
from polarmask.targets import polar_targets
from segzoo.errors import ConfigError
from segzoo.geometry.polygons import polygons_to_rles
from segzoo.geometry.rle import RLEMasks
from segzoo.modeling.fcos.decode import (
    Candidates,
    DecodeRule,
    clip_boxes,
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

MASK_LOSSES = {"polar_iou": polar_iou_loss, "smooth_l1": smooth_l1_ray_loss}


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
        num_rays: int,
        parts: str,
        mask_loss: str,
        mask_loss_weight: float,
        centerness: str,
        centerness_bias: float,
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
            num_rays: n.
            parts: "largest" or "all", see `polar_targets`.
            mask_loss: a key of MASK_LOSSES.
            mask_loss_weight: factor of the ray loss.
            centerness: target of the centerness, "polar" (Eq. 1) or "cartesian" (of the box, as in FCOS).
            centerness_bias: added to the centerness in the score, see `select_candidates`.
            sizes_of_interest: upper limits in pixels of all levels but the last.
            center_radius: half side in strides of the square around a mass centre.
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
        self.num_rays = num_rays
        self.parts = parts
        self.mask_loss = MASK_LOSSES[mask_loss]
        self.mask_loss_weight = mask_loss_weight
        self.centerness = centerness
        self.centerness_bias = centerness_bias
        self.sizes_of_interest = sizes_of_interest
        self.center_radius = center_radius
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.normalizer_mode = normalizer_mode
        self.decode_rule = decode_rule

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        polar = cfg.MODEL.POLARMASK
        _check(polar)
        arguments = detector_arguments(cfg)
        return arguments | {
            "head": PolarHead(num_rays=polar.NUM_RAYS, **head_arguments(cfg, arguments["backbone"])),
            "num_rays": polar.NUM_RAYS,
            "parts": polar.PARTS,
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
        """Class, ray and centerness losses of a batch (section 3.3)."""
        targets = polar_targets(
            locations,
            gt_instances,
            num_classes=self.num_classes,
            num_rays=self.num_rays,
            sizes_of_interest=self.sizes_of_interest,
            center_radius=self.center_radius,
            parts=self.parts,
        )
        positives = targets.positives
        is_polar = self.centerness == "polar"
        weights = polar_centerness(targets.rays_px) if is_polar else box_centerness(targets.box_distances_px)
        num_positives, weight_sum = loss_normalizers(
            positives.new_tensor(len(positives)), weights.sum(), self.normalizer_mode
        )
        cls_logits = flatten_levels(maps.cls_logits).flatten(0, 1)
        pred_rays = exp_size(flatten_levels(maps.ray_logits).flatten(0, 1)[positives])
        centerness_logits = flatten_levels(maps.centerness_logits).flatten()[positives]
        ray_loss = self.mask_loss(pred_rays, targets.rays_px, weights) * self.mask_loss_weight
        # The authors' code adds the number of images to the class loss's normaliser.
        cls_loss = focal_loss(cls_logits, targets.classes, self.focal_alpha, self.focal_gamma)
        return {
            "loss_cls": cls_loss / (num_positives + len(gt_instances)),
            "loss_mask": ray_loss / weight_sum,
            "loss_centerness": centerness_loss(centerness_logits, weights) / num_positives,
        }

    def inference(
        self,
        maps: PolarMaps,
        locations: Locations,
        image_sizes: list[tuple[int, int]],
        batched_inputs: list[dict],
    ) -> list[dict[str, Instances]]:
        """Detections of every image in its original pixels; NMS on the boxes of the contours."""
        cls_scores = flatten_levels(maps.cls_logits).float().sigmoid()
        centerness = flatten_levels(maps.centerness_logits).float().sigmoid().squeeze(2)
        ray_logits = flatten_levels(maps.ray_logits)
        is_usable = usable_locations(locations.points_px, image_sizes, (cls_scores, centerness[..., None], ray_logits))
        level_sizes = [height * width for height, width in map_sizes(maps.cls_logits)]
        rule, results = self.decode_rule, []
        for image, (size, inputs) in enumerate(zip(image_sizes, batched_inputs, strict=True)):
            candidates = select_candidates(
                cls_scores[image],
                centerness[image],
                is_usable[image],
                level_sizes,
                score_threshold=rule.score_threshold,
                topk=rule.pre_nms_topk,
                centerness_bias=self.centerness_bias,
            )
            points = locations.points_px[candidates.locations]
            contours = rays_to_contours(points, exp_size(ray_logits[image, candidates.locations]))
            boxes = clip_boxes(contour_boxes(contours), size)
            keep = suppress(boxes, candidates, nms_threshold=rule.nms_threshold, max_detections=rule.max_detections)
            output_size = (inputs.get("height", size[0]), inputs.get("width", size[1]))
            scale = output_scale(size, output_size, boxes.device)
            instances = _to_instances(
                points[keep] * scale, contours[keep] * scale, candidates.select(keep), output_size
            )
            results.append({"instances": instances})
        return results

    def dense_outputs(self, images: Tensor) -> PolarMaps:
        """(N, 3, H, W) normalised images, padded to the size divisibility -> the raw maps of every level."""
        features = self.backbone(images)
        return self.head([features[name] for name in self.in_features])


def _to_instances(
    points_px: Tensor, contours_px: Tensor, detections: Candidates, output_size: tuple[int, int]
) -> Instances:
    """Instances whose masks are the polygons of (D, n, 2) contours around (D, 2) points, at the output size.

    Beside the usual fields they have pred_centers (the points) and pred_contours, for pictures.
    """
    rles = polygons_to_rles(contours_px.cpu().double().numpy(), *output_size)
    return build_instances(
        output_size,
        clip_boxes(contour_boxes(contours_px), output_size),
        detections.scores,
        detections.classes,
        RLEMasks(rles, output_size),
        pred_centers=points_px,
        pred_contours=contours_px,
    )


def _check(polar: CfgNode) -> None:
    """Refuses values of MODEL.POLARMASK that cannot work."""
    if polar.NUM_RAYS < 3:
        raise ConfigError(f"MODEL.POLARMASK.NUM_RAYS is {polar.NUM_RAYS}; a contour needs at least 3 rays")
    for key, allowed in (
        ("PARTS", ("largest", "all")),
        ("MASK_LOSS", tuple(MASK_LOSSES)),
        ("CENTERNESS", ("polar", "cartesian")),
    ):
        if polar[key] not in allowed:
            raise ConfigError(f"MODEL.POLARMASK.{key} is {polar[key]!r}", f"use one of {', '.join(allowed)}")
