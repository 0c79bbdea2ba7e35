"""Distances along rays from points to the outline of masks: exact, for a whole batch, on the device.

The outline of a mask is the outline of its pixels' squares. It is cut into maximal horizontal and vertical sides; seen
from a point, a side covers an interval of angles, and the rays inside that interval are the ones that hit it. A ray
leaves a mask for the last time through a side that faces away from its start, so that half of the sides are never
looked at. Nearly all the others lie between two rays and need no more than their two angles; only hits are intersected.

Angles as in the authors' code, whose weights need it: ray k points at theta_k = 2 pi k / n with x = r sin(theta),
y = r cos(theta); angle 0 is +y (down) and angles grow towards +x.

Shape shorthand: M masks, P points, n rays, S sides, Q pairs of point and side.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from polarmask.cpu_pairs import cpu_pairs
from polarmask.facings import FACINGS, Pairs
from segzoo.geometry.outlines import Sides
from segzoo.geometry.runs import bounded_blocks, expand, expand_ranges, nonzero

# The distance of a ray that meets nothing, as in the paper (section 3.2).
NO_HIT_PX = 1e-6
# Rays this close to the end of a side (as a share of the angle between rays) hit it: no ray slips through a corner.
ANGLE_TOLERANCE = 1e-4
# Pairs of point and side held at once; bounds the memory to some 200 MB.
MAX_PAIRS = 2_000_000


def ray_angles(num_rays: int, device: torch.device | None = None) -> Tensor:
    """(n,) angles in radians of the rays."""
    return torch.arange(num_rays, dtype=torch.float64, device=device) * (2 * math.pi / num_rays)


def ray_directions(num_rays: int, device: torch.device | None = None) -> Tensor:
    """(n, 2) unit vectors (x, y) of the rays, (sin theta, cos theta)."""
    angles = ray_angles(num_rays, device)
    return torch.stack((angles.sin(), angles.cos()), dim=1).float()


def cast_to_sides(
    sides: Sides, points_px: Tensor, point_masks: Tensor, num_rays: int, *, max_pairs: int = MAX_PAIRS
) -> Tensor:
    """The farthest crossing of every ray with the outline of the point's mask.

    Args:
        sides: of the outlines of M masks, see `outlines`.
        points_px: (P, 2) x and y in continuous pixels; a point may lie outside its mask.
        point_masks: (P,) int64 index of each point's mask.
        num_rays: n.
        max_pairs: pairs of point and side held at once; the result does not depend on it.

    Returns:
        (P, n) float32 distances in pixels, `NO_HIT_PX` for a ray that meets nothing.
    """
    distances = points_px.new_full((len(points_px), num_rays), NO_HIT_PX, dtype=torch.float32)
    if len(sides.mask) == 0 or len(points_px) == 0:
        return distances
    blocks = (cpu_pairs if points_px.device.type == "cpu" else device_pairs)(
        sides, points_px, point_masks, num_rays, max_pairs
    )
    for block, pairs in blocks:
        _cast(distances[block], pairs)
    return distances


def device_pairs(
    sides: Sides, points_px: Tensor, point_masks: Tensor, num_rays: int, max_pairs: int
) -> Iterator[tuple[slice, Pairs]]:
    """Blocks of points with their pairs; arguments as those of `cast_to_sides`."""
    first, count = _sides_beyond(sides, points_px, point_masks)
    lines, points_px = _seen_along_rays(sides), points_px.float()
    for block in bounded_blocks(count.sum(dim=0), max_pairs):
        yield block, _make_pairs(lines, points_px[block], first[:, block], count[:, block], num_rays)


def _sides_beyond(sides: Sides, points_px: Tensor, point_masks: Tensor) -> tuple[Tensor, Tensor]:
    """(4, P) first and (4, P) number of the sides of each facing that a ray from a point can leave its mask through.

    A side that faces up its axis must lie above the point, one that faces down below it. Sides are ordered by facing,
    mask and level, so that these are neighbours.
    """
    # Room for one mask more: a point whose mask is empty finds nothing there.
    num_masks, span = sides.mask.amax() + 2, sides.level.amax() + 2
    keys = (sides.facing * num_masks + sides.mask) * span + sides.level
    facing = torch.arange(len(FACINGS), device=keys.device).view(2, 2, 1)
    # (2, 2, P), by axis and by whether a side faces up it.
    start = (facing * num_masks + point_masks.minimum(num_masks - 1)) * span
    across = points_px.T
    level = torch.stack((across.ceil() - 1, across.floor()), dim=1).clamp(min=-1).long().minimum(span - 1) + start
    lowest = torch.stack((start[:, 0] - 1, level[:, 1]), dim=1)
    highest = torch.stack((level[:, 0], start[:, 1] + (span - 1)), dim=1)
    bounds = torch.searchsorted(keys, torch.stack((lowest, highest)).flatten(1, 2), right=True)
    return bounds[0], bounds[1] - bounds[0]


def _seen_along_rays(sides: Sides) -> Tensor:
    """(3, S) level, start and end of sides, with the signs and in the order of `Pairs`."""
    signs = torch.tensor([1 if rule.is_upward else -1 for rule in FACINGS], device=sides.facing.device)
    turns = torch.tensor([1 if rule.grows_with_angle else -1 for rule in FACINGS], device=sides.facing.device)
    turn = turns.index_select(0, sides.facing)
    one_end, other_end = sides.start * turn, sides.end * turn
    level = sides.level * signs.index_select(0, sides.facing)
    return torch.stack((level, torch.minimum(one_end, other_end), torch.maximum(one_end, other_end))).float()


def _make_pairs(lines: Tensor, points_px: Tensor, first: Tensor, count: Tensor, num_rays: int) -> Pairs:
    """The pairs of (4, p) ranges of sides of p points. lines: see `_seen_along_rays`."""
    view, side = expand_ranges(first.flatten(), count.flatten())
    x, y = points_px.unbind(dim=1)
    across, along, base = [], [], []
    for rule in FACINGS:
        across.append((x if rule.is_vertical else y) * (1 if rule.is_upward else -1))
        along.append((y if rule.is_vertical else x) * (1 if rule.grows_with_angle else -1))
        base.append(torch.full_like(x, rule.quarter_turns * num_rays / 4))
    level, start, end = (line.index_select(0, side) for line in lines)
    own_along = torch.cat(along).index_select(0, view)
    return Pairs(
        view=view,
        offset_px=level.sub_(torch.cat(across).index_select(0, view)),
        start_px=start.sub_(own_along),
        end_px=end.sub_(own_along),
        base=torch.cat(base).index_select(0, view),
    )


def _cast(distances: Tensor, pairs: Pairs) -> None:
    """Raises `distances` (P, n) in place to the crossings of pairs of point and side."""
    num_rays = distances.shape[1]
    per_ray = num_rays / (2 * math.pi)
    # Angles in units of the angle between rays, so that ray k lies at k.
    low = torch.atan2(pairs.start_px, pairs.offset_px).mul_(per_ray).add_(pairs.base)
    high = torch.atan2(pairs.end_px, pairs.offset_px).mul_(per_ray).add_(pairs.base)
    first_ray = low.sub_(ANGLE_TOLERANCE).ceil_()
    hits = high.add_(ANGLE_TOLERANCE).floor_().sub_(first_ray).add_(1).long()

    pair = nonzero(hits)
    owner, position = expand(hits.index_select(0, pair))
    pair = pair.index_select(0, owner)
    ray = first_ray.index_select(0, pair) + position
    cosine = ((ray - pairs.base.index_select(0, pair)) / per_ray).cos()
    offset, start, end = (column.index_select(0, pair) for column in (pairs.offset_px, pairs.start_px, pairs.end_px))
    # The tolerance may admit a ray just past a side's end that runs nearly along it: it crosses at the end.
    farthest = torch.hypot(offset, torch.maximum(start.abs(), end.abs()))
    length = torch.where(cosine <= 0, farthest, (offset / cosine).minimum(farthest))
    point = pairs.view.index_select(0, pair) % len(distances)
    slot = point * num_rays + ray.long().remainder(num_rays)
    distances.view(-1).scatter_reduce_(0, slot, length, "amax")
