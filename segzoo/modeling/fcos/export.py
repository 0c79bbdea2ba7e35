"""How FCOS is exported: its raw maps, decoded by `segzoo.export.runtime.decoders.decode_boxes`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from segzoo.export.plan import ExportPlan, detector_settings, name_levels
from segzoo.modeling.fcos.head import FCOSMaps


def export_plan(model: Any) -> ExportPlan:
    """Of an `FCOS` or a model with the same network."""
    levels = list(model.in_features)

    def name_maps(maps: FCOSMaps) -> dict[str, Tensor]:
        return {
            name: values
            for kind, per_level in maps._asdict().items()
            for name, values in name_levels(kind, per_level, levels).items()
        }

    return ExportPlan("boxes", detector_settings(model), name_maps, notes=("this model gives boxes and no masks",))
