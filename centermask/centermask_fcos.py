"""CenterMask-FCOS's meta-architecture (section 4.3 of Wang et al., CVPR 2020; not Lee and Park's network, which puts a
mask branch on FCOS too).

The paper has one paragraph on it: boxes come from FCOS instead of centre, offset and size, and a location's local shape
from its box tower. What it leaves open is listed in projects/CenterMask/README.md.

Shape shorthand: N images, R locations, K classes, M ground truths, P positives, Q of them with a mask loss, D
detections, Cs channels of the saliency.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone
from detectron2.structures import Instances
from detectron2.utils import comm
from torch import Tensor, nn

from centermask.assembly import assemble_masks, mask_loss, saliency_loss
from centermask.check_fcos import check_centermask_fcos
from centermask.export import fcos_plan
from centermask.fcos_head import FCOSMaskHead, FCOSMaskMaps
from centermask.fcos_targets import FCOSTargets, draw_positives, fcos_targets
from centermask.losses import replace_zeros
from centermask.map_pictures import fcos_pictures
from centermask.maps import MAP_STRIDE, saliency_channels_of
from centermask.saliency import SaliencyBranch
from centermask.targets import image_numbers
from centermask.unions import union_masks
from segzoo.export.plan import ExportPlan
from segzoo.geometry.soft_masks import soft_masks
from segzoo.modeling.fcos.decode import DecodeRule, Detections, detect_boxes, output_scale
from segzoo.modeling.fcos.fcos import detector_arguments, head_arguments
from segzoo.modeling.fcos.head import exp_size
from segzoo.modeling.fcos.locations import Locations, compute_locations, flatten_levels, map_sizes
from segzoo.modeling.fcos.losses import box_centerness, centerness_loss, focal_loss, iou_loss
from segzoo.modeling.normalizer import loss_normalizers, mean_over_ranks
from segzoo.modeling.postprocess import build_instances
from segzoo.modeling.preprocess import ImagePreprocessor


class MaskRule(NamedTuple):
    """How masks are trained and cut out.

    mask_weight, saliency_weight: factors of the losses; 0: no direct supervision of the saliency. max_masks: positive
    locations of an image that masks are trained at. threshold: of shape x saliency. budget_mb: MiB held at once while
    masks are made.
    """

    mask_weight: float
    saliency_weight: float
    max_masks: int
    threshold: float
    budget_mb: float


@META_ARCH_REGISTRY.register()
class CenterMaskFCOS(nn.Module):
    """FCOS v1 boxes, and masks that are a local shape at the location times a global saliency map."""

    running_foreground: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        preprocessor: ImagePreprocessor,
        head: FCOSMaskHead,
        saliency: SaliencyBranch | None,
        in_features: list[str],
        saliency_features: list[str],
        num_classes: int,
        saliency_channels: int,
        sizes_of_interest: list[float],
        center_radius: float,
        focal_alpha: float,
        focal_gamma: float,
        normalizer_mode: str,
        mask_rule: MaskRule,
        decode_rule: DecodeRule,
    ) -> None:
        """
        Args:
            backbone: gives `in_features`.
            preprocessor: normalises and pads the images.
            head: raw maps of every level, and shapes where they are wanted.
            saliency: makes the saliency of `saliency_features`; None = shapes alone.
            in_features, saliency_features: names of levels, finest first.
            num_classes: K.
            saliency_channels: Cs, K or 1; of no use without a saliency.
            sizes_of_interest, center_radius, focal_alpha, focal_gamma, normalizer_mode, decode_rule: see `FCOS`.
            mask_rule: how masks are trained and cut out.
        """
        super().__init__()
        self.backbone = backbone
        self.preprocessor = preprocessor
        self.head = head
        self.saliency = saliency
        self.in_features = in_features
        self.saliency_features = saliency_features
        self.strides = [backbone.output_shape()[name].stride for name in in_features]
        self.num_classes = num_classes
        self.saliency_channels = saliency_channels
        self.sizes_of_interest = sizes_of_interest
        self.center_radius = center_radius
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.normalizer_mode = normalizer_mode
        self.mask_rule = mask_rule
        self.decode_rule = decode_rule
        # Divides the saliency's loss of batches without objects; in checkpoints, so that a resumed run goes on with it.
        self.register_buffer("running_foreground", torch.zeros(()))

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        node = cfg.MODEL.CENTERMASK_FCOS
        arguments = detector_arguments(cfg)
        backbone = arguments["backbone"]
        check_centermask_fcos(cfg, backbone)
        head_options = head_arguments(cfg, backbone)
        saliency, saliency_channels = None, 1 if node.SALIENCY == "class_agnostic" else cfg.MODEL.FCOS.NUM_CLASSES
        if node.SALIENCY != "none":
            saliency = SaliencyBranch(
                channels=head_options["channels"],
                num_convs=node.SALIENCY_NUM_CONVS,
                norm=cfg.MODEL.FCOS.NORM,
                num_outputs=saliency_channels,
                prior_prob=node.SALIENCY_PRIOR,
                enlargement=backbone.output_shape()[node.SALIENCY_FEATURES[0]].stride // MAP_STRIDE,
            )
        return arguments | {
            "head": FCOSMaskHead(shape_size=node.SHAPE_SIZE if node.SHAPE_ON else 0, **head_options),
            "saliency": saliency,
            "saliency_features": list(node.SALIENCY_FEATURES),
            "saliency_channels": saliency_channels,
            "mask_rule": MaskRule(
                mask_weight=node.MASK_LOSS_WEIGHT,
                saliency_weight=node.SALIENCY_LOSS_WEIGHT,
                max_masks=node.MAX_MASKS,
                threshold=node.MASK_THRESH,
                budget_mb=cfg.TEST.MASK_BUDGET_MB,
            ),
        }

    @property
    def device(self) -> torch.device:
        return self.running_foreground.device

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """Losses in training, else one {"instances": Instances} an image, at its original size.

        An input's "draw_seed" decides which of its positive locations have a mask loss where there are too many.
        """
        images = self.preprocessor(batched_inputs, self.device)
        maps = self.dense_outputs(images.tensor)
        locations = compute_locations(map_sizes(maps.cls_logits), self.strides, self.device)
        if self.training:
            gt_instances = [x["instances"].to(self.device) for x in batched_inputs]
            return self.losses(maps, locations, gt_instances, [x.get("draw_seed", 0) for x in batched_inputs])
        return self.inference(maps, locations, images.image_sizes, batched_inputs)

    def losses(
        self, maps: FCOSMaskMaps, locations: Locations, gt_instances: list[Instances], draw_seeds: Sequence[int]
    ) -> dict[str, Tensor]:
        """FCOS's three losses, that of the masks, and perhaps that of the saliency."""
        targets = fcos_targets(
            locations, gt_instances, self.num_classes, self.sizes_of_interest, center_radius=self.center_radius
        )
        positives = targets.positives
        weights = box_centerness(targets.box_distances_px)
        normalizers = loss_normalizers(positives.new_tensor(len(positives)), weights.sum(), self.normalizer_mode)
        cls_logits = flatten_levels(maps.cls_logits).flatten(0, 1)
        pred_distances = exp_size(flatten_levels(maps.box_logits).flatten(0, 1)[positives])
        centerness_logits = flatten_levels(maps.centerness_logits).flatten()[positives]
        cls_loss = focal_loss(cls_logits, targets.classes, self.focal_alpha, self.focal_gamma)
        box_loss = iou_loss(pred_distances, targets.box_distances_px, weights)
        losses = {
            "loss_cls": cls_loss / normalizers.positives,
            "loss_box": box_loss / normalizers.weight_sum,
            "loss_centerness": centerness_loss(centerness_logits, weights) / normalizers.positives,
        }
        return losses | self._mask_losses(maps, locations, gt_instances, targets, weights, draw_seeds)

    def _mask_losses(
        self,
        maps: FCOSMaskMaps,
        locations: Locations,
        gt_instances: list[Instances],
        targets: FCOSTargets,
        weights: Tensor,
        draw_seeds: Sequence[int],
    ) -> dict[str, Tensor]:
        """The losses of masks at some of the P positives, whose centerness is `weights` (P,), and of the saliency."""
        num_images, num_locations = len(gt_instances), len(locations.points_px)
        drawn = draw_positives(targets.positives // num_locations, draw_seeds, self.mask_rule.max_masks)
        owners, images = targets.owners[drawn], targets.positives[drawn] // num_locations
        height, width = (side * self.strides[0] // MAP_STRIDE for side in maps.cls_logits[0].shape[-2:])
        masks = soft_masks([instances.gt_masks.tensor for instances in gt_instances], (height, width))
        boxes = torch.cat([instances.gt_boxes.tensor for instances in gt_instances]) / MAP_STRIDE
        channels = saliency_channels_of(
            torch.cat([instances.gt_classes for instances in gt_instances]), self.saliency_channels
        )
        own_losses = mask_loss(
            self._shapes_at(maps, locations, targets.positives[drawn] % num_locations, images),
            maps.saliency,
            images,
            channels[owners],
            boxes[owners],
            masks,
            owners,
        )
        has_union = maps.saliency is not None and self.mask_rule.saliency_weight > 0
        unions = masks.new_zeros(0)
        if has_union:
            unions = union_masks(
                masks, image_numbers(gt_instances, self.device), channels, num_images, self.saliency_channels
            )
        sums = torch.stack((weights[drawn].sum(), unions.sum()))
        weight_sum, foreground = mean_over_ranks(sums, self.normalizer_mode)
        weighted = (own_losses * weights[drawn]).sum() / weight_sum.clamp(min=1e-6)
        losses = {"loss_mask": self.mask_rule.mask_weight * weighted}
        if has_union and maps.saliency is not None:
            # Of all ranks together at least one cell.
            least = 1.0 if self.normalizer_mode == "local" else 1.0 / comm.get_world_size()
            divisor, running = replace_zeros(foreground, self.running_foreground, least)
            self.running_foreground.copy_(running)
            losses["loss_saliency"] = self.mask_rule.saliency_weight * saliency_loss(maps.saliency, unions) / divisor
        return losses

    def _shapes_at(self, maps: FCOSMaskMaps, locations: Locations, index: Tensor, images: Tensor) -> Tensor | None:
        """(Q, S, S) shape logits at Q locations, `index` among the R, of the numbered images; None without shapes."""
        cells = (locations.points_px[index] / locations.strides_px[index, None]).long()
        return self.head.shapes_at(maps.box_features, locations.levels[index], images, cells)

    def inference(
        self,
        maps: FCOSMaskMaps,
        locations: Locations,
        image_sizes: list[tuple[int, int]],
        batched_inputs: list[dict],
    ) -> list[dict[str, Instances]]:
        """Detections of every image in its original pixels."""
        results = []
        found = zip(self.detect(maps, locations, image_sizes), image_sizes, batched_inputs, strict=True)
        for image, (detections, size, inputs) in enumerate(found):
            output_size = (inputs.get("height", size[0]), inputs.get("width", size[1]))
            masks = assemble_masks(
                self.shapes_of(maps, locations, detections, image),
                None if maps.saliency is None else maps.saliency[image],
                detections.boxes_px,
                saliency_channels_of(detections.classes, self.saliency_channels),
                input_size=size,
                output_size=output_size,
                threshold=self.mask_rule.threshold,
                budget_mb=self.mask_rule.budget_mb,
            )
            boxes = detections.boxes_px * output_scale(size, output_size, self.device).repeat(2)
            instances = build_instances(output_size, boxes, detections.scores, detections.classes, masks)
            results.append({"instances": instances})
        return results

    def detect(self, maps: FCOSMaskMaps, locations: Locations, image_sizes: list[tuple[int, int]]) -> list[Detections]:
        """Detections of every image in pixels of the network's input, best first."""
        return detect_boxes(
            *(maps.cls_logits, maps.box_logits, maps.centerness_logits), locations, image_sizes, self.decode_rule
        )

    def shapes_of(self, maps: FCOSMaskMaps, locations: Locations, detections: Detections, image: int) -> Tensor | None:
        """(D, S, S) logits of the local shapes of one image's detections; None without shapes."""
        index = detections.locations
        return self._shapes_at(maps, locations, index, torch.full_like(index, image))

    def dense_outputs(self, images: Tensor) -> FCOSMaskMaps:
        """(N, 3, H, W) normalised images, padded to the size divisibility -> the raw maps."""
        features = self.backbone(images)
        maps = self.head([features[name] for name in self.in_features])
        if self.saliency is None:
            return maps
        return maps._replace(saliency=self.saliency([features[name] for name in self.saliency_features]))

    def mask_maps(self, maps: FCOSMaskMaps) -> list[Tensor]:
        """The raw maps that masks are built from: the features that shapes are made of, and the saliency."""
        features = maps.box_features if self.head.shape_size else []
        return [*features, *([] if maps.saliency is None else [maps.saliency])]

    def export_plan(self) -> ExportPlan:
        """How this model is exported, see `centermask.export`."""
        return fcos_plan(self)

    def map_pictures(self, inputs: dict[str, Any]) -> dict[str, np.ndarray]:
        """Pictures of what the masks of one image are made of, by title; see `centermask.map_pictures`."""
        return fcos_pictures(self, inputs)
