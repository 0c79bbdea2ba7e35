"""From the maps of one image to its detections' locations, classes and scores.

Shape shorthand: N images, R locations, K classes, L levels, D candidates or detections.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

import torch
from detectron2.layers import batched_nms
from torch import Tensor

from segzoo.modeling.fcos.head import exp_size
from segzoo.modeling.fcos.locations import Locations, flatten_levels, map_sizes

logger = logging.getLogger(__name__)


class Candidates(NamedTuple):
    """Pairs of location and class.

    locations: (D,) index into the R locations. classes: (D,). scores: (D,).
    """

    locations: Tensor
    classes: Tensor
    scores: Tensor

    def select(self, index: Tensor) -> Candidates:
        """The candidates of an index or boolean tensor."""
        return Candidates(self.locations[index], self.classes[index], self.scores[index])


class DecodeRule(NamedTuple):
    """Which candidates become detections.

    score_threshold, pre_nms_topk: see `select_candidates`. nms_threshold, max_detections: see `suppress`.
    """

    score_threshold: float
    pre_nms_topk: int
    nms_threshold: float
    max_detections: int


class Detections(NamedTuple):
    """Detections of one image, best first.

    boxes_px: (D, 4) xyxy in pixels of the network's input, clipped to the image. scores, classes: (D,). locations: (D,)
    index into the R locations that they come from.
    """

    boxes_px: Tensor
    scores: Tensor
    classes: Tensor
    locations: Tensor


def detect_boxes(
    cls_logits: Sequence[Tensor],
    box_logits: Sequence[Tensor],
    centerness_logits: Sequence[Tensor],
    locations: Locations,
    image_sizes: Sequence[tuple[int, int]],
    rule: DecodeRule,
) -> list[Detections]:
    """From the raw maps of a batch to the detections of every image, all of FCOS's way.

    Args:
        cls_logits, box_logits, centerness_logits: (N, K, Hi, Wi), (N, 4, Hi, Wi) before exp and (N, 1, Hi, Wi) of every
            level.
        locations: their R cells.
        image_sizes: N times (height, width) px without padding.
        rule: which candidates become detections.
    """
    cls_scores = flatten_levels(cls_logits).float().sigmoid()
    centerness = flatten_levels(centerness_logits).float().sigmoid().squeeze(2)
    log_sizes = flatten_levels(box_logits)
    is_usable = usable_locations(locations.points_px, image_sizes, (cls_scores, centerness[..., None], log_sizes))
    level_sizes = [height * width for height, width in map_sizes(cls_logits)]
    detections = []
    for image, size in enumerate(image_sizes):
        candidates = select_candidates(
            *(cls_scores[image], centerness[image], is_usable[image], level_sizes),
            score_threshold=rule.score_threshold,
            topk=rule.pre_nms_topk,
        )
        points = locations.points_px[candidates.locations]
        boxes = clip_boxes(distances_to_boxes(points, exp_size(log_sizes[image, candidates.locations])), size)
        keep = suppress(boxes, candidates, nms_threshold=rule.nms_threshold, max_detections=rule.max_detections)
        kept = candidates.select(keep)
        detections.append(Detections(boxes[keep], kept.scores, kept.classes, kept.locations))
    return detections


def usable_locations(points_px: Tensor, image_sizes: Sequence[tuple[int, int]], outputs: Sequence[Tensor]) -> Tensor:
    """(N, R) whether a location may become a detection: it lies in its image, and no output there is NaN.

    Locations in the padding have learnt nothing. One NaN box would spoil the NMS of its whole image. What is left out
    for a NaN is counted in a warning (one host synchronisation a batch).

    Args:
        points_px: (R, 2).
        image_sizes: N times (height, width) without padding.
        outputs: (N, R, C) each.
    """
    sizes = torch.tensor([(width, height) for height, width in image_sizes], device=points_px.device)
    is_inside = (points_px < sizes[:, None]).all(dim=2)
    is_nan = torch.stack([output.isnan().any(dim=2) for output in outputs]).any(dim=0)
    num_nan = int((is_nan & is_inside).sum())
    if num_nan:
        logger.warning("%d locations of %d images gave NaN and are left out", num_nan, len(image_sizes))
    return is_inside & ~is_nan


def select_candidates(
    cls_scores: Tensor,
    centerness: Tensor,
    is_usable: Tensor,
    level_sizes: Sequence[int],
    *,
    score_threshold: float,
    topk: int,
    centerness_bias: float = 0.0,
) -> Candidates:
    """The pairs of location and class of one image that go into NMS.

    Of each level the `topk` locations with the largest max over the classes of class probability x centerness;
    of these the pairs whose class probability (alone) exceeds the threshold. Their score is
    class probability x (centerness + bias), so that with a bias of 0.5 scores reach 1.5.

    Args:
        cls_scores: (R, K) probabilities.
        centerness: (R,) probabilities.
        is_usable: (R,) see `usable_locations`.
        level_sizes: number of locations of each level, R in all.
        score_threshold, topk, centerness_bias: see above.
    """
    cls_scores = torch.where(is_usable[:, None], cls_scores, -1.0)
    centerness = torch.where(is_usable, centerness, 0.0)
    ranking = torch.where(is_usable, (cls_scores * centerness[:, None]).amax(dim=1), -1.0)
    kept, start = [], 0
    for size in level_sizes:
        level = ranking[start : start + size]
        kept.append(level.topk(min(topk, size)).indices + start)
        start += size
    locations = torch.cat(kept)
    row, classes = (cls_scores[locations] > score_threshold).nonzero(as_tuple=True)
    locations = locations[row]
    scores = cls_scores[locations, classes] * (centerness[locations] + centerness_bias)
    return Candidates(locations, classes, scores)


def suppress(boxes: Tensor, candidates: Candidates, *, nms_threshold: float, max_detections: int) -> Tensor:
    """Class-wise NMS; the indices of the best `max_detections` survivors, best first.

    Boxes without area are left out: their IoU with anything is 0 / 0.

    Args:
        boxes: (D, 4) xyxy of the candidates, clipped to the image.
        candidates: D candidates.
        nms_threshold: largest IoU of two survivors of a class.
        max_detections: over all classes.
    """
    has_area = (boxes[:, 2:] > boxes[:, :2]).all(dim=1).nonzero().squeeze(1)
    candidates = candidates.select(has_area)
    keep = batched_nms(boxes[has_area], candidates.scores, candidates.classes, nms_threshold)
    return has_area[keep[:max_detections]]


def distances_to_boxes(points_px: Tensor, distances_px: Tensor) -> Tensor:
    """(D, 2) points and (D, 4) l, t, r, b -> (D, 4) xyxy boxes."""
    return torch.cat((points_px - distances_px[:, :2], points_px + distances_px[:, 2:]), dim=1)


def clip_boxes(boxes: Tensor, image_size: tuple[float, float]) -> Tensor:
    """xyxy boxes clipped to [0, width] x [0, height]."""
    height, width = image_size
    x = boxes[:, 0::2].clamp(0, width)
    y = boxes[:, 1::2].clamp(0, height)
    return torch.stack((x[:, 0], y[:, 0], x[:, 1], y[:, 1]), dim=1)


def output_scale(input_size: tuple[int, int], output_size: tuple[int, int], device: torch.device) -> Tensor:
    """(2,) factors of x and y that take network input pixels to pixels of the output image."""
    return torch.tensor(
        [output_size[1] / input_size[1], output_size[0] / input_size[0]], dtype=torch.float32, device=device
    )
