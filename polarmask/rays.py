"""Distances along rays from points to the outline of masks: exact, for a whole batch, on the device.

The outline of a mask is the outline of its pixels' squares. It is cut into maximal horizontal and vertical segments;
seen from a point, a segment covers an interval of angles, and the rays inside that interval are the ones that hit it.
Nearly all pairs of point and segment lie between two rays and need no more than that; only the hits are intersected.

Angles as in the authors' code, whose weights need it: ray k points at theta_k = 2 pi k / n with x = r sin(theta),
y = r cos(theta); angle 0 is +y (down) and angles grow towards +x.

Shape shorthand: M masks, P points, n rays, S segments, Q pairs of point and segment.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from segzoo.geometry.components import Runs, Segments, expand, outline_segments

# The distance of a ray that meets nothing, as in the paper (section 3.2).
NO_HIT_PX = 1e-6
# Rays this close to the end of a segment (as a share of the angle between rays) hit it: no ray slips through a corner.
ANGLE_TOLERANCE = 1e-4
# Point-segment pairs held at once; bounds the memory to some 200 MB.
MAX_PAIRS = 2_000_000


def ray_angles(num_rays: int, device: torch.device | None = None) -> Tensor:
    """(n,) angles in radians of the rays."""
    return torch.arange(num_rays, dtype=torch.float64, device=device) * (2 * math.pi / num_rays)


def ray_directions(num_rays: int, device: torch.device | None = None) -> Tensor:
    """(n, 2) unit vectors (x, y) of the rays, (sin theta, cos theta)."""
    angles = ray_angles(num_rays, device)
    return torch.stack((angles.sin(), angles.cos()), dim=1).float()


def cast_rays(
    runs: Runs, points_px: Tensor, point_masks: Tensor, num_rays: int, *, max_pairs: int = MAX_PAIRS
) -> Tensor:
    """The farthest crossing of every ray with the outline of the point's mask.

    Args:
        runs: of M masks.
        points_px: (P, 2) x and y in continuous pixels; a point may lie outside its mask.
        point_masks: (P,) int64 index of each point's mask.
        num_rays: n.
        max_pairs: pairs of point and segment held at once; the result does not depend on it.

    Returns:
        (P, n) float32 distances in pixels, `NO_HIT_PX` for a ray that meets nothing.
    """
    segments = outline_segments(runs)
    first = torch.searchsorted(segments.mask, point_masks)
    count = torch.searchsorted(segments.mask, point_masks, right=True) - first
    distances = points_px.new_full((len(points_px), num_rays), NO_HIT_PX, dtype=torch.float32)
    for block in _blocks(count, max_pairs):
        owner, position = expand(count[block])
        point = owner + block.start
        _cast_pairs(distances, points_px.float(), segments, point, first[point] + position)
    return distances


def _blocks(counts: Tensor, max_pairs: int) -> list[slice]:
    """Consecutive ranges of points with at most `max_pairs` pairs (or one point) each."""
    total = counts.cumsum(0)
    if len(counts) == 0:
        return []
    if int(total[-1]) <= max_pairs:
        return [slice(0, len(counts))]
    bounds, blocks, start = total.tolist(), [], 0
    while start < len(bounds):
        used = bounds[start - 1] if start else 0
        stop = max(start + 1, int(torch.searchsorted(total, used + max_pairs, right=True)))
        blocks.append(slice(start, stop))
        start = stop
    return blocks


def _cast_pairs(distances: Tensor, points_px: Tensor, segments: Segments, point: Tensor, segment: Tensor) -> None:
    """Raises `distances` (P, n) in place to the crossings of the given (Q,) pairs."""
    num_rays = distances.shape[1]
    start = segments.start_px[segment] - points_px[point]
    end = segments.end_px[segment] - points_px[point]
    per_ray = num_rays / (2 * math.pi)
    # Angles in units of the angle between rays, so that ray k lies at k.
    low = torch.atan2(start[:, 0], start[:, 1]) * per_ray
    high = torch.atan2(end[:, 0], end[:, 1]) * per_ray
    turn = (high - low + num_rays / 2).remainder(num_rays) - num_rays / 2
    low = torch.where(turn < 0, high, low)
    first_ray = (low - ANGLE_TOLERANCE).ceil()
    hits = (low + turn.abs() + ANGLE_TOLERANCE).floor() - first_ray + 1
    # A segment on a line through the point is hit at its end, which belongs to a perpendicular segment as well.
    is_vertical = start[:, 0] == end[:, 0]
    offset = torch.where(is_vertical, start[:, 0], start[:, 1])
    hits = torch.where(offset == 0, 0, hits).long().clamp(min=0)

    pair = hits.nonzero().squeeze(1)
    owner, position = expand(hits[pair])
    pair = pair[owner]
    ray = (first_ray[pair].long() + position).remainder(num_rays)
    direction = ray_directions(num_rays, points_px.device)[ray]
    along = torch.where(is_vertical[pair], direction[:, 0], direction[:, 1])
    length = offset[pair] / along
    # The tolerance may admit a ray just past a segment's end that runs nearly along it: it crosses at the end.
    farthest = torch.maximum(start[pair].norm(dim=1), end[pair].norm(dim=1))
    length = torch.minimum(torch.where(along == 0, farthest, length), farthest)
    distances.view(-1).scatter_reduce_(0, point[pair] * num_rays + ray, length.to(distances.dtype), "amax")
