"""Mask R-CNN as Detectron2 has it, as a baseline behind SegZoo's mapper, engine and evaluator.

Network, losses and box decoding are Detectron2's own. Different are only how images come in, how the ground-truth
masks are held in training, and how the predicted ones leave.

Shape shorthand:
    N: images, M: ground truths, B: proposals, D: detections, H, W: size of an image in pixels.
"""

from __future__ import annotations

import logging
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.structures import ImageList, Instances
from detectron2.utils.events import EventStorage, has_event_storage
from torch import Tensor

from segzoo.geometry.paste import paste_as_rle
from segzoo.modeling.mask_rcnn_pictures import map_pictures
from segzoo.modeling.postprocess import build_instances
from segzoo.modeling.preprocess import ImagePreprocessor
from segzoo.modeling.shared_masks import SharedMasks

logger = logging.getLogger(__name__)


@META_ARCH_REGISTRY.register()
class MaskRCNN(GeneralizedRCNN):
    """Detectron2's Mask R-CNN whose masks are held as run lengths from the pasting on."""

    @configurable
    def __init__(self, *, preprocessor: ImagePreprocessor, mask_budget_mb: float, **kwargs: Any) -> None:
        """
        Args:
            preprocessor: normalises and pads the images.
            mask_budget_mb: MiB of full-size masks held at once while they are pasted and encoded.
            kwargs: GeneralizedRCNN's.
        """
        super().__init__(**kwargs)
        self.preprocessor = preprocessor
        self.mask_budget_mb = mask_budget_mb
        self.backbone.register_forward_hook(_warn_of_nan)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        arguments = super().from_config(cfg)
        divisor = arguments["backbone"].size_divisibility
        mean, std = cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD
        arguments["preprocessor"] = ImagePreprocessor(mean, std, divisor, cfg.INPUT.FORMAT)
        arguments["mask_budget_mb"] = cfg.TEST.MASK_BUDGET_MB
        return arguments

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """Losses in training, else one {"instances": Instances} an image, at its original size."""
        if not self.training:
            return self.inference(batched_inputs)
        shared = [{**entry, "instances": _with_shared_masks(entry["instances"])} for entry in batched_inputs]
        # Detectron2's heads record figures in every training step, also where nobody asked for a storage.
        with nullcontext() if has_event_storage() else EventStorage():
            try:
                return super().forward(shared)
            except FloatingPointError as error:
                logger.warning("%s", error)
                return self._diverged_losses()

    def _diverged_losses(self) -> dict[str, Tensor]:
        """NaN for every loss, from every parameter.

        The proposal generator raises on the one rank that has diverged, while the others wait for its gradient; as a
        loss that is not finite the trainer sees it on all of them.
        """
        names = ["loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"]
        if self.roi_heads.mask_on:
            names.append("loss_mask")
        total = torch.stack([parameter.sum() for parameter in self.parameters() if parameter.requires_grad]).sum()
        return {name: total * float("nan") for name in names}

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList:
        """Normalises and batches the images."""
        return self.preprocessor(batched_inputs, self.device)

    def inference(
        self,
        batched_inputs: list[dict],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ) -> list:
        """As GeneralizedRCNN.inference, but pred_masks are RLEMasks."""
        raw = super().inference(batched_inputs, detected_instances, do_postprocess=False)
        if not do_postprocess:
            return raw
        outputs = []
        for entry, detections in zip(batched_inputs, raw, strict=True):
            size = (entry.get("height", detections.image_size[0]), entry.get("width", detections.image_size[1]))
            outputs.append({"instances": self._output(detections, size)})
        return outputs

    def map_pictures(self, inputs: dict[str, Any]) -> dict[str, np.ndarray]:
        """Pictures of what the masks of one image come from, by title; see `segzoo.modeling.mask_rcnn_pictures`."""
        return map_pictures(self, inputs)

    def _output(self, detections: Instances, size: tuple[int, int]) -> Instances:
        """Detections at network size to Instances at `size` (H, W)."""
        scale_y, scale_x = size[0] / detections.image_size[0], size[1] / detections.image_size[1]
        boxes = detections.pred_boxes.tensor.float() * detections.scores.new_tensor([scale_x, scale_y] * 2).float()
        boxes = torch.stack([boxes[:, 0::2].clamp(0, size[1]), boxes[:, 1::2].clamp(0, size[0])], dim=2).flatten(1)
        # Without an area there is no mask to stretch over it.
        keep = ((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])).nonzero()[:, 0]
        boxes, detections = boxes[keep], detections[keep]
        masks = None
        if detections.has("pred_masks"):
            masks = paste_as_rle(detections.pred_masks[:, 0], boxes, size, budget_mb=self.mask_budget_mb)
        return build_instances(size, boxes, detections.scores, detections.pred_classes, masks)


def _warn_of_nan(backbone: torch.nn.Module, _: Any, features: dict[str, Tensor]) -> None:
    """Says at test time what Detectron2's heads would drop without a word."""
    if backbone.training:
        return
    is_bad = torch.stack([feature.isnan().flatten(1).any(dim=1) for feature in features.values()]).any(dim=0)
    num_bad = int(is_bad.sum())
    if num_bad:
        logger.warning("%d of %d images gave NaN features; what they spoil is left out", num_bad, len(is_bad))


def _with_shared_masks(instances: Instances) -> Instances:
    fields = instances.get_fields()
    return Instances(instances.image_size, **{**fields, "gt_masks": SharedMasks(fields["gt_masks"].tensor)})
