"""FCOSIS's meta-architecture: FCOS, and a segmentation that attends to what was detected.

Boxes, a coarse segmentation and ways to the centre of mass tell where in a box the detected object is; the
segmentation head sees its features weighted by that. Objects that do not overlap share one pass (graph colouring). Code
of this paper was never published: what it leaves open is listed in projects/FCOSIS/README.md.

Shape shorthand: N images, R locations, K classes, M objects (ground truths in training, detections at test), G colour
groups, H, W size of the stride-4 map.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor, nn

from fcosis.attention import Groups, attention_maps, group_locations
from fcosis.check import check_fcosis
from fcosis.coloring import color_boxes, group_numbers
from fcosis.detector import detection_losses, positive_weights, regularized_arguments
from fcosis.export import fcosis_plan
from fcosis.head import DetectionMaps, GroupingHead
from fcosis.losses import center_loss, coarse_losses, mask_loss
from fcosis.masks import cut_masks
from fcosis.objects import Objects, detected_objects, training_objects
from fcosis.pictures import map_pictures
from fcosis.regularization import average_shares
from fcosis.segmentation import SEG_FEATURES, ContextHead, SegmentationHead, shrink
from fcosis.targets import InnerTargets, center_targets, inner_targets, regularized_targets
from segzoo.export.plan import ExportPlan
from segzoo.geometry.rle import RLEMasks
from segzoo.geometry.soft_masks import MASK_STRIDE, soft_masks
from segzoo.modeling.fcos.decode import DecodeRule, Detections, detect_boxes, output_scale
from segzoo.modeling.fcos.fcos import head_arguments
from segzoo.modeling.fcos.head import FCOSHead, FCOSMaps
from segzoo.modeling.fcos.locations import Locations, compute_locations, flatten_levels, map_sizes
from segzoo.modeling.normalizer import count_normalizers
from segzoo.modeling.postprocess import build_instances
from segzoo.modeling.preprocess import ImagePreprocessor

logger = logging.getLogger(__name__)

# Pixels belong to a mask where its probability is at least this.
MASK_THRESHOLD = 0.5


class FCOSISMaps(NamedTuple):
    """What the network gives for a batch.

    detection: raw maps of the head, DetectionMaps with attention and else FCOSMaps. features: (N, C, Hi, Wi)
    of the segmentation's levels, finest first. class_logits: (N, K, H, W) of the baseline without attention, else None.
    """

    detection: DetectionMaps | FCOSMaps
    features: list[Tensor]
    class_logits: Tensor | None


@META_ARCH_REGISTRY.register()
class FCOSIS(nn.Module):
    """FCOS's boxes, and masks from a segmentation that attends to the objects of one colour group at a time."""

    # What the segmentation is done once more for.
    OBJECT_UNIT = "colour group"
    mu: Tensor | None

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        preprocessor: ImagePreprocessor,
        head: FCOSHead,
        segmentation: SegmentationHead | ContextHead,
        is_grouping: bool,
        learns_mu: bool,
        in_features: list[str],
        num_classes: int,
        sizes_of_interest: list[float],
        regularization: tuple[float, float, float],
        focal_alpha: float,
        focal_gamma: float,
        normalizer_mode: str,
        decode_rule: DecodeRule,
        mask_budget_mb: float,
        group_budget_mb: float,
    ) -> None:
        """
        Args:
            backbone: gives `in_features` and `SEG_FEATURES`.
            preprocessor: normalises and pads the images.
            head: a `GroupingHead` with attention, else an `FCOSHead`.
            segmentation: a `SegmentationHead`, or a `ContextHead` for the baseline without attention.
            is_grouping: whether attention is made of coarse segmentation and centres; else of boxes alone. They are
                learned in both cases, so that the attention is all that differs.
            learns_mu: whether mu is learned, for attention by grouping; otherwise it is 0.
            in_features: names of the detection's levels, finest first.
            num_classes: K.
            sizes_of_interest, focal_alpha, focal_gamma, normalizer_mode, decode_rule: see `FCOS`.
            regularization: (alpha, beta, gamma) of `regularized_weights`.
            mask_budget_mb: MiB held at once while masks are made.
            group_budget_mb: MiB of features that colour groups hold at once.
        """
        super().__init__()
        self.backbone = backbone
        self.preprocessor = preprocessor
        self.head = head
        self.segmentation = segmentation
        self.is_grouping = is_grouping
        self.in_features = in_features
        self.strides = [backbone.output_shape()[name].stride for name in in_features]
        self.num_classes = num_classes
        self.sizes_of_interest = sizes_of_interest
        self.regularization = regularization
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.normalizer_mode = normalizer_mode
        self.decode_rule = decode_rule
        self.mask_budget_mb = mask_budget_mb
        self.group_budget_mb = group_budget_mb
        # What an object's own pixels and those of others are weighted by (section 3.2.2).
        self.lam = nn.Parameter(torch.ones(())) if isinstance(segmentation, SegmentationHead) else None
        self.register_parameter("mu", nn.Parameter(torch.ones(())) if is_grouping and learns_mu else None)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        arguments = regularized_arguments(cfg)
        backbone, node = arguments["backbone"], cfg.MODEL.FCOSIS
        check_fcosis(cfg, backbone)
        levels = {
            "channels": backbone.output_shape()[SEG_FEATURES[0]].channels,
            "hidden": node.SEG_CHANNELS,
            "num_levels": len(SEG_FEATURES),
        }
        segmentation: nn.Module
        if node.ATTENTION == "none":
            segmentation = ContextHead(**levels, num_classes=cfg.MODEL.FCOS.NUM_CLASSES)
        else:
            segmentation = SegmentationHead(**levels)
        head_type = FCOSHead if node.ATTENTION == "none" else GroupingHead
        return arguments | {
            "head": head_type(**head_arguments(cfg, backbone)),
            "segmentation": segmentation,
            "is_grouping": node.ATTENTION == "grouping",
            "learns_mu": node.LEARN_MU,
            "mask_budget_mb": cfg.TEST.MASK_BUDGET_MB,
            "group_budget_mb": node.GROUP_BUDGET_MB,
        }

    @property
    def device(self) -> torch.device:
        return self.head.cls_logits.weight.device

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """Losses in training, else one {"instances": Instances} an image, at its original size."""
        maps, locations, image_sizes = self.look(batched_inputs)
        if self.training:
            return self.losses(maps, locations, [x["instances"].to(self.device) for x in batched_inputs])
        return self.inference(maps, locations, image_sizes, batched_inputs)

    def look(self, batched_inputs: list[dict]) -> tuple[FCOSISMaps, Locations, list[tuple[int, int]]]:
        """What the network gives for N inputs, its R cells, and N times (height, width) without padding."""
        images = self.preprocessor(batched_inputs, self.device)
        maps = self.dense_outputs(images.tensor)
        return (
            maps,
            compute_locations(map_sizes(maps.detection.cls_logits), self.strides, self.device),
            images.image_sizes,
        )

    def losses(self, maps: FCOSISMaps, locations: Locations, gt_instances: list[Instances]) -> dict[str, Tensor]:
        """FCOS's three losses, that of the masks, and with attention those of coarse segmentation and centres."""
        masks = soft_masks([x.gt_masks.tensor for x in gt_instances], self._mask_map_size(maps))
        shares = average_shares(masks, [len(x) for x in gt_instances], locations)
        targets = regularized_targets(locations, gt_instances, shares, self.num_classes, self.sizes_of_interest)
        weights = positive_weights(targets, self.regularization)
        objects = training_objects(gt_instances, masks, targets, weights, locations, self.sizes_of_interest)
        losses = detection_losses(
            FCOSMaps(maps.detection.cls_logits, maps.detection.box_logits, maps.detection.centerness_logits),
            targets,
            self.regularization,
            focal_alpha=self.focal_alpha,
            focal_gamma=self.focal_gamma,
            normalizer_mode=self.normalizer_mode,
        )
        if isinstance(maps.detection, DetectionMaps):
            inner = inner_targets(targets, objects.levels, locations, gt_instances, shares)
            losses |= self._grouping_losses(maps.detection, locations, inner, objects)
        logits, channels = self.segment(maps, locations, objects)
        own_losses = mask_loss(logits, channels, objects.apart_px / MASK_STRIDE, masks)
        # A mask without a pixel (section 3.2.3 divides by what it covers) teaches nothing.
        has_mask = masks.flatten(1).any(dim=1)
        num_masks = count_normalizers(has_mask.sum(), self.normalizer_mode)
        losses["loss_mask"] = (own_losses * has_mask).sum() / num_masks
        return losses

    def _grouping_losses(
        self, maps: DetectionMaps, locations: Locations, inner: InnerTargets, objects: Objects
    ) -> dict[str, Tensor]:
        """Losses of what objects are told apart by, means each: coarse segmentation within objects and outside of all
        boxes, and centres at the objects' foreground."""
        offsets, foreground = center_targets(inner, locations, objects.centers_px)
        pred_offsets = flatten_levels(maps.center_offsets).flatten(0, 1)[foreground]
        within, outside = coarse_losses(flatten_levels(maps.coarse_logits).flatten(), inner)
        center = center_loss(pred_offsets, offsets)
        lengths = offsets.new_tensor([len(inner.places), len(offsets)])
        counts = torch.cat((lengths, inner.is_outside.sum()[None]))
        num_within, num_foreground, num_outside = count_normalizers(counts, self.normalizer_mode)
        return {
            "loss_coarse": within / num_within + outside / num_outside,
            "loss_center": center / num_foreground,
        }

    def segment(self, maps: FCOSISMaps, locations: Locations, objects: Objects) -> tuple[Tensor, Tensor]:
        """Stride-4 maps that hold the objects' masks.

        Returns:
            (B, H, W) float32 logits of B = G groups (without attention: N x K classes), and (M,) int64: which of them
            is an object's.
        """
        if maps.class_logits is not None:
            num_classes = maps.class_logits.shape[1]
            return maps.class_logits.flatten(0, 1), objects.images * num_classes + objects.classes
        assert isinstance(self.segmentation, SegmentationHead)
        attention, groups, group_images = self.attend(maps, locations, objects)
        logits = self.segmentation(maps.features, attention, group_images, self.group_budget_mb)
        return logits, groups

    def attend(self, maps: FCOSISMaps, locations: Locations, objects: Objects) -> tuple[list[Tensor], Tensor, Tensor]:
        """Attention of every colour group.

        Returns:
            (G, 1, Hi, Wi) of the segmentation's levels, (M,) group of each object, (G,) image of each group.
        """
        assert self.lam is not None
        coloring = color_boxes(objects.apart_px, objects.counts)
        groups, group_images = group_numbers(coloring, objects.counts)
        self._log(coloring.num_colors)
        coarse = is_own = None
        if self.is_grouping:
            assert isinstance(maps.detection, DetectionMaps)
            coarse = flatten_levels(maps.detection.coarse_logits).float().sigmoid().squeeze(2)
            ways = flatten_levels(maps.detection.center_offsets).float() * locations.strides_px[:, None]
            is_own = group_locations(
                *(locations.points_px + ways.detach(), objects.centers_px, objects.stand_ins, objects.num_rivals),
                objects.counts,
            )
        placed = Groups(objects.boxes_px, objects.levels, objects.images, groups, len(group_images))
        mu = self.lam.new_zeros(()) if self.mu is None else self.mu
        finest = attention_maps(
            coarse, is_own, placed, locations, lam=self.lam, mu=mu, map_size=self._mask_map_size(maps)
        )
        return shrink(finest, len(maps.features)), groups, group_images

    def inference(
        self,
        maps: FCOSISMaps,
        locations: Locations,
        image_sizes: list[tuple[int, int]],
        batched_inputs: list[dict],
    ) -> list[dict[str, Instances]]:
        """Detections of every image in its original pixels."""
        detections = self.detect(maps, locations, image_sizes)
        objects = self.objects_of(detections, maps, locations)
        logits, channels = self.segment(maps, locations, objects)
        num_wild = int(logits.isnan().flatten(1).any(dim=1)[channels].sum())
        if num_wild:
            logger.warning("%d of %d masks have NaN, which is background", num_wild, len(channels))
        results = []
        per_image = zip(detections, channels.split(objects.counts), image_sizes, batched_inputs, strict=True)
        for found, own, size, inputs in per_image:
            output_size = (inputs.get("height", size[0]), inputs.get("width", size[1]))
            masks = self.cut(logits, own, found.boxes_px, input_size=size, output_size=output_size)
            boxes = found.boxes_px * output_scale(size, output_size, self.device).repeat(2)
            results.append({"instances": build_instances(output_size, boxes, found.scores, found.classes, masks)})
        return results

    def detect(
        self, maps: FCOSISMaps, locations: Locations, image_sizes: Sequence[tuple[int, int]]
    ) -> list[Detections]:
        """The detections of N images, from which their masks are made."""
        raw = maps.detection
        return detect_boxes(
            *(raw.cls_logits, raw.box_logits, raw.centerness_logits), locations, image_sizes, self.decode_rule
        )

    def objects_of(self, detections: Sequence[Detections], maps: FCOSISMaps, locations: Locations) -> Objects:
        """Detections of N images as the objects that are segmented."""
        offsets = maps.detection.center_offsets if isinstance(maps.detection, DetectionMaps) else []
        return detected_objects(detections, offsets, locations)

    def cut(
        self,
        logits: Tensor,
        channels: Tensor,
        boxes_px: Tensor,
        *,
        input_size: tuple[int, int],
        output_size: tuple[int, int],
    ) -> RLEMasks:
        """Masks of D objects of one image from what `segment` gives, see `cut_masks`."""
        return cut_masks(
            *(logits, channels, boxes_px),
            input_size=input_size,
            output_size=output_size,
            threshold=MASK_THRESHOLD,
            budget_mb=self.mask_budget_mb,
        )

    def dense_outputs(self, images: Tensor) -> FCOSISMaps:
        """(N, 3, H, W) normalised images, padded to the size divisibility -> what needs no objects."""
        features = self.backbone(images)
        detection = self.head([features[name] for name in self.in_features])
        levels = [features[name] for name in SEG_FEATURES]
        return FCOSISMaps(
            detection, levels, self.segmentation(levels) if isinstance(self.segmentation, ContextHead) else None
        )

    def object_stage(self, maps: FCOSISMaps, count: int) -> Tensor:
        """(G, H, W) logits of the first image for `count` colour groups, for the counting of what they cost."""
        if maps.class_logits is not None:
            return maps.class_logits[:0].flatten(0, 1)
        assert isinstance(self.segmentation, SegmentationHead)
        height, width = self._mask_map_size(maps)
        attention = shrink(maps.features[0].new_ones(count, 1, height, width), len(maps.features))
        images = torch.zeros(count, dtype=torch.int64, device=self.device)
        return self.segmentation(maps.features, attention, images, self.group_budget_mb)

    def export_plan(self) -> ExportPlan:
        """How this model is exported, see `fcosis.export`."""
        return fcosis_plan(self, MASK_THRESHOLD)

    def map_pictures(self, inputs: dict[str, Any]) -> dict[str, np.ndarray]:
        """What the masks of one image come from, see `fcosis.pictures.map_pictures`."""
        return map_pictures(self, inputs)

    def _mask_map_size(self, maps: FCOSISMaps) -> tuple[int, int]:
        height, width = maps.features[0].shape[2:]
        return height, width

    def _log(self, num_colors: Sequence[int]) -> None:
        """Colours an image, and the learned weights, which nothing keeps above 0."""
        if not (self.training and has_event_storage()):
            return
        storage = get_event_storage()
        storage.put_scalar("fcosis/colors", sum(num_colors) / max(len(num_colors), 1))
        for name, value in (("lambda", self.lam), ("mu", self.mu)):
            if value is not None:
                storage.put_scalar(f"fcosis/{name}", value.detach())
