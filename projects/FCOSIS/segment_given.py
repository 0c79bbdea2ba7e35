"""Masks of given objects: the model is told boxes and classes, and finds the rest itself.

Shape shorthand: N images, M given objects of the batch, O objects of the data set, R locations.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from pycocotools import mask as mask_api
from torch import Tensor
from torchvision.ops import box_iou

from fcosis.fcosis import FCOSIS, FCOSISMaps
from fcosis.objects import all_rivals
from projects.FCOSIS.crossings import largest_box_ious
from segzoo.data.loader import build_test_loader
from segzoo.data.registration import load_metadata
from segzoo.errors import ConfigError
from segzoo.evaluation.ground_truth import load_ground_truth
from segzoo.geometry.rle import RLEMasks
from segzoo.modeling.fcos.decode import (
    Detections,
    clip_boxes,
    distances_to_boxes,
    output_scale,
    usable_locations,
)
from segzoo.modeling.fcos.head import exp_size
from segzoo.modeling.fcos.locations import Locations, flatten_levels

# Share of the largest IoU with which a location's box is as good as the best one.
NEAR_BEST = 0.9


class Measured(NamedTuple):
    """What one model gives for the O objects of a data set, in the order of its images and annotations.

    images: (O,) int64 image ids. ious: (O,) float64 IoU of the mask with the ground truth's. source_ious: (O,) IoU of
    the given box with the one that the source location predicts. overlaps: (O,) largest IoU of the object's box with
    another's of its image.
    """

    images: np.ndarray
    ious: np.ndarray
    source_ious: np.ndarray
    overlaps: np.ndarray


def choose_sources(ious: Tensor, scores: Tensor) -> Tensor:
    """The location that an object is taken to come from: of those that predict its box about as well as any, the one
    that a detector would take.

    Args:
        ious: (M, R) IoU of each given box with each location's predicted one; negative: may not be taken.
        scores: (M, R) >= 0, probability of the object's class x centerness.

    Returns:
        (M,) int64 among R: the largest score where the IoU is at least NEAR_BEST times the largest one.
    """
    largest = ious.amax(dim=1, keepdim=True)
    # Where none may be taken, all are equally bad.
    is_near = ious >= torch.where(largest > 0, NEAR_BEST * largest, largest)
    return torch.where(is_near, scores, -1.0).argmax(dim=1)


def given_detections(
    maps: FCOSISMaps,
    locations: Locations,
    image_sizes: Sequence[tuple[int, int]],
    boxes_px: Sequence[Tensor],
    classes: Sequence[Tensor],
) -> tuple[list[Detections], Tensor]:
    """Given boxes as if they had been detected, each by its source location.

    Args:
        maps: of N images.
        locations: R cells.
        image_sizes: N times (height, width) without padding.
        boxes_px: N times (m, 4) xyxy in pixels of the network's input.
        classes: N times (m,) int64.

    Returns:
        N detections, whose boxes are the given ones; (M,) IoU of these with what the sources predict.
    """
    raw = maps.detection
    cls_scores = flatten_levels(raw.cls_logits).float().sigmoid()
    centerness = flatten_levels(raw.centerness_logits).float().sigmoid()
    distances = flatten_levels(raw.box_logits)
    is_usable = usable_locations(locations.points_px, image_sizes, (cls_scores, centerness, distances))
    detections, source_ious = [], []
    for image, (size, boxes, kinds) in enumerate(zip(image_sizes, boxes_px, classes, strict=True)):
        predicted = clip_boxes(distances_to_boxes(locations.points_px, exp_size(distances[image])), size)
        ious = torch.where(is_usable[image], box_iou(boxes, predicted), -1.0)
        scores = (cls_scores[image] * centerness[image]).T[kinds]
        sources = choose_sources(ious, scores)
        own = torch.arange(len(boxes), device=boxes.device)
        detections.append(Detections(boxes, scores[own, sources], kinds, sources))
        source_ious.append(ious[own, sources])
    return detections, torch.cat(source_ious)


@torch.no_grad()
def segment_given(
    model: FCOSIS, batched_inputs: Sequence[dict[str, Any]], boxes: Sequence[Tensor], classes: Sequence[Tensor]
) -> tuple[list[RLEMasks], Tensor]:
    """Masks of given objects.

    Args:
        model: in evaluation mode.
        batched_inputs: N entries of a forward: image, height, width.
        boxes: N times (m, 4) xyxy in pixels of height and width.
        classes: N times (m,) int64.

    Returns:
        N times m masks of height x width; (M,) see `given_detections`.
    """
    maps, locations, image_sizes = model.look(list(batched_inputs))
    output_sizes = [(entry["height"], entry["width"]) for entry in batched_inputs]
    boxes_px = []
    for own, inner, outer in zip(boxes, image_sizes, output_sizes, strict=True):
        boxes_px.append(own.to(model.device) * output_scale(outer, inner, model.device).repeat(2))
    given, source_ious = given_detections(
        maps, locations, image_sizes, boxes_px, [own.to(model.device) for own in classes]
    )
    # Each given box is an object of its own that competes with all others.
    objects = model.objects_of(given, maps, locations)
    rivals = all_rivals(objects.counts, model.device)
    objects = objects._replace(stand_ins=rivals["stand_ins"], num_rivals=rivals["num_rivals"])
    logits, channels = model.segment(maps, locations, objects)
    masks = [
        model.cut(logits, own, one.boxes_px, input_size=inner, output_size=outer)
        for own, one, inner, outer in zip(channels.split(objects.counts), given, image_sizes, output_sizes, strict=True)
    ]
    return masks, source_ious.cpu()


def measure(cfg: CfgNode, model: FCOSIS) -> Measured:
    """Segments every object of the run's first test set in its own box.

    Raises:
        ConfigError: the config has no test set, or shows images on a canvas.
        DatasetError: the data set cannot be read.
    """
    if not cfg.DATASETS.TEST:
        raise ConfigError("DATASETS.TEST is empty", "train with --val-json and --val-images")
    name = cfg.DATASETS.TEST[0]
    metadata = load_metadata(name)
    class_of = metadata.thing_dataset_id_to_contiguous_id
    truth = load_ground_truth(metadata.json_file, metadata.image_root)
    objects = defaultdict(list)
    for annotation in truth.annotations:
        if not annotation["iscrowd"]:
            objects[annotation["image_id"]].append(annotation)
    parts = []
    for batch in build_test_loader(cfg, name):
        inputs = [entry for entry in batch if objects[int(entry["image_id"])]]
        if any("window" in entry for entry in inputs):
            raise ConfigError(f"INPUT.RESIZE is {cfg.INPUT.RESIZE!r}", "boxes are given for 'shortest_edge' alone")
        if inputs:
            owned = [objects[int(entry["image_id"])] for entry in inputs]
            parts.append(_measure_batch(model, inputs, owned, class_of))
    return Measured(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _measure_batch(
    model: FCOSIS, inputs: Sequence[dict[str, Any]], owned: Sequence[list[dict]], class_of: Mapping[int, int]
) -> Measured:
    boxes = [torch.tensor([one["bbox"] for one in own], dtype=torch.float32) for own in owned]
    boxes = [torch.cat((own[:, :2], own[:, :2] + own[:, 2:]), dim=1) for own in boxes]
    classes = [torch.tensor([class_of[one["category_id"]] for one in own]) for own in owned]
    masks, source_ious = segment_given(model, inputs, boxes, classes)
    ious = [
        float(mask_api.iou([rle], [one["segmentation"]], [0])[0, 0])
        for found, own in zip(masks, owned, strict=True)
        for rle, one in zip(found.rles, own, strict=True)
    ]
    images = np.repeat([int(entry["image_id"]) for entry in inputs], [len(own) for own in owned])
    overlaps = torch.cat([largest_box_ious(own) for own in boxes])
    return Measured(images, np.array(ious), source_ious.numpy().astype(np.float64), overlaps.numpy())
