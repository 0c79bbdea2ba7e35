"""How PolarMask is exported: its raw maps, decoded by `segzoo.export.runtime.polar`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from polarmask.polar_head import PolarMaps
from segzoo.export.plan import ExportPlan, detector_settings, name_levels

if TYPE_CHECKING:
    from polarmask.polarmask import PolarMask


def export_plan(model: PolarMask) -> ExportPlan:
    """All maps of the head; those of a box branch only where boxes come from it."""
    rule, levels = model.contour_rule, list(model.in_features)

    def name_maps(maps: PolarMaps) -> dict[str, Tensor]:
        named = name_levels("cls_logits", maps.cls_logits, levels)
        named |= name_levels("centerness_logits", maps.centerness_logits, levels)
        named |= name_levels("ray_logits", maps.ray_logits, levels)
        return named | (name_levels("box_logits", maps.box_logits, levels) if rule.uses_predicted_boxes else {})

    settings = {"centerness_bias": float(model.centerness_bias), **rule._asdict()}
    return ExportPlan("polar", detector_settings(model) | settings, name_maps)
