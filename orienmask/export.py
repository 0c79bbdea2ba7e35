"""How OrienMask is exported: box maps and orientations, decoded by `segzoo.export.runtime.orientation`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from orienmask.maps import OrienMaps
from segzoo.export.plan import ExportPlan, name_levels, rule_dict

if TYPE_CHECKING:
    from orienmask.orienmask import OrienMask


def export_plan(model: OrienMask) -> ExportPlan:
    """The box maps by their strides, and the orientation maps."""
    rule = model.target_rule
    strides = [int(stride) for stride in rule.strides]

    def name_maps(maps: OrienMaps) -> dict[str, Tensor]:
        return name_levels("boxes", maps.boxes, [str(stride) for stride in strides]) | {
            "orientations": maps.orientations
        }

    anchors = [[float(side) for side in anchor] for anchor in rule.anchors_px]
    return ExportPlan("orientation", {**rule_dict(model), "strides": strides, "anchors_px": anchors}, name_maps)
