"""The four ways that the sides of an outline face, and how sides look from a point.

Shape shorthand: P points, Q pairs of point and side.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Facing(NamedTuple):
    """The geometry of sides that face one way.

    is_vertical: sides on lines of one x, else of one y. is_upward: they face to larger values of it. quarter_turns:
    angle of the direction they face. grows_with_angle: whether their other coordinate grows with the angle of a ray.
    """

    is_vertical: bool
    is_upward: bool
    quarter_turns: int
    grows_with_angle: bool


# In the order of `Sides.facing`: left, right, top, bottom.
FACINGS = (
    Facing(is_vertical=True, is_upward=False, quarter_turns=-1, grows_with_angle=True),
    Facing(is_vertical=True, is_upward=True, quarter_turns=1, grows_with_angle=False),
    Facing(is_vertical=False, is_upward=False, quarter_turns=2, grows_with_angle=False),
    Facing(is_vertical=False, is_upward=True, quarter_turns=0, grows_with_angle=True),
)


class Pairs(NamedTuple):
    """Points and sides that one of their rays may leave the mask through; all (Q,).

    view: index of the facing, times the number of points, plus that of the point. offset_px: distance > 0 from it to
    the side's line. start_px, end_px: where the side begins and ends along that line, seen from the point, by growing
    angle. base: angle of the direction that the side faces, in units of the angle between rays.
    """

    view: Tensor
    offset_px: Tensor
    start_px: Tensor
    end_px: Tensor
    base: Tensor
