"""Pictures of orientation maps: what a training sample asks of them, and what a model makes of them.

Orientation maps count pixels by whole numbers (see orientation.py), pictures by their borders: what lies at (x, y) here
is drawn at (x + .5, y + .5), the centre of the pixel, where the arrows of that pixel start too.

Shape shorthand: H, W size of the network input; A anchors of all levels, h, w of the raw maps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from detectron2.structures import Instances
from torch import Tensor
from torch.nn import functional

from orienmask.anchors import flatten_predictions, list_predictions
from orienmask.decode import MAP_STRIDE, Detections, orientation_masks, select_candidates, suppress
from orienmask.orientation import areas_around, orientation_targets, valid_areas
from orienmask.painting import Areas
from orienmask.targets import TargetRule, assign_anchors
from segzoo.modeling.fcos.locations import map_sizes
from segzoo.visualization import (
    draw_arrows,
    draw_boxes,
    draw_heat,
    draw_mask,
    draw_points,
    draw_vectors,
    gradient_magnitude,
)

if TYPE_CHECKING:
    from orienmask.orienmask import OrienMask

GREEN, RED, YELLOW = (60, 200, 60), (60, 60, 230), (0, 220, 255)
# Of 1: what is left of the image behind a drawing, and outside a mask.
BACKDROP_BRIGHTNESS, DARKENING = 0.6, 0.25
# Share of the gradients that lie beyond the reddest colour: a few jumps must not leave all others blue.
SHARE_BEYOND_SCALE = 0.01
MASK_BUDGET_MB = 64.0
# Where pixels without a target point to while their masks are made.
FAR_PX = 1e5
# Closer arrows cannot be told apart.
MIN_ARROW_SPACING_PX = 14
HALF_PIXEL = 0.5


class OrientationView(NamedTuple):
    """The orientation map of one anchor.

    anchor: its index. vectors_px: (2, H, W) x and y, px. where: (H, W) bool, pixels whose vector means something.
    areas: of the D objects that the map is for, with their base positions. sizes_px: (D, 2) width and height of their
    boxes.
    """

    anchor: int
    vectors_px: np.ndarray
    where: np.ndarray
    areas: Areas
    sizes_px: Tensor


class TargetView(NamedTuple):
    """What one anchor's map has to show, with its positive and negative pixels, (H, W) bool."""

    view: OrientationView
    is_positive: np.ndarray
    is_negative: np.ndarray


def target_views(instances: Instances, rule: TargetRule) -> list[TargetView]:
    """The targets of every anchor that some object of a training sample has.

    Args:
        instances: gt_boxes, gt_classes, gt_masks (BitMasks) and the image's size, on any device.
        rule: see `TargetRule`.

    Returns:
        By anchor, ascending; none when there is no object.
    """
    instances = instances.to("cpu")
    height, width = instances.image_size
    sizes = [(-(-height // stride), -(-width // stride)) for stride in rule.strides]
    objects = assign_anchors([instances], sizes, rule)
    targets = orientation_targets(objects, [instances], (height, width), len(rule.anchors_px), rule)
    areas = valid_areas(objects, rule)
    views = []
    for pair, anchor in enumerate(targets.anchor.tolist()):
        is_own = objects.anchors == anchor
        half_anchor = torch.tensor(rule.anchors_px[anchor])[:, None, None] / 2
        positive, negative = targets.is_positive[pair].numpy(), targets.is_negative[pair].numpy()
        view = OrientationView(
            anchor=anchor,
            vectors_px=(targets.vectors[:, pair] * half_anchor).numpy(),
            where=positive | negative,
            areas=Areas(*(column[is_own] for column in areas)),
            sizes_px=objects.boxes[is_own, 2:],
        )
        views.append(TargetView(view, positive, negative))
    return views


def decode_view(view: OrientationView, tau: float) -> np.ndarray:
    """(D, H, W) bool: the masks that the decoder makes of a view at full size, brought to the stride of the maps.

    A cell has the mean of its pixels that have a target; without any it points far away.

    Args:
        view: such as that of a `TargetView`.
        tau: see `DecodeRule`.
    """
    height, width = view.where.shape
    is_target = torch.from_numpy(view.where)[None, None].float()
    vectors = torch.from_numpy(view.vectors_px)[None] * is_target
    padding = (0, -width % MAP_STRIDE, 0, -height % MAP_STRIDE)
    total, count = (
        functional.avg_pool2d(functional.pad(values, padding), MAP_STRIDE)[0] for values in (vectors, is_target)
    )
    maps = torch.where(count > 0, total / count.clamp(min=1e-6), FAR_PX)
    base, number = view.areas.base_px, torch.zeros(len(view.sizes_px), dtype=torch.long)
    detections = Detections(torch.cat((base, view.sizes_px), dim=1), base, torch.ones(len(number)), number, number)
    # An anchor of 2 px: the vectors are in pixels.
    unit, size = torch.full((1, 2), 2.0), (height, width)
    masks = orientation_masks(
        maps, unit, detections, input_size=size, output_size=size, tau=tau, budget_mb=MASK_BUDGET_MB
    )
    return np.asarray(masks)


def draw_areas(image_bgr: np.ndarray, areas: Areas) -> np.ndarray:
    """The border of every object's area and a dot at its base position."""
    boxes = torch.cat((areas.first, areas.last + 1), dim=1).numpy()
    return draw_points(draw_boxes(image_bgr, boxes, YELLOW), areas.base_px.numpy() + HALF_PIXEL)


def draw_regions(image_bgr: np.ndarray, target: TargetView) -> np.ndarray:
    """Positive pixels in green, negative ones in red over the grey image, and the areas."""
    tinted = draw_mask(draw_mask(_to_backdrop(image_bgr), target.is_negative, RED), target.is_positive, GREEN)
    return draw_areas(tinted, target.view.areas)


def draw_cutout(image_bgr: np.ndarray, is_inside: np.ndarray) -> np.ndarray:
    """The image within a (H, W) bool mask, dark outside: a tint would be lost on an object of its colour."""
    dark = np.round(image_bgr * DARKENING).astype(np.uint8)
    return np.where(is_inside[:, :, None], image_bgr, dark)


def _to_backdrop(image_bgr: np.ndarray) -> np.ndarray:
    """The image in dim grey, so that every colour on it is one of the drawing."""
    grey = np.round(image_bgr.mean(axis=2, keepdims=True) * BACKDROP_BRIGHTNESS).astype(np.uint8)
    return grey.repeat(3, axis=2)


def orientation_pictures(image_bgr: np.ndarray, view: OrientationView, mask: np.ndarray) -> dict[str, np.ndarray]:
    """The vectors as colours and as arrows, and how fast they change, with the areas, arrows over the grey image.

    Args:
        image_bgr: (H, W, 3) uint8.
        view: of the same size.
        mask: (H, W) bool, lit behind the arrows.

    Returns:
        (H, W, 3) uint8 BGR each, by title.
    """
    side = min(image_bgr.shape[:2])
    # The longest vectors of targets reach from the base position to the area's corner.
    longest = max(1.0, float(view.areas.reach_px.norm(dim=1).amax())) if len(view.areas.reach_px) else 1.0
    colors = draw_vectors(image_bgr, view.vectors_px, longest, where=view.where, wheel_px=side // 6)
    spacing = max(MIN_ARROW_SPACING_PX, side // 24)
    arrows = draw_arrows(
        draw_cutout(_to_backdrop(image_bgr), mask), view.vectors_px, where=view.where, spacing_px=spacing
    )
    change = gradient_magnitude(view.vectors_px, view.where)
    limit = max(1.0, float(np.quantile(change[view.where], 1 - SHARE_BEYOND_SCALE))) if view.where.any() else 1.0
    gradient = draw_heat(image_bgr, change, stride=1, max_value=limit, opacity=1.0)
    panels = {"vectors": colors, "arrows": arrows, "gradient": gradient}
    return {f"{title} of anchor {view.anchor}": draw_areas(panel, view.areas) for title, panel in panels.items()}


def target_pictures(image_bgr: np.ndarray, target: TargetView, tau: float) -> dict[str, np.ndarray]:
    """One anchor's targets: its pixels, its vectors, and the masks that the decoder makes of them.

    Args:
        image_bgr: (H, W, 3) uint8, the training sample's.
        target: of `target_views`.
        tau: see `DecodeRule`.

    Returns:
        (H, W, 3) uint8 BGR each, by title.
    """
    decoded = np.asarray(decode_view(target.view, tau).any(axis=0))
    return {
        "target area": draw_regions(image_bgr, target),
        **orientation_pictures(image_bgr, target.view, target.is_positive),
        "mask made of the map": draw_cutout(image_bgr, decoded),
    }


@torch.no_grad()
def map_pictures(model: OrienMask, inputs: dict[str, Any], index: int = 0) -> dict[str, np.ndarray]:
    """One detection in the network's input: its area, its anchor's orientation map, and the mask that this makes.

    Args:
        model: in evaluation mode.
        inputs: "image" (3, H, W) in the model's order of channels, and perhaps "pad_to", as for a forward.
        index: of the detection, best first.

    Returns:
        (H, W, 3) uint8 BGR each, by title; empty when there are fewer detections.
    """
    images = model.preprocessor([inputs], model.device)
    size, rule, decode_rule = images.image_sizes[0], model.target_rule, model.decode_rule
    maps = model.dense_outputs(images.tensor)
    places = list_predictions(map_sizes(maps.boxes), rule.strides, rule.anchors_px, model.device)
    raw = flatten_predictions(maps.boxes, model.num_anchors)[0]
    found = suppress(select_candidates(raw, places, size, decode_rule), decode_rule)
    if index >= len(found.anchors):
        return {}
    one = found.select(torch.tensor([index], device=model.device))
    masks = orientation_masks(
        maps.orientations[0],
        model.anchors_px,
        one,
        input_size=size,
        output_size=size,
        tau=decode_rule.tau,
        budget_mb=model.mask_budget_mb,
    )
    image = model.preprocessor.to_bgr(inputs["image"])
    mask = np.asarray(masks)[0]
    view = _view_detection(maps.orientations[0], one, size, model)
    return {
        "area of the best detection" if index == 0 else f"area of detection {index}": draw_areas(image, view.areas),
        **orientation_pictures(image, view, mask),
        "mask made of the map": draw_cutout(image, mask),
    }


def _view_detection(
    orientations: Tensor, detection: Detections, size: tuple[int, int], model: OrienMask
) -> OrientationView:
    """The map of a detection's anchor, (2 A, h, w) of all of them, interpolated as for its mask."""
    anchor = int(detection.anchors)
    stride = model.target_rule.strides[anchor // model.num_anchors]
    own = orientations.float()[None, 2 * anchor : 2 * anchor + 2]
    own = functional.interpolate(own, scale_factor=MAP_STRIDE, mode="bilinear", align_corners=False)[0]
    vectors = own[:, : size[0], : size[1]] * (model.anchors_px[anchor, :, None, None] / 2)
    base, sizes = detection.bases_px.cpu(), detection.boxes[:, 2:].cpu()
    limit = torch.tensor([[size[1], size[0]]])
    areas = areas_around(base, sizes, torch.tensor([stride]), limit, model.target_rule.expand_ratio)
    return OrientationView(anchor, vectors.cpu().numpy(), np.ones(size, dtype=bool), areas, sizes)
