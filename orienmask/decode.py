"""From OrienMask's maps to detections and their masks (section 3.4).

Shape shorthand: N images, R predictions of an image, K classes, D detections, A anchors of all levels, H, W size of the
output image, h, w of the orientation maps, P pixels.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import nms

from orienmask.anchors import MAX_SIDE_PX, Predictions, cells_inside, decode_boxes, to_corners
from segzoo.geometry.fallback import survives_out_of_memory
from segzoo.geometry.rle import RLEMasks, encode_edges

logger = logging.getLogger(__name__)

# Of the orientation maps, px.
MAP_STRIDE = 4
# Bytes a pixel takes while masks are made: its end point and the interpolation's steps; and for each mask.
END_POINT_BYTES = 24
MASK_BYTES = 4


class DecodeRule(NamedTuple):
    """Which predictions become detections, and which pixels their masks.

    score_threshold, pre_nms_topk: see `select_candidates`. nms_threshold, max_detections: of the class-wise NMS.
    base_position: what orientations point at, "box" or "grid".
    tau: a pixel belongs to a detection if it points closer to its base than tau / 2 of the box's side, on both axes.
    """

    score_threshold: float
    pre_nms_topk: int
    nms_threshold: float
    max_detections: int
    base_position: str
    tau: float


class Detections(NamedTuple):
    """Detections of one image, best first, in network input pixels.

    boxes: (D, 4) centre x, centre y, width, height. bases_px: (D, 2) x and y that their pixels point at. scores,
    classes: (D,). anchors: (D,) index of the anchor.
    """

    boxes: Tensor
    bases_px: Tensor
    scores: Tensor
    classes: Tensor
    anchors: Tensor

    def select(self, index: Tensor) -> Detections:
        """The detections of an index tensor."""
        return Detections(*(column[index] for column in self))


def select_candidates(raw: Tensor, places: Predictions, image_size: tuple[int, int], rule: DecodeRule) -> Detections:
    """The pairs of prediction and class of one image that go into NMS, best first.

    Their score is objectness x class probability; a prediction may stand for several classes. Left out are cells in
    the padding, which have learnt nothing, and predictions that are not finite, counted in a warning: one NaN box
    would spoil the NMS of its whole image.

    Args:
        raw: (R, 5 + K) of the network, fp32.
        places: R predictions.
        image_size: (height, width) without padding.
        rule: see `DecodeRule`.
    """
    is_inside = cells_inside(places, image_size)
    is_finite = raw.isfinite().all(dim=1)
    scores = raw[:, 4:5].sigmoid() * raw[:, 5:].sigmoid()
    scores = torch.where((is_inside & is_finite)[:, None], scores, -1.0)
    best = scores.flatten().topk(min(rule.pre_nms_topk, scores.numel()))
    # One synchronisation for both counts.
    counts = ((best.values > rule.score_threshold).sum(), (is_inside & ~is_finite).sum())
    num_kept, num_wild = torch.stack(counts).tolist()
    if num_wild:
        logger.warning("%d of %d predictions of an image are not finite and are left out", num_wild, len(raw))
    index, classes = best.indices[:num_kept] // scores.shape[1], best.indices[:num_kept] % scores.shape[1]
    own = Predictions(*(column[index] for column in places))
    boxes = decode_boxes(raw[index], own)
    bases = (own.cells + 0.5) * own.strides[:, None] if rule.base_position == "grid" else boxes[:, :2]
    return Detections(boxes, bases, best.values[:num_kept], classes, own.anchors)


def suppress(candidates: Detections, rule: DecodeRule) -> Detections:
    """The best `max_detections` survivors of class-wise NMS, on boxes that are not clipped."""
    boxes = to_corners(candidates.boxes).double()
    # Every class on an island of its own, in fp64: in fp32 a wide box would cost the others' coordinates their digits.
    islands = candidates.classes.double()[:, None] * (4 * MAX_SIDE_PX)
    keep = nms(boxes + islands, candidates.scores.double(), rule.nms_threshold)
    return candidates.select(keep[: rule.max_detections])


@survives_out_of_memory
def orientation_masks(
    orientations: Tensor,
    anchors_px: Tensor,
    detections: Detections,
    *,
    input_size: tuple[int, int],
    output_size: tuple[int, int],
    tau: float,
    budget_mb: float,
) -> RLEMasks:
    """Masks of all pixels whose vector ends near a detection's base position, at output size.

    Made in bands of columns, so that memory stays within the budget whatever the image's size; nothing else is ever
    held at full size.

    Args:
        orientations: (2 A, h, w) of one image, at stride 4.
        anchors_px: (A, 2) width and height.
        detections: D of them.
        input_size: (height, width) of the image in the network's input, without padding.
        output_size: (H, W).
        tau: see `DecodeRule`.
        budget_mb: MiB of pixels at once; one column is always allowed.
    """
    height, width = output_size
    rows = _sample_points(height, input_size[0], orientations.device)
    columns = _sample_points(width, input_size[1], orientations.device)
    # Transposed, as run lengths go down the columns.
    maps = orientations.float().view(-1, 2, *orientations.shape[1:]).transpose(2, 3)
    reach = detections.boxes[:, 2:] * (tau / 2)
    low, high = detections.bases_px - reach, detections.bases_px + reach
    edges: list[list[np.ndarray]] = [[] for _ in detections.anchors]
    for anchor in detections.anchors.unique().tolist():
        own = (detections.anchors == anchor).nonzero().squeeze(1)
        indices = own.tolist()
        # On a CPU there is one mask at a time.
        num_masks = 1 if own.device.type == "cpu" else len(indices)
        bytes_per_column = max(1, height) * (END_POINT_BYTES + MASK_BYTES * num_masks)
        step = max(1, int(budget_mb * 2**20) // bytes_per_column)
        vectors = maps[anchor] * (anchors_px[anchor, :, None, None] / 2)
        for left in range(0, width, step):
            ends = _end_points(vectors, rows, columns[left : left + step])
            found = _find_edges(ends, low[own], high[own])
            for index, places in zip(indices, found, strict=True):
                edges[index].append(places + left * height)
    return RLEMasks([encode_edges(np.concatenate(parts), output_size) for parts in edges], output_size)


def _sample_points(count: int, input_length: int, device: torch.device) -> Tensor:
    """(count,) where the centres of an output's pixels lie in the network's input, pixels at whole numbers there."""
    return (torch.arange(count, device=device) + 0.5) * (input_length / max(count, 1)) - 0.5


def _end_points(vectors: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(2, columns * rows) x and y that pixels point to, column by column, from (2, w, h) vectors in pixels."""
    vectors = _interpolate(vectors, 2, (rows + 0.5) / MAP_STRIDE - 0.5)
    vectors = _interpolate(vectors, 1, (columns + 0.5) / MAP_STRIDE - 0.5)
    vectors[0] += columns[:, None]
    vectors[1] += rows
    return vectors.view(2, -1)


def _interpolate(maps: Tensor, dim: int, positions: Tensor) -> Tensor:
    """Linear interpolation between cells at whole numbers along one dimension; beyond the last cell its value."""
    last = maps.shape[dim] - 1
    positions = positions.clamp(0, last)
    lower = positions.floor().long()
    share = positions - lower
    shape = [-1 if axis == dim else 1 for axis in range(maps.dim())]
    start = maps.index_select(dim, lower)
    end = maps.index_select(dim, (lower + 1).clamp(max=last))
    return torch.lerp(start, end, share.view(shape))


def _find_edges(ends: Tensor, low: Tensor, high: Tensor) -> list[np.ndarray]:
    """Where the masks of (2, P) end points between (D, 2) limits begin and end: D times ascending places 0 .. P."""
    if ends.device.type == "cpu":
        return _edges_one_by_one(ends.numpy(), low.tolist(), high.tolist())
    return _edges_at_once(ends, low, high)


def _edges_at_once(ends: Tensor, low: Tensor, high: Tensor) -> list[np.ndarray]:
    is_inside = ends.new_zeros(len(low), ends.shape[1] + 2, dtype=torch.bool)
    inner = is_inside[:, 1:-1]
    torch.gt(ends[0], low[:, :1], out=inner)
    for axis, limit, compare in ((0, high, torch.lt), (1, low, torch.gt), (1, high, torch.lt)):
        inner &= compare(ends[axis], limit[:, axis, None])
    owner, place = (is_inside[:, 1:] != is_inside[:, :-1]).nonzero().T.cpu().numpy()
    return np.split(place, np.cumsum(np.bincount(owner, minlength=len(low)))[:-1])


def _edges_one_by_one(ends: np.ndarray, low: list[list[float]], high: list[list[float]]) -> list[np.ndarray]:
    """Mask by mask, so that on a CPU all but the end points stays in the cache."""
    is_inside = np.zeros(ends.shape[1] + 2, dtype=bool)
    inner, part = is_inside[1:-1], np.empty(ends.shape[1], dtype=bool)
    places = []
    for lower, upper in zip(low, high, strict=True):
        np.greater(ends[0], lower[0], out=inner)
        for axis, limit, compare in ((0, upper, np.less), (1, lower, np.greater), (1, upper, np.less)):
            np.logical_and(inner, compare(ends[axis], limit[axis], out=part), out=inner)
        places.append(np.flatnonzero(is_inside[1:] != is_inside[:-1]))
    return places
