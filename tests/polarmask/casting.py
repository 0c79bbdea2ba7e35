"""Rays to the outlines of masks that are given as runs."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from polarmask.rays import cast_to_sides
from segzoo.geometry.outlines import outlines
from segzoo.geometry.runs import Runs


def cast_rays(runs: Runs, points_px: Tensor, point_masks: Tensor, num_rays: int, **options: Any) -> Tensor:
    """`cast_to_sides` to the outlines of runs."""
    return cast_to_sides(outlines(runs), points_px, point_masks, num_rays, **options)
