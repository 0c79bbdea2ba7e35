"""How FCOSIS and MaskFCOS are exported: what needs no detections as one graph, what follows them as a second one.

FCOSIS: attention is made of the detections by the runtime (`segzoo.export.runtime.attention`); the second graph is the
segmentation of the features that it weights. MaskFCOS: the runtime pools the features of boxes
(`segzoo.export.runtime.regions`); the second graph is the mask head.

Shape shorthand: C channels, G colour groups, D boxes, P side of a box's features, S of its mask, K classes,
H, W size of the stride-4 map.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fcosis.head import DetectionMaps
from fcosis.objects import MERGED_DISTANCE, MERGED_IOU, RIVAL_SCORE
from fcosis.segmentation import SEG_FEATURES, SegmentationHead, shrink
from segzoo.errors import ConfigError
from segzoo.export.plan import ExportPlan, Length, ObjectGraph, detector_settings, name_levels
from segzoo.modeling.fcos.head import FCOSMaps
from segzoo.modeling.precision import predict_in_fp32

if TYPE_CHECKING:
    from fcosis.fcosis import FCOSIS, FCOSISMaps
    from fcosis.mask_fcos import MaskFCOS, MaskFCOSMaps

# Height and width in cells of the coarsest level, and number of groups or boxes, of the examples of a second graph.
EXAMPLE_CELLS, NUM_EXAMPLES = (4, 6), 3


class GroupGraph(nn.Module):
    """The segmentation of an image's colour groups: (1, C, Hi, Wi) of each level, then (G, 1, H, W) -> (G, H, W)."""

    def __init__(self, head: SegmentationHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, fine: Tensor, middle: Tensor, coarse: Tensor, attention: Tensor) -> Tensor:
        """See the class; each input has a name of its own, as torch.export wants shapes by argument."""
        features = (fine, middle, coarse)
        levels = shrink(attention, len(features))
        weighted = [feature * weights for feature, weights in zip(features, levels, strict=True)]
        return predict_in_fp32(self.head.pred, self.head.levels(weighted)).squeeze(1)


class MaskHeadGraph(nn.Module):
    """MaskFCOS's mask head: (D, C, P, P) features of boxes -> (D, K or 1, S, S) logits."""

    head: Any

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, regions: Tensor) -> Tensor:
        """See the class."""
        out: Tensor = self.head.layers(regions)
        return out


def _detection_maps(maps: FCOSMaps | DetectionMaps, levels: list[str], *, is_grouping: bool) -> dict[str, Tensor]:
    named = name_levels("cls_logits", maps.cls_logits, levels)
    named |= name_levels("box_logits", maps.box_logits, levels)
    named |= name_levels("centerness_logits", maps.centerness_logits, levels)
    if is_grouping and isinstance(maps, DetectionMaps):
        named |= name_levels("coarse_logits", maps.coarse_logits, levels)
        named |= name_levels("center_offsets", maps.center_offsets, levels)
    return named


def fcosis_plan(model: FCOSIS, mask_threshold: float) -> ExportPlan:
    """Of FCOSIS, with any attention; `mask_threshold` of the probability."""
    levels, has_attention = list(model.in_features), isinstance(model.segmentation, SegmentationHead)

    def name_maps(maps: FCOSISMaps) -> dict[str, Tensor]:
        named = _detection_maps(maps.detection, levels, is_grouping=model.is_grouping)
        if maps.class_logits is not None:
            return named | {"class_logits": maps.class_logits}
        return named | name_levels("features", maps.features, SEG_FEATURES)

    settings: dict[str, Any] = {
        "is_grouping": model.is_grouping,
        "seg_levels": SEG_FEATURES,
        "lam": 0.0 if model.lam is None else float(model.lam),
        "mu": 0.0 if model.mu is None else float(model.mu),
        "mask_threshold": mask_threshold,
        "rival_score": RIVAL_SCORE,
        "merged_iou": MERGED_IOU,
        "merged_distance": MERGED_DISTANCE,
    }
    objects = None
    if has_attention:
        assert isinstance(model.segmentation, SegmentationHead)
        objects = _group_graph(model.segmentation)
    return ExportPlan("attention", detector_settings(model) | settings, name_maps, objects)


def _group_graph(head: SegmentationHead) -> ObjectGraph:
    lateral = head.levels.laterals[0]
    assert isinstance(lateral, nn.Conv2d)
    factors = [2 ** (len(SEG_FEATURES) - 1 - number) for number in range(len(SEG_FEATURES))]

    def examples() -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(0)
        sizes = [[factor * side for side in EXAMPLE_CELLS] for factor in factors]
        features = [torch.randn(1, lateral.in_channels, *size, generator=generator) for size in sizes]
        return (*features, torch.randn(NUM_EXAMPLES, 1, *sizes[0], generator=generator))

    lengths: list[dict[int, Length]] = [{2: ("rows", factor), 3: ("columns", factor)} for factor in factors]
    names = (*(f"features_{level}" for level in SEG_FEATURES), "attention")
    return ObjectGraph(GroupGraph(head), names, "mask_logits", examples, (*lengths, {0: "groups", **lengths[0]}))


def mask_fcos_plan(model: MaskFCOS) -> ExportPlan:
    """Of MaskFCOS.

    Raises:
        ConfigError: boxes are pooled by another rule than RoIAlign, which is all that the runtime has.
    """
    levels, head = list(model.in_features), model.mask_head
    pooler = head.pooler.level_poolers[0]
    if not hasattr(pooler, "sampling_ratio"):
        raise ConfigError(
            "MODEL.ROI_MASK_HEAD.POOLER_TYPE is 'ROIPool', which the runtime cannot do", "train with ROIAlignV2"
        )

    def name_maps(maps: MaskFCOSMaps) -> dict[str, Tensor]:
        named = _detection_maps(maps.detection, levels, is_grouping=False)
        return named | name_levels("features", [maps.features[name] for name in head.in_features], head.in_features)

    settings = {
        "mask_levels": list(head.in_features),
        "mask_strides": [round(1 / own.spatial_scale) for own in head.pooler.level_poolers],
        "pooled_size": head.mask_size // 2,
        "sampling_ratio": int(pooler.sampling_ratio),
        "is_aligned": bool(pooler.aligned),
    }
    channels = next(module for module in head.head.modules() if isinstance(module, nn.Conv2d)).in_channels

    def examples() -> tuple[Tensor, ...]:
        shape = (NUM_EXAMPLES, channels, head.mask_size // 2, head.mask_size // 2)
        return (torch.randn(*shape, generator=torch.Generator().manual_seed(0)),)

    objects = ObjectGraph(MaskHeadGraph(head.head), ("regions",), "mask_logits", examples, ({0: "boxes"},))
    return ExportPlan("regions", detector_settings(model) | settings, name_maps, objects)
