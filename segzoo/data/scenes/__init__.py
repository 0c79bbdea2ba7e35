"""Generated scenes: the data set that comes with SegZoo, drawn on first use (see docs/scenes.md)."""

from segzoo.data.scenes.shapes import CLASS_NAMES
from segzoo.data.scenes.writer import (
    SCENES_V1_NAMES,
    ensure_scenes_v1,
    generate_scenes,
    make_scene,
    scenes_v1,
)

__all__ = ["CLASS_NAMES", "SCENES_V1_NAMES", "ensure_scenes_v1", "generate_scenes", "make_scene", "scenes_v1"]
