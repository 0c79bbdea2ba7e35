"""From CenterNet's maps to detections: peaks of the heatmap, without NMS (section 3.1).

Shape shorthand: N images, K classes, D detections, H, W size of the maps.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from centermask.maps import MAP_STRIDE

logger = logging.getLogger(__name__)

# Sides of the square in which a peak is the largest value.
PEAK_WINDOW = 3


class DecodeRule(NamedTuple):
    """Which peaks become detections, and which pixels their masks.

    score_threshold: scores at or below it are dropped. max_detections: of an image, and of each class before that.
    mask_threshold: least shape x saliency of a mask's pixels.
    """

    score_threshold: float
    max_detections: int
    mask_threshold: float


class Detections(NamedTuple):
    """Detections of one image, best first.

    boxes_px: (D, 4) xyxy in pixels of the network's input, not clipped. scores, classes: (D,). cells: (D, 2) column and
    row of the centre.
    """

    boxes_px: Tensor
    scores: Tensor
    classes: Tensor
    cells: Tensor


class Peaks(NamedTuple):
    """The best peaks of every image, best first; (N, D) each, cells (N, D, 2) column and row."""

    scores: Tensor
    classes: Tensor
    cells: Tensor


def find_peaks(scores: Tensor, count: int) -> Peaks:
    """The `count` best cells of each image whose score is the largest of their 3x3 neighbours'.

    As in CenterNet's program the best `count` of every class are found first. Cells that are no peak count as 0 and
    come last, where there are fewer peaks.

    Args:
        scores: (N, K, H, W).
        count: D; where a map has fewer cells, all of them.
    """
    number, _, height, width = scores.shape
    largest = functional.max_pool2d(scores, PEAK_WINDOW, stride=1, padding=PEAK_WINDOW // 2)
    peaks = torch.where(scores == largest, scores, 0.0)
    of_class = peaks.flatten(2).topk(min(count, height * width), dim=2)
    best = of_class.values.flatten(1).topk(min(count, of_class.values[0].numel()), dim=1)
    places = of_class.indices.view(number, -1).gather(1, best.indices)
    cells = torch.stack((places % width, places // width), dim=2)
    return Peaks(best.values, best.indices // of_class.values.shape[2], cells)


def center_boxes(cells: Tensor, offsets: Tensor, sizes: Tensor) -> Tensor:
    """(..., 4) xyxy in cells, of centres at cell + offset.

    Args:
        cells, offsets, sizes: (..., 2) x and y; width and height.
    """
    centers = cells + offsets
    return torch.cat((centers - sizes / 2, centers + sizes / 2), dim=-1)


def peak_scores(heatmap: Tensor, image_sizes: list[tuple[int, int]]) -> Tensor:
    """(N, K, H, W) probabilities of (N, K, H, W) logits, 0 where no object can be.

    That is in the padding, which has learnt nothing, and where a logit is NaN, which a warning counts.

    Args:
        image_sizes: N times (height, width) px without padding.
    """
    scores = heatmap.float().sigmoid()
    height, width = heatmap.shape[2:]
    rows, columns = (torch.arange(side, device=scores.device) * MAP_STRIDE for side in (height, width))
    # One transfer of all sizes.
    limits = torch.tensor(image_sizes, device=scores.device)[:, :, None]
    is_inside = (rows < limits[:, 0])[:, :, None] & (columns < limits[:, 1])[:, None]
    is_wild = scores.isnan()
    num_wild = int((is_wild & is_inside[:, None]).sum())
    if num_wild:
        logger.warning("%d values of %d heatmaps are NaN and are left out", num_wild, len(scores))
    return torch.where(is_inside[:, None] & ~is_wild, scores, 0.0)


def select_detections(
    scores: Tensor,
    classes: Tensor,
    cells: Tensor,
    offsets: Tensor,
    sizes: Tensor,
    image_size: tuple[int, int],
    score_threshold: float,
) -> Detections:
    """The peaks of one image that are detections.

    A box that is not finite is left out with a warning. One without a positive width and height, or beside the image,
    shows nothing and is no detection either.

    Args:
        scores, classes: (D,), see `find_peaks`.
        cells, offsets, sizes: (D, 2), see `center_boxes`.
        image_size: (height, width) px without padding.
        score_threshold: scores at or below it are dropped.
    """
    boxes = center_boxes(cells, offsets, sizes) * MAP_STRIDE
    is_scored = scores > score_threshold
    is_finite = boxes.isfinite().all(dim=1)
    limit = boxes.new_tensor((image_size[1], image_size[0])).repeat(2)
    inside = boxes.clamp(min=0).minimum(limit)
    is_seen = (inside[:, 2:] > inside[:, :2]).all(dim=1)
    num_wild = int((is_scored & ~is_finite).sum())
    if num_wild:
        logger.warning("%d boxes of an image are not finite and are left out", num_wild)
    keep = (is_scored & is_finite & is_seen).nonzero().squeeze(1)
    return Detections(boxes[keep], scores[keep], classes[keep], cells[keep])
