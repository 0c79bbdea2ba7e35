"""Pictures of what FCOSIS makes masks of, and of its mask regularisation (figure 6).

Shape shorthand: D detections, M ground truths, R locations, G colour groups, H, W size of the network's input in px.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from detectron2.structures import Instances
from torch import Tensor

from fcosis.attention import Groups, attention_maps
from fcosis.head import DetectionMaps
from fcosis.objects import Objects
from fcosis.regularization import location_shares, regularized_weights
from fcosis.targets import regularized_targets
from segzoo.geometry.soft_masks import MASK_STRIDE
from segzoo.modeling.fcos.locations import Locations, compute_locations
from segzoo.modeling.fcos.losses import box_centerness
from segzoo.visualization import draw_boxes, draw_heat, draw_mask, draw_points, draw_vectors, instance_color

if TYPE_CHECKING:
    from fcosis.fcosis import FCOSIS, FCOSISMaps

# Detections that are shown, if they score above MIN_SCORE; the best one whatever it scores.
MAX_SHOWN = 8
MIN_SCORE = 0.3
YELLOW = (0, 220, 255)
# Groups that have a picture of their own.
MAX_GROUPS = 4
# Locations whose coarse segmentation is at least this show where they point.
POINTING = 0.5
# (alpha, beta, gamma) of figure 6, by title.
FIGURE_6 = {
    "a: centerness": (1.0, 0.0, 0.0),
    "b: share of the cell": (0.0, 1.0, 0.0),
    "c: a third of each": (1 / 3, 1 / 3, 1 / 3),
}


@torch.no_grad()
def map_pictures(model: FCOSIS, inputs: dict[str, Any]) -> dict[str, np.ndarray]:
    """The best detections of one image in the network's input, and what their masks come from.

    Args:
        model: in evaluation mode.
        inputs: "image" (3, H, W) in the model's order of channels, and perhaps "pad_to", as for a forward.

    Returns:
        (H, W, 3) uint8 BGR each, by title: the coarse segmentation in the boxes, ways to the centres of mass as
        colours, the attention of the first colour groups, the masks. Empty when nothing is detected. Parts that the
        model lacks are left out.
    """
    maps, locations, (size,) = model.look([inputs])
    (found,) = model.detect(maps, locations, [size])
    if not len(found.scores):
        return {}
    image = model.preprocessor.to_bgr(inputs["image"])
    # All detections compete and are segmented, as in a forward; the best ones are shown.
    objects = model.objects_of([found], maps, locations)
    num_shown = max(1, int((found.scores[:MAX_SHOWN] > MIN_SCORE).sum()))
    boxes = found.boxes_px[:num_shown]
    pictures = {}
    if isinstance(maps.detection, DetectionMaps):
        pictures = _grouping_pictures(image, maps.detection, locations, objects, num_shown)
    if maps.class_logits is None:
        pictures |= _attention_pictures(image, model, maps, locations, objects, num_shown)
    logits, channels = model.segment(maps, locations, objects)
    masks = model.cut(logits, channels[:num_shown], boxes, input_size=size, output_size=size)
    return pictures | {"masks": _draw_masks(image, np.asarray(masks), boxes)}


def _grouping_pictures(
    image: np.ndarray, maps: DetectionMaps, locations: Locations, objects: Objects, num_shown: int
) -> dict[str, np.ndarray]:
    """Coarse segmentation and ways to the centres, in each shown box those of the detection's own level."""
    coarse = torch.cat([level.flatten() for level in maps.coarse_logits]).float().sigmoid()
    offsets = torch.cat([level.flatten(2) for level in maps.center_offsets], dim=2)[0].float()
    ways = offsets * locations.strides_px
    size = _map_size(image)
    # Smaller boxes lie on top of larger ones.
    heat = np.zeros(size, np.float32)
    vectors = np.zeros((2, *size), np.float32)
    boxes = objects.boxes_px[:num_shown]
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    for index in areas.argsort(descending=True).tolist():
        own = {"objects": objects, "index": index, "locations": locations, "size": size}
        is_inside = _in_box(torch.ones_like(coarse), **own) > 0
        heat[is_inside] = _in_box(coarse, **own)[is_inside]
        for axis in range(2):
            vectors[axis][is_inside] = _in_box(ways[axis], **own)[is_inside]
    longest = float(np.hypot(*vectors).max()) or 1.0
    pointing = draw_vectors(image, vectors, longest, stride=MASK_STRIDE, where=heat >= POINTING)
    return {
        "coarse segmentation": draw_boxes(draw_heat(image, heat, stride=MASK_STRIDE), boxes.cpu().numpy(), YELLOW),
        "ways to the centres of mass": draw_points(pointing, objects.centers_px[:num_shown].cpu().numpy()),
    }


def _in_box(values: Tensor, objects: Objects, index: int, locations: Locations, size: tuple[int, int]) -> np.ndarray:
    """(h, w) of the stride-4 map: (R,) values of an object's level, interpolated in its box as its attention is."""
    zero = torch.zeros(1, dtype=torch.int64, device=values.device)
    own = slice(index, index + 1)
    one = Groups(objects.boxes_px[own], objects.levels[own], zero, zero, num_groups=1)
    is_own = torch.ones(1, len(values), dtype=torch.bool, device=values.device)
    lam, mu = values.new_ones(()), values.new_zeros(())
    sampled = attention_maps(values[None], is_own, one, locations, lam=lam, mu=mu, map_size=size)
    return sampled[0, 0].cpu().numpy()


def _attention_pictures(
    image: np.ndarray, model: FCOSIS, maps: FCOSISMaps, locations: Locations, objects: Objects, num_shown: int
) -> dict[str, np.ndarray]:
    """Attention of the first MAX_GROUPS colour groups with shown objects, on one scale: blue = -mu, what belongs to
    others; red = lambda, the group's own."""
    attention, groups, group_images = model.attend(maps, locations, objects)
    height, width = _map_size(image)
    # The groups of the best detections first.
    shown = list(dict.fromkeys(groups[:num_shown].tolist()))[:MAX_GROUPS]
    heats = attention[0][shown, 0, :height, :width].cpu().numpy()
    largest = max(float(np.abs(heats).max()), 1e-6)
    pictures = {}
    for group, heat in zip(shown, heats, strict=True):
        picture = draw_heat(image, (heat + largest) / (2 * largest), stride=MASK_STRIDE)
        boxes = objects.boxes_px[:num_shown][groups[:num_shown] == group].cpu().numpy()
        pictures[f"attention, colour {group + 1} of {len(group_images)}"] = draw_boxes(picture, boxes, YELLOW)
    return pictures


def _draw_masks(image: np.ndarray, masks: np.ndarray, boxes_px: Tensor) -> np.ndarray:
    """Worst first, so that the best one lies on top."""
    for index in reversed(range(len(masks))):
        image = draw_mask(image, masks[index], instance_color(index))
    return draw_boxes(image, boxes_px.cpu().numpy(), YELLOW)


def _map_size(image: np.ndarray) -> tuple[int, int]:
    """Cells of stride 4 that cover an image."""
    return -(-image.shape[0] // MASK_STRIDE), -(-image.shape[1] // MASK_STRIDE)


def regularization_pictures(
    image: np.ndarray, instances: Instances, strides: Sequence[int], sizes_of_interest: Sequence[float]
) -> dict[str, np.ndarray]:
    """The weights of all positive locations for the rules of figure 6, each on the cell of its location.

    Args:
        image: (H, W, 3) uint8 BGR.
        instances: M ground truths: gt_boxes, gt_classes and gt_masks.
        strides, sizes_of_interest: of the levels.
    """
    height, width = image.shape[:2]
    sizes = [(-(-height // stride), -(-width // stride)) for stride in strides]
    locations = compute_locations(sizes, list(strides), torch.device("cpu"))
    num_classes = int(instances.gt_classes.max()) + 1 if len(instances) else 1
    shares = location_shares([instances.gt_masks.tensor], locations)
    targets = regularized_targets(locations, [instances], shares, num_classes, sizes_of_interest)
    centerness = box_centerness(targets.box_distances_px)
    pictures = {}
    for title, rule in FIGURE_6.items():
        weights = regularized_weights(centerness, targets.shares, rule)
        pictures[title] = draw_heat(
            image, _paint_cells(weights, targets.positives, locations, (height, width)), stride=1
        )
    return pictures


def _paint_cells(values: Tensor, places: Tensor, locations: Locations, size: tuple[int, int]) -> np.ndarray:
    """(H, W) with the values of (P,) locations on their cells, those of finer levels on top."""
    canvas = np.zeros(size, np.float32)
    # Coarsest first: locations are in the order of the levels.
    for value, place in sorted(zip(values.tolist(), places.tolist(), strict=True), key=lambda pair: -pair[1]):
        half = float(locations.strides_px[place]) / 2
        x, y = locations.points_px[place].tolist()
        canvas[int(y - half) : int(y + half), int(x - half) : int(x + half)] = value
    return canvas
