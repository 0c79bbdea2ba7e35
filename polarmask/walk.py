"""The targets of official.py on a CPU: one contour after the other, walked along as the authors' program does.

Shape shorthand: M masks, P points, S points of a contour, n rays, Q pairs of a point and a contour's point.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from polarmask.rays import MAX_PAIRS, NO_HIT_PX
from segzoo.geometry.runs import bounded_blocks
from segzoo.geometry.windows import batch_windows

# A ray without a point at its own degree looks at these neighbours, in this order; angles do not wrap around.
DEGREE_OFFSETS = (0, 1, -1, 2, -2, 3, -3)
NUM_MISSES = max(DEGREE_OFFSETS)
# Whole degrees 0 .. 360: an angle just below 0 becomes 360 in fp32, where no ray looks.
NUM_DEGREES = 361


class WalkedContours(NamedTuple):
    """The contour of the largest area of every mask.

    centers_px: (M, 2) x and y of its centroid, truncated to whole pixels; 0 for an empty mask. points: M times (S, 2)
    int32 x and y, in the order of the walk; S = 0 for an empty mask.
    """

    centers_px: Tensor
    points: list[np.ndarray]


def walk_contours(masks: Sequence[Tensor]) -> WalkedContours:
    """The contours that the authors' program takes rays to, and their truncated centroids.

    Args:
        masks: (Mi, H, W) bool of every image, on the CPU.
    """
    num_masks = sum(map(len, masks))
    centers = np.zeros((num_masks, 2), np.float32)
    points = [np.zeros((0, 2), np.int32)] * num_masks
    for index, left, top, pixels in batch_windows(masks):
        points[index] = largest_contour(pixels, (left, top))
        centers[index] = _truncated_center(points[index])
    return WalkedContours(torch.from_numpy(centers), points)


def _truncated_center(contour: np.ndarray) -> tuple[int, int]:
    """`walked_center` of a contour, from exact integers where rounding errors cannot decide."""
    moments = cv2.moments(contour)
    # OpenCV adds up whole numbers in double precision and divides them by 2 and by 6 in the end.
    area = round(2 * moments["m00"])
    if area == 0:
        return walked_center(contour.astype(np.float64))
    (x, x_rest), (y, y_rest) = (divmod(round(6 * moments[key]), 3 * area) for key in ("m10", "m01"))
    return (x, y) if x_rest and y_rest else walked_center(contour.astype(np.float64))


def largest_contour(mask: np.ndarray, offset: tuple[int, int]) -> np.ndarray:
    """(S, 2) int32 x and y of the contour of the largest area of one mask (uint8), in the order of the walk.

    Args:
        mask: a part of an image that begins at its column and row `offset`.
    """
    contours, _ = cv2.findContours(mask, cv2.RETR_TREE, cv2.CHAIN_APPROX_NONE, offset=offset)
    return max(contours, key=cv2.contourArea)[:, 0] if len(contours) > 1 else contours[0][:, 0]


def walked_center(contour_px: np.ndarray) -> tuple[int, int]:
    """The truncated centroid of a polygon, or where it has no area the truncated mean of its points.

    Sums run in double precision along the contour, from its closing edge on, as in the authors' program: where the
    centroid is a whole number, their rounding errors decide on the pixel.

    Args:
        contour_px: (S, 2) x and y.
    """
    previous = np.concatenate((contour_px[-1:], contour_px[:-1]))
    cross = (contour_px[:, 0] * previous[:, 1] - contour_px[:, 1] * previous[:, 0]) / 2
    # cumsum adds one by one; sum would add in pairs.
    area = cross.cumsum()[-1]
    if area == 0:
        mean = contour_px.mean(axis=0)
        return int(mean[0]), int(mean[1])
    weighted = (cross[:, None] * (contour_px + previous) / 3).cumsum(axis=0)[-1] / area
    return int(weighted[0]), int(weighted[1])


def walked_rays(contours: WalkedContours, points_px: Tensor, point_masks: Tensor, num_rays: int) -> Tensor:
    """See `polarmask.official.degree_bin_rays`."""
    order = point_masks.numpy().argsort(kind="stable")
    masks, points = point_masks.numpy()[order], points_px.numpy()[order]
    num_pairs = np.array([len(contour) for contour in contours.points], np.int64)[masks]
    farthest = np.full((len(points), NUM_DEGREES + 2 * NUM_MISSES), -1.0, np.float32)
    for block in _bounded_blocks(num_pairs):
        x, y = _offsets(contours.points, points[block], masks[block], int(num_pairs[block].sum()))
        # In the authors' precision, by the device's function: along a degree's border the last bit decides.
        degrees = torch.atan2(torch.from_numpy(x), torch.from_numpy(y)).numpy()
        degrees *= 180
        degrees /= math.pi
        degrees += (degrees < 0) * np.float32(360)
        slot = degrees.astype(np.int64)
        slot += np.repeat(order[block] * farthest.shape[1] + NUM_MISSES, num_pairs[block])
        x *= x
        y *= y
        x += y
        np.maximum.at(farthest.reshape(-1), slot, x)
    degrees = np.arange(num_rays) * (360 // num_rays) + np.array(DEGREE_OFFSETS)[:, None]
    # (P, offsets, n); the first offset with a point is taken.
    choices = farthest[:, degrees + NUM_MISSES]
    squares = np.take_along_axis(choices, (choices >= 0).argmax(axis=1)[:, None], axis=1)[:, 0]
    lengths = np.where(squares >= 0, np.sqrt(np.abs(squares)), np.float32(NO_HIT_PX))
    return torch.from_numpy(lengths)


def _bounded_blocks(num_pairs: np.ndarray) -> list[slice]:
    """All points at once, unless they have too many pairs."""
    if num_pairs.sum() <= MAX_PAIRS:
        return [slice(0, len(num_pairs))]
    return bounded_blocks(torch.from_numpy(num_pairs), MAX_PAIRS)


def _offsets(
    contours: list[np.ndarray], points: np.ndarray, masks: np.ndarray, num_pairs: int
) -> tuple[np.ndarray, np.ndarray]:
    """(Q,) x and y from points to all points of their masks' contours; the points are sorted by mask."""
    x, y = np.empty((2, num_pairs), np.float32)
    first = (np.diff(masks, prepend=-1) != 0).nonzero()[0].tolist()
    start = 0
    for low, high in itertools.pairwise([*first, len(masks)]):
        contour = contours[masks[low]].T.astype(np.float32)
        shape, stop = (high - low, contour.shape[1]), start + (high - low) * contour.shape[1]
        np.subtract(contour[0], points[low:high, :1], out=x[start:stop].reshape(shape))
        np.subtract(contour[1], points[low:high, 1:], out=y[start:stop].reshape(shape))
        start = stop
    return x, y
