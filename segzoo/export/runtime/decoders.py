"""The decoders by the names that models' files ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from segzoo.export.runtime import attention, orientation, polar, regions, shapes
from segzoo.export.runtime import boxes as fcos
from segzoo.export.runtime.detections import Detections, finish
from segzoo.export.runtime.images import Prepared

ObjectGraph = Callable[..., np.ndarray]
# Maps by name, settings, the image and the second graph (None where the model has none) -> detections.
Decoder = Callable[[Mapping[str, np.ndarray], Mapping[str, Any], Prepared, ObjectGraph | None], Detections]


def decode_boxes(
    maps: Mapping[str, np.ndarray], settings: Mapping[str, Any], image: Prepared, objects: ObjectGraph | None
) -> Detections:
    """FCOS: boxes only."""
    found, _ = fcos.detect_boxes(maps, settings, image.input_size)
    boxes = found.boxes_px * np.tile(fcos.output_scale(image.input_size, image.output_size), 2)
    return finish(boxes, found.candidates.scores, found.candidates.classes, None, image.output_size)


DECODERS: dict[str, Decoder] = {
    "boxes": decode_boxes,
    "polar": lambda maps, settings, image, _: polar.decode(maps, settings, image),
    "center_shapes": shapes.decode_centers,
    "fcos_shapes": shapes.decode_fcos,
    "orientation": lambda maps, settings, image, _: orientation.decode(maps, settings, image),
    "attention": attention.decode,
    "regions": regions.decode,
}
