"""Masks from rays (PolarMask): the counterpart of polarmask/decode.py and `PolarMask.inference`.

Shape shorthand: R locations, D candidates or detections, n rays.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from segzoo.export.runtime import boxes as fcos
from segzoo.export.runtime.detections import Detections, finish
from segzoo.export.runtime.images import Prepared
from segzoo.geometry.polygons import polygons_to_rles, truncated_rles


def decode(maps: Mapping[str, np.ndarray], settings: Mapping[str, Any], image: Prepared) -> Detections:
    """Detections of one image.

    Args:
        maps: (1, C, h, w) "cls_logits_<level>", "centerness_logits_<level>", "ray_logits_<level>" and, where boxes are
            predicted, "box_logits_<level>".
        settings: `detector_settings`, "centerness_bias", "uses_predicted_boxes", "is_official".
        image: what the maps were made of.
    """
    levels, is_official = settings["levels"], settings["is_official"]
    locations = fcos.find_locations(maps, settings)
    cls_scores = fcos.sigmoid(fcos.flatten_levels(maps, "cls_logits", levels))
    centerness = fcos.sigmoid(fcos.flatten_levels(maps, "centerness_logits", levels))
    rays = fcos.flatten_levels(maps, "ray_logits", levels)
    outputs, box_logits = [cls_scores, centerness, rays], None
    if settings["uses_predicted_boxes"]:
        box_logits = fcos.flatten_levels(maps, "box_logits", levels)
        outputs.append(box_logits)
    is_usable = fcos.usable_locations(locations.points_px, image.input_size, outputs)
    level_sizes = [height * width for height, width in locations.map_sizes]
    candidates = fcos.select_candidates(cls_scores, centerness[:, 0], is_usable, level_sizes, settings)
    points = locations.points_px[candidates.locations]
    contours = ray_ends(points, fcos.exp_size(rays[candidates.locations]))
    if box_logits is None:
        boxes = np.concatenate((contours.min(axis=1), contours.max(axis=1)), axis=1)
    else:
        boxes = fcos.distances_to_boxes(points, fcos.exp_size(box_logits[candidates.locations]))
    # The authors' boxes end at their last pixel, and have one more in NMS.
    margin_px = float(is_official)
    height, width = image.input_size
    scale = fcos.output_scale(image.input_size, image.output_size)
    boxes = fcos.clip_boxes(boxes, (height - margin_px, width - margin_px)) * np.tile(scale, 2)
    boxes[:, 2:] += np.float32(margin_px)
    keep = fcos.suppress(boxes, candidates, settings)
    contours = contours[keep]
    if is_official:
        contours = np.clip(contours, 0, np.array([width - 1, height - 1], np.float32))
    points_px = (contours * scale).astype(np.float64)
    draw = truncated_rles if is_official else _polygons
    found = candidates.select(keep)
    return finish(boxes[keep], found.scores, found.classes, draw(points_px, image.output_size), image.output_size)


def _polygons(contours_px: np.ndarray, image_size: tuple[int, int]) -> list[dict]:
    return polygons_to_rles(contours_px, *image_size)


def ray_ends(points_px: np.ndarray, rays_px: np.ndarray) -> np.ndarray:
    """(D, n, 2) x and y of the ends of (D, n) rays around (D, 2) points; ray 0 points down, then towards +x."""
    angles = np.arange(rays_px.shape[1]) * (2 * np.pi / rays_px.shape[1])
    directions = np.stack((np.sin(angles), np.cos(angles)), axis=1).astype(np.float32)
    return points_px[:, None] + rays_px[..., None] * directions
