"""Draws what shape and saliency each give to the masks of one generated scene of overlapping objects (tables 1c to 1e).

    python -m projects.CenterMask.draw_variants docs/pictures/variants.png --runs output/variants

The folder of `--runs` holds the OUTPUT_DIR of four trainings, by the names of VARIANTS; README.md has their commands.
Beside the scene and its ground truth the picture shows what each of the four finds in it. Below, for two objects of one
class that overlap, it shows what the class-agnostic variant makes their masks of (figure 5).

Shape shorthand: M objects of the scene, D detections, H, W size of the scene in pixels.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from detectron2.structures import Instances
from torch import Tensor
from torchvision.ops import box_iou

from centermask.centermask import CenterMask
from centermask.decode import Detections
from centermask.maps import saliency_channels_of
from centermask.pictures import enlarge_saliency, product_canvas, shape_canvas
from projects import get_cfg
from segzoo.config import merge_config
from segzoo.data.scenes import CLASS_NAMES
from segzoo.data.scenes.samples import scene_sample
from segzoo.engine.evaluate import trained_weights
from segzoo.engine.predictor import Predictor
from segzoo.errors import ConfigError, SegZooError
from segzoo.geometry.box_cells import box_pixels
from segzoo.visualization import draw_boxes, draw_heat, draw_mask, draw_text, instance_color, save_image, side_by_side

# Of no split of scenes-v1: two leaves, one across the other, with a crescent and a star on them, and a star apart.
SEED, INDEX = 7, 446
# The two leaves, as indices into the scene's objects.
PAIR = (0, 1)

# Folder -> the keys of MODEL.CENTERMASK that make the variant. As in the paper's tables 1c to 1e no saliency is
# supervised directly: it learns what the masks need of it.
UNSUPERVISED = {"SALIENCY_LOSS_WEIGHT": 0.0}
VARIANTS: dict[str, dict[str, Any]] = {
    "shape_only": {"SHAPE_ON": True, "SALIENCY": "none", **UNSUPERVISED},
    "saliency_only": {"SHAPE_ON": False, "SALIENCY": "class_agnostic", **UNSUPERVISED},
    "both_agnostic": {"SHAPE_ON": True, "SALIENCY": "class_agnostic", **UNSUPERVISED},
    "both_specific": {"SHAPE_ON": True, "SALIENCY": "class_specific", **UNSUPERVISED},
}
EXPLAINED = "both_agnostic"

MIN_SCORE = 0.3
# Below this IoU of boxes a detection has no object whose colour it could take.
MIN_MATCH_IOU = 0.5
UNMATCHED_COLOR = (128, 128, 128)
FRAME_COLOR = (0, 220, 255)
COLUMNS = 3
# Of the scene in the picture, whose noise would be most of the file: a median, and fewer colours.
SMOOTHED_PX = 5
COLOR_STEP = 8
# Share of white below what is drawn.
FADED = 0.5
HEAT_OPACITY = 0.75


class Scene(NamedTuple):
    """image: (H, W, 3) uint8 BGR. masks: (M, H, W) bool. boxes: (M, 4) xyxy px. classes: (M,) int64."""

    image: np.ndarray
    masks: np.ndarray
    boxes: Tensor
    classes: Tensor


def read_scene(seed: int = SEED, index: int = INDEX) -> Scene:
    """A generated scene with its ground truth."""
    image, instances = scene_sample(seed, index)
    return Scene(image, instances.gt_masks.tensor.numpy(), instances.gt_boxes.tensor, instances.gt_classes)


def load_variant(runs: str, name: str) -> CenterMask:
    """The trained model of one variant, in evaluation mode.

    Args:
        runs: folder of the four runs.
        name: of VARIANTS, and of the run's folder.

    Raises:
        ConfigError: no run there, or one of another variant or of other classes.
    """
    folder = os.path.join(runs, name)
    cfg = merge_config(get_cfg(), os.path.join(folder, "config.yaml"))
    wanted = {"NUM_CLASSES": len(CLASS_NAMES), **VARIANTS[name]}
    wrong = {key: cfg.MODEL.CENTERMASK[key] for key, value in wanted.items() if cfg.MODEL.CENTERMASK[key] != value}
    if cfg.MODEL.META_ARCHITECTURE != "CenterMask" or wrong:
        raise ConfigError(
            f"{folder} is a run of {cfg.MODEL.META_ARCHITECTURE} with {wrong}, not of {name}: {wanted}",
            "train it by the command of projects/CenterMask/README.md",
        )
    cfg.MODEL.WEIGHTS = trained_weights("", folder)
    model = Predictor(cfg).model
    assert isinstance(model, CenterMask)
    return model


def network_input(model: CenterMask, scene: Scene) -> dict[str, Any]:
    """The entry of a forward: the scene at its own size."""
    image = scene.image[:, :, ::-1] if model.preprocessor.input_format == "RGB" else scene.image
    return {"image": torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))}


@torch.no_grad()
def find_instances(model: CenterMask, scene: Scene) -> Instances:
    """Detections that reach MIN_SCORE, best first, on the CPU."""
    found = model([network_input(model, scene)])[0]["instances"].to("cpu")
    return found[found.scores >= MIN_SCORE]


def mean_iou(found: Instances, scene: Scene) -> float:
    """Mean over the scene's objects of the IoU of the closest mask of their class, 0 where none was found."""
    num_pixels = scene.masks[0].size
    masks, truths = (
        np.asarray(stack).reshape(len(stack), num_pixels).astype(np.float64)
        for stack in (found.pred_masks, scene.masks)
    )
    common = truths @ masks.T
    ious = common / np.maximum(truths.sum(axis=1)[:, None] + masks.sum(axis=1) - common, 1.0)
    ious[scene.classes.numpy()[:, None] != found.pred_classes.numpy()] = 0.0
    return float(ious.max(axis=1, initial=0.0).mean())


def draw_masks(image: np.ndarray, masks: np.ndarray, boxes: Tensor, classes: Tensor, scene: Scene) -> np.ndarray:
    """Masks, boxes and class names in the colours of the objects that they belong to, small ones on top.

    Args:
        image: (H, W, 3) uint8 BGR.
        masks, boxes, classes: (D, H, W) bool, (D, 4) xyxy px, (D,).
        scene: whose objects they are; a box is that of the object that it overlaps most.
    """
    ious, owners = box_iou(boxes, scene.boxes).max(dim=1)
    colors = [
        instance_color(owner) if iou >= MIN_MATCH_IOU else UNMATCHED_COLOR
        for iou, owner in zip(ious.tolist(), owners.tolist(), strict=True)
    ]
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    for index in areas.argsort(descending=True).tolist():
        image = draw_mask(image, masks[index], colors[index])
    for (left, top, right, bottom), color, kind in zip(boxes.tolist(), colors, classes.tolist(), strict=True):
        image = draw_boxes(image, np.array([left, top, right, bottom]), color)
        image = draw_text(image, CLASS_NAMES[kind], left, top, color)
    return image


@torch.no_grad()
def explain_mask(model: CenterMask, scene: Scene, index: int) -> dict[str, np.ndarray]:
    """What the mask of one object is made of: local shape, saliency and their product in its box.

    Args:
        model: with shapes and a saliency.
        scene: see `Scene`.
        index: of the object. Shown is the detection of its class whose box is closest to its own.

    Returns:
        (H, W, 3) uint8 BGR by title.

    Raises:
        SegZooError: the model detects no object of that class.
    """
    images = model.preprocessor([network_input(model, scene)], model.device)
    size = images.image_sizes[0]
    maps = model.dense_outputs(images.tensor)[-1]
    chosen = _closest(model.detect(maps, [size])[0], scene.boxes[index], int(scene.classes[index]))
    shapes, channels = (
        model.shapes_of(maps, chosen, 0),
        saliency_channels_of(chosen.classes, model.objective.saliency_channels),
    )
    assert shapes is not None
    assert maps.saliency is not None
    saliency, boxes = enlarge_saliency(maps.saliency[0], size), chosen.boxes_px
    canvases = {
        "local shape": shape_canvas(shapes, boxes, size),
        "saliency": product_canvas(None, saliency, boxes, channels, size),
        "shape x saliency": product_canvas(shapes, saliency, boxes, channels, size),
    }
    name = f"{CLASS_NAMES[int(scene.classes[index])]} {PAIR.index(index) + 1}" if index in PAIR else f"object {index}"
    backdrop = _calm(scene.image, FADED)
    return {f"{name}: {title}": _draw_in_box(backdrop, canvas, boxes[0]) for title, canvas in canvases.items()}


def _draw_in_box(image: np.ndarray, canvas: Tensor, box: Tensor) -> np.ndarray:
    """A map of 0..1 inside its box, with a frame; the image stays elsewhere."""
    _, y, x = (one.cpu().numpy() for one in box_pixels(box[None], (image.shape[0], image.shape[1])))
    drawn = image.copy()
    drawn[y, x] = draw_heat(image, canvas.cpu().numpy(), stride=1, opacity=HEAT_OPACITY)[y, x]
    return draw_boxes(drawn, box.cpu().numpy(), FRAME_COLOR)


def _closest(detections: Detections, box: Tensor, kind: int) -> Detections:
    """The one detection of class `kind` whose box is closest to `box`."""
    of_class = (detections.classes == kind).nonzero().squeeze(1)
    if not len(of_class):
        raise SegZooError(f"the variant {EXPLAINED} detects no {CLASS_NAMES[kind]} in the scene", "train it for longer")
    ious = box_iou(detections.boxes_px[of_class], box[None].to(detections.boxes_px))
    best = of_class[ious.argmax()][None]
    return Detections(*(column[best] for column in detections))


def _calm(image: np.ndarray, share_of_white: float) -> np.ndarray:
    """The scene with less noise and fewer colours, and perhaps faded, so that what is drawn on it stands out."""
    smooth = cv2.medianBlur(image, SMOOTHED_PX) * (1 - share_of_white) + 255 * share_of_white
    return (np.round(smooth / COLOR_STEP) * COLOR_STEP).clip(0, 255).astype(np.uint8)


def draw_sheet(models: Mapping[str, CenterMask], scene: Scene, pair: Sequence[int] = PAIR) -> np.ndarray:
    """The whole picture.

    Args:
        models: the variants by the names of VARIANTS.
        scene: see `Scene`.
        pair: the objects whose masks are explained.
    """
    backdrop = _calm(scene.image, FADED)
    panels = {
        "scene": _calm(scene.image, 0.0),
        "ground truth": draw_masks(backdrop, scene.masks, scene.boxes, scene.classes, scene),
    }
    for name in VARIANTS:
        found = find_instances(models[name], scene)
        masks, boxes = np.asarray(found.pred_masks), found.pred_boxes.tensor
        title = f"{name.replace('_', ' ')}: mean IoU {mean_iou(found, scene):.2f}"
        panels[title] = draw_masks(backdrop, masks, boxes, found.pred_classes, scene)
    for index in pair:
        panels |= explain_mask(models[EXPLAINED], scene, index)
    return side_by_side(list(panels.values()), list(panels), columns=COLUMNS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Draws the picture; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("path", metavar="FILE", help="the picture, .png")
    parser.add_argument("--runs", required=True, metavar="DIR", help=f"with the runs {', '.join(VARIANTS)}")
    args = parser.parse_args(arguments)
    try:
        models = {name: load_variant(args.runs, name) for name in VARIANTS}
        save_image(args.path, draw_sheet(models, read_scene()), png_level=9)
    except SegZooError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
