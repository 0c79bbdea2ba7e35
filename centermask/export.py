"""How CenterMask is exported: maps and features as one graph, local shapes as a second one.

A map of all shapes would be S^2 channels deep. So the runtime (`segzoo.export.runtime.shapes`) gathers the 3 x 3
neighbourhoods of the places where it found something, and the second graph makes shapes of these.

Shape shorthand: C channels of the feature, P places, S side of a shape.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from centermask.fcos_head import FCOSMaskMaps
from centermask.maps import CenterMaps
from centermask.shape import KERNEL
from segzoo.export.plan import ExportPlan, ObjectGraph, detector_settings, name_levels, rule_dict

if TYPE_CHECKING:
    from centermask.centermask import CenterMask
    from centermask.centermask_fcos import CenterMaskFCOS

# Places of the example that the second graph is traced with.
NUM_EXAMPLES = 5


class ShapeGraph(nn.Module):
    """A head's shapes from (P, 9 C) neighbourhoods to (P, S, S) logits, as a module."""

    def __init__(self, head: nn.Module, shapes_from: Callable[[Tensor], Tensor]) -> None:
        """
        Args:
            head: whose weights are used.
            shapes_from: its method that does it.
        """
        super().__init__()
        self.head, self.shapes_from = head, shapes_from

    def forward(self, neighborhoods: Tensor) -> Tensor:
        """See the class."""
        return self.shapes_from(neighborhoods)


def center_plan(model: CenterMask) -> ExportPlan:
    """Of CenterMask on CenterNet: the maps of the last head."""
    head: Any = model.heads[-1]
    has_shapes, has_saliency = head.shape is not None, head.saliency is not None

    def name_maps(maps_per_head: list[CenterMaps]) -> dict[str, Tensor]:
        maps = maps_per_head[-1]
        named = {"heatmap": maps.heatmap, "offset": maps.offset, "size": maps.size}
        named |= {"saliency": maps.saliency} if maps.saliency is not None else {}
        return named | ({"feature": maps.feature} if has_shapes else {})

    objects = None
    if has_shapes:
        objects = _shape_graph(head.shape, head.shape.shapes_from, head.shape.hidden.in_channels)
    return ExportPlan("center_shapes", {**rule_dict(model), "has_saliency": has_saliency}, name_maps, objects)


def fcos_plan(model: CenterMaskFCOS) -> ExportPlan:
    """Of CenterMask on FCOS."""
    levels, has_shapes, has_saliency = list(model.in_features), model.head.shape_size > 0, model.saliency is not None

    def name_maps(maps: FCOSMaskMaps) -> dict[str, Tensor]:
        named = name_levels("cls_logits", maps.cls_logits, levels)
        named |= name_levels("box_logits", maps.box_logits, levels)
        named |= name_levels("centerness_logits", maps.centerness_logits, levels)
        named |= name_levels("box_features", maps.box_features, levels) if has_shapes else {}
        return named | ({"saliency": maps.saliency} if maps.saliency is not None else {})

    objects = None
    if model.head.shape_pred is not None:
        objects = _shape_graph(model.head, model.head.shapes_from, model.head.shape_pred.in_channels)
    settings = {"mask_threshold": float(model.mask_rule.threshold), "has_saliency": has_saliency}
    return ExportPlan("fcos_shapes", detector_settings(model) | settings, name_maps, objects)


def _shape_graph(head: nn.Module, shapes_from: Callable[[Tensor], Tensor], channels: int) -> ObjectGraph:
    def examples() -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(0)
        return (torch.randn(NUM_EXAMPLES, KERNEL**2 * channels, generator=generator),)

    graph = ShapeGraph(head, shapes_from)
    return ObjectGraph(graph, ("neighborhoods",), "shape_logits", examples, ({0: "places"},))
