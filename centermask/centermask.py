"""CenterMask's meta-architecture on CenterNet (Wang et al., CVPR 2020; not Lee and Park's network of the same name).

Shape shorthand: N images, D detections, K classes, S side of a shape, H, W size of the (padded) images.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.structures import Instances
from detectron2.utils import comm
from torch import Tensor, nn

from centermask.assembly import assemble_masks
from centermask.check import check_centermask
from centermask.decode import DecodeRule, Detections, find_peaks, peak_scores, select_detections
from centermask.export import center_plan
from centermask.heads import CenterHead, FeatureSum
from centermask.left_out import LeftOut
from centermask.losses import Counts, replace_zeros
from centermask.map_pictures import center_pictures
from centermask.maps import MAP_STRIDE, CenterMaps, gather_cells, saliency_channels_of
from centermask.objective import Objective, build_targets, feature_losses
from segzoo.export.plan import ExportPlan
from segzoo.modeling.fcos.decode import output_scale
from segzoo.modeling.normalizer import mean_over_ranks
from segzoo.modeling.postprocess import build_instances
from segzoo.modeling.preprocess import ImagePreprocessor


@META_ARCH_REGISTRY.register()
class CenterMask(nn.Module):
    """Boxes from centres, and masks that are a local shape times a global saliency map."""

    running_counts: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        preprocessor: ImagePreprocessor,
        fusion: FeatureSum | None,
        heads: Sequence[CenterHead],
        in_features: list[str],
        objective: Objective,
        normalizer_mode: str,
        decode_rule: DecodeRule,
        mask_budget_mb: float,
    ) -> None:
        """
        Args:
            backbone: gives `in_features`.
            preprocessor: normalises and pads the images.
            fusion: makes one feature of all of them; None = each has a head of its own.
            heads: of every supervised feature; at test the last one is used.
            in_features: of stride 4, or of rising strides from 4 on.
            objective: how a batch is trained on.
            normalizer_mode: "reduce" or "local", see `mean_over_ranks`.
            decode_rule: which peaks become detections, and which pixels their masks.
            mask_budget_mb: MiB held at once while masks are made.
        """
        super().__init__()
        self.backbone = backbone
        self.preprocessor = preprocessor
        self.fusion = fusion
        self.heads = nn.ModuleList(heads)
        self.in_features = in_features
        self.num_classes = objective.num_classes
        self.objective = objective
        self.normalizer_mode = normalizer_mode
        self.decode_rule = decode_rule
        self.mask_budget_mb = mask_budget_mb
        self.left_out = LeftOut()
        # Of peaks and foreground, see `replace_zeros`; in checkpoints, as a resumed run goes on with them.
        self.register_buffer("running_counts", torch.zeros(2))

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        node = cfg.MODEL.CENTERMASK
        backbone = build_backbone(cfg)
        check_centermask(cfg, backbone)
        shapes = [backbone.output_shape()[name] for name in node.IN_FEATURES]
        channels = [shape.channels for shape in shapes]
        is_summed = shapes[-1].stride > MAP_STRIDE
        saliency_channels = {"class_specific": node.NUM_CLASSES, "class_agnostic": 1, "none": 0}[node.SALIENCY]
        divisor = max(backbone.size_divisibility, shapes[-1].stride)
        return {
            "backbone": backbone,
            "preprocessor": ImagePreprocessor(cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD, divisor, cfg.INPUT.FORMAT),
            "fusion": FeatureSum(channels, node.FUSED_CHANNELS) if is_summed else None,
            "heads": [
                CenterHead(
                    in_channels=width,
                    channels=node.HEAD_CHANNELS,
                    num_classes=node.NUM_CLASSES,
                    shape_size=node.SHAPE_SIZE if node.SHAPE_ON else 0,
                    saliency_channels=saliency_channels,
                    saliency_prior=node.SALIENCY_PRIOR,
                )
                for width in ([node.FUSED_CHANNELS] if is_summed else channels)
            ],
            "in_features": list(node.IN_FEATURES),
            "objective": Objective(
                num_classes=node.NUM_CLASSES,
                saliency_channels=saliency_channels,
                max_objects=node.MAX_OBJECTS,
                crops_predicted=node.CROP_BOXES == "predicted",
                heatmap_weight=node.HEATMAP_LOSS_WEIGHT,
                offset_weight=node.OFFSET_LOSS_WEIGHT,
                size_weight=node.SIZE_LOSS_WEIGHT,
                mask_weight=node.MASK_LOSS_WEIGHT,
                saliency_weight=node.SALIENCY_LOSS_WEIGHT,
            ),
            "normalizer_mode": cfg.SOLVER.POSITIVE_COUNT,
            "decode_rule": DecodeRule(
                score_threshold=node.SCORE_THRESH_TEST,
                max_detections=cfg.TEST.DETECTIONS_PER_IMAGE,
                mask_threshold=node.MASK_THRESH,
            ),
            "mask_budget_mb": cfg.TEST.MASK_BUDGET_MB,
        }

    @property
    def device(self) -> torch.device:
        return self.running_counts.device

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """Losses in training, else one {"instances": Instances} an image, at its original size."""
        images = self.preprocessor(batched_inputs, self.device)
        maps_per_head = self.dense_outputs(images.tensor)
        if self.training:
            return self.losses(maps_per_head, [x["instances"].to(self.device) for x in batched_inputs])
        return self.inference(maps_per_head[-1], images.image_sizes, batched_inputs)

    def losses(self, maps_per_head: Sequence[CenterMaps], gt_instances: list[Instances]) -> dict[str, Tensor]:
        """Losses of a batch, each the mean over the supervised features; see `feature_losses`."""
        height, width = maps_per_head[0].heatmap.shape[2:]
        targets = build_targets(gt_instances, (height, width), self.objective)
        self.left_out.add(targets.not_trained, self.objective.max_objects)
        counts = self._divisors(targets.counts)
        objects, sums = targets.objects, defaultdict[str, list[Tensor]](list)
        for head, maps in zip(self.heads, maps_per_head, strict=True):
            assert isinstance(head, CenterHead)
            shapes = head.shapes_at(maps.feature, objects.images, objects.cells)
            for name, loss in feature_losses(maps, shapes, targets, counts, self.objective).items():
                sums[name].append(loss)
        return {name: torch.stack(losses).mean() for name, losses in sums.items()}

    def _divisors(self, own_counts: Counts) -> Counts:
        """What the losses are divided by: means over the ranks, and without any object those of earlier batches."""
        peaks, foreground, objects = mean_over_ranks(torch.stack(own_counts), self.normalizer_mode)
        # Of all ranks together at least one.
        least = 1.0 if self.normalizer_mode == "local" else 1.0 / comm.get_world_size()
        dense, running = replace_zeros(torch.stack((peaks, foreground)), self.running_counts, least)
        self.running_counts.copy_(running)
        return Counts(dense[0], dense[1], objects)

    def inference(
        self, maps: CenterMaps, image_sizes: list[tuple[int, int]], batched_inputs: list[dict]
    ) -> list[dict[str, Instances]]:
        """Detections of every image in its original pixels; beside the usual fields they have pred_centers."""
        results = []
        found = zip(self.detect(maps, image_sizes), image_sizes, batched_inputs, strict=True)
        for image, (detections, size, inputs) in enumerate(found):
            output_size = (inputs.get("height", size[0]), inputs.get("width", size[1]))
            masks = assemble_masks(
                self.shapes_of(maps, detections, image),
                None if maps.saliency is None else maps.saliency[image],
                detections.boxes_px,
                saliency_channels_of(detections.classes, self.objective.saliency_channels),
                input_size=size,
                output_size=output_size,
                threshold=self.decode_rule.mask_threshold,
                budget_mb=self.mask_budget_mb,
            )
            boxes = detections.boxes_px * output_scale(size, output_size, self.device).repeat(2)
            centers = (boxes[:, :2] + boxes[:, 2:]) / 2
            instances = build_instances(
                output_size, boxes, detections.scores, detections.classes, masks, pred_centers=centers
            )
            results.append({"instances": instances})
        return results

    def detect(self, maps: CenterMaps, image_sizes: list[tuple[int, int]]) -> list[Detections]:
        """Detections of every image in pixels of the network's input, best first."""
        peaks = find_peaks(peak_scores(maps.heatmap, image_sizes), self.decode_rule.max_detections)
        detections = []
        for image, size in enumerate(image_sizes):
            cells = peaks.cells[image]
            offsets, sizes = (gather_cells(values, image, cells) for values in (maps.offset, maps.size))
            scored = (peaks.scores[image], peaks.classes[image], cells, offsets, sizes)
            detections.append(select_detections(*scored, size, self.decode_rule.score_threshold))
        return detections

    def shapes_of(self, maps: CenterMaps, detections: Detections, image: int) -> Tensor | None:
        """(D, S, S) logits of the local shapes of one image's detections; None without shapes."""
        head = self.heads[-1]
        assert isinstance(head, CenterHead)
        return head.shapes_at(maps.feature, torch.full_like(detections.classes, image), detections.cells)

    def dense_outputs(self, images: Tensor) -> list[CenterMaps]:
        """(N, 3, H, W) normalised images, padded to the size divisibility -> the raw maps of every supervised feature.

        At test those of the last one alone, which detections are made of.
        """
        features = self.backbone(images)
        supervised = [features[name] for name in self.in_features]
        if self.fusion is not None:
            supervised = [self.fusion(supervised)]
        heads = list(self.heads)
        if not self.training:
            supervised, heads = supervised[-1:], heads[-1:]
        return [head(feature) for head, feature in zip(heads, supervised, strict=True)]

    def mask_maps(self, maps_per_head: Sequence[CenterMaps]) -> list[Tensor]:
        """The raw maps that masks are built from: the feature that shapes are made of, and the saliency."""
        maps = maps_per_head[-1]
        feature = None if self.heads[-1].shape is None else maps.feature
        return [values for values in (feature, maps.saliency) if values is not None]

    def export_plan(self) -> ExportPlan:
        """How this model is exported, see `centermask.export`."""
        return center_plan(self)

    def map_pictures(self, inputs: dict[str, Any]) -> dict[str, np.ndarray]:
        """Pictures of what the masks of one image are made of, by title; see `centermask.map_pictures`."""
        return center_pictures(self, inputs)
