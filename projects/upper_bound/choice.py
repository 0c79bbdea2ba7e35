"""Which representations are measured, from a few options."""

from __future__ import annotations

from collections.abc import Sequence

from projects.upper_bound.cut_maps import BoxMaskGroup, CutMapGroup
from projects.upper_bound.inputs import CENTERED, SHORTEST_EDGE, WARPED
from projects.upper_bound.orientation import OrientationGroup
from projects.upper_bound.polar import PolarGroup
from projects.upper_bound.rows import Group
from projects.upper_bound.shapes import ShapeGroup
from segzoo.errors import ConfigError

METHODS = ("polarmask", "centermask", "orienmask", "fcosis", "box_masks")
# Those of figure 7, from a triangle's next of kin on.
RAYS = (4, 8, 12, 18, 24, 36, 72, 90, 120)
SHAPE_SIZES = (16, 24, 32, 48, 64)
# A polygon has three corners; beyond, an object has fewer pixels along its outline than rays.
RAY_LIMITS = (3, 3600)
SHAPE_LIMITS = (1, 512)


def choose_groups(
    methods: Sequence[str], rays: Sequence[int], shape_sizes: Sequence[int], *, is_recipe: bool
) -> list[Group]:
    """The groups of chosen methods.

    Args:
        methods: of METHODS.
        rays: numbers of PolarMask's rays.
        shape_sizes: sides of CenterMask's shapes.
        is_recipe: whether networks see images as their recipes' tests resize them, or at their own size.

    Raises:
        ConfigError: a number that cannot work.
    """
    _check_range("--rays", rays, RAY_LIMITS)
    _check_range("--shape-sizes", shape_sizes, SHAPE_LIMITS)
    rays, sides = sorted(set(rays)), sorted(set(shape_sizes))
    centered, warped, edge = (resize if is_recipe else None for resize in (CENTERED, WARPED, SHORTEST_EDGE))
    known: dict[str, Group] = {
        "polarmask": PolarGroup(rays),
        "centermask": ShapeGroup(sides, centered),
        "orienmask": OrientationGroup(warped),
        "fcosis": CutMapGroup(edge),
        "box_masks": BoxMaskGroup(edge),
    }
    return [known[method] for method in METHODS if method in methods]


def _check_range(option: str, values: Sequence[int], limits: tuple[int, int]) -> None:
    wrong = [value for value in values if not limits[0] <= value <= limits[1]]
    if wrong:
        raise ConfigError(f"{option} is {wrong[0]}", f"it must be between {limits[0]} and {limits[1]}")
