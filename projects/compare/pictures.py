"""The same images through every model, with the maps behind the masks, and the objects that a model finds badly."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from projects.compare.study import Trained
from segzoo.data.image_io import read_image
from segzoo.data.registration import load_dataset, load_metadata
from segzoo.engine.predictor import Predictor
from segzoo.errors import ConfigError
from segzoo.evaluation.ground_truth import GroundTruth
from segzoo.report.content import Failure, GalleryImage, GalleryRow
from segzoo.visualization import draw_boxes, draw_instances, draw_mask
from segzoo.visualization.canvas import Color

JPEG_QUALITY = 82
# Long side of a picture in the gallery, and of one of a failure, px.
GALLERY_SIDE_PX = 320
FAILURE_SIDE_PX = 200
# Around a failure's object, as a share of its longer side, and at least so many px.
MARGIN_SHARE = 0.5
MIN_MARGIN_PX = 16
TRUTH_COLOR: Color = (80, 220, 80)
FOUND_COLOR: Color = (40, 90, 255)


def gallery_records(truth: GroundTruth, dataset: str, count: int) -> list[dict[str, Any]]:
    """Dataset dicts of images with objects, evenly spread over the set.

    Args:
        truth: of the set.
        dataset: its registered name.
        count: at most so many.
    """
    with_objects = {annotation["image_id"] for annotation in truth.annotations if not annotation["iscrowd"]}
    records = [record for record in load_dataset(dataset) if int(record["image_id"]) in with_objects]
    places = np.linspace(0, len(records) - 1, min(count, len(records))).round().astype(int)
    return [records[place] for place in places]


def draw_gallery(
    trained: Sequence[Trained],
    predictors: Mapping[str, Predictor],
    truth: GroundTruth,
    dataset: str,
    records: Sequence[dict],
) -> list[GalleryImage]:
    """Pictures of images through all models.

    Args:
        trained: the models; those without a predictor are left out.
        predictors: by name.
        truth: what is drawn first.
        dataset: registered name of the set, for its classes.
        records: dataset dicts of the images.
    """
    gallery = []
    # In the order of the model's classes, which need not be the json's.
    class_names = load_metadata(dataset).thing_classes
    for record in records:
        image = read_image(record["file_name"], "BGR")
        shown = GalleryImage(os.path.basename(record["file_name"]), _jpeg(_draw_truth(image, truth, record)))
        for one in trained:
            if one.entry.name in predictors:
                panels = _panels(image, predictors[one.entry.name], one.model.score_threshold, class_names)
                shown.rows.append(GalleryRow(one.entry.name, panels))
        gallery.append(shown)
    return gallery


def _panels(
    image: np.ndarray, predictor: Predictor, threshold: float, class_names: Sequence[str]
) -> list[tuple[str, bytes]]:
    pictures = {"found": draw_instances(image, predictor(image), class_names, threshold)}
    if hasattr(predictor.model, "map_pictures"):
        pictures |= predictor.map_pictures(image)
    return [(title, _jpeg(picture)) for title, picture in pictures.items()]


def _draw_truth(image: np.ndarray, truth: GroundTruth, record: Mapping[str, Any]) -> np.ndarray:
    canvas = image
    objects = [one for one in truth.annotations if one["image_id"] == int(record["image_id"]) and not one["iscrowd"]]
    for annotation in sorted(objects, key=lambda one: -one["area"]):
        if "segmentation" in annotation:
            canvas = draw_mask(canvas, coco_mask.decode(annotation["segmentation"]).astype(bool), TRUTH_COLOR)
        else:
            canvas = draw_boxes(canvas, _corners(annotation["bbox"])[None], TRUTH_COLOR)
    return canvas


def add_failures(trained: Sequence[Trained], truth: GroundTruth, dataset: str, count: int) -> None:
    """Gives each model the objects with the largest loss of IoU beside the best of all models.

    Args:
        trained: those with `found` are compared; where some have masks, those alone.
        truth: the objects.
        dataset: registered name of the set.
        count: failures of a model.
    """
    found = [one for one in trained if one.found is not None]
    has_masks = any(one.iou_type == "segm" for one in found)
    compared = [one for one in found if one.iou_type == ("segm" if has_masks else "bbox")]
    annotations = {annotation["id"]: annotation for annotation in truth.annotations}
    files = {int(record["image_id"]): record["file_name"] for record in load_dataset(dataset)}
    for one in compared:
        losses = _losses(one, compared)
        # The larger object first where losses are equal; of images that training left out there is no picture.
        order = sorted(losses, key=lambda number: (-losses[number], -annotations[number]["area"]))
        worst = [number for number in order if losses[number] > 0 and annotations[number]["image_id"] in files]
        one.model.failures = [
            _failure(one, compared, annotations[number], truth, files, losses[number]) for number in worst[:count]
        ]


def _losses(one: Trained, compared: Sequence[Trained]) -> dict[int, float]:
    """Annotation -> the best IoU of all models less this one's."""
    assert one.found is not None
    return {
        number: max(other.found.ious[number] for other in compared if other.found is not None) - iou
        for number, iou in one.found.ious.items()
    }


def _failure(
    one: Trained,
    compared: Sequence[Trained],
    annotation: Mapping[str, Any],
    truth: GroundTruth,
    files: Mapping[int, str],
    loss: float,
) -> Failure:
    number = annotation["id"]
    ious = {other.entry.name: other.found.ious[number] for other in compared if other.found is not None}
    best = max(compared, key=lambda other: ious[other.entry.name])
    image = read_image(files[annotation["image_id"]], "BGR")
    window = _window(annotation["bbox"], image.shape[:2])
    truth_picture = _cut(_outline(image, annotation, TRUTH_COLOR), window)
    pictures = [("object", _jpeg(truth_picture, FAILURE_SIDE_PX))]
    for other in (one, best):
        title = f"{other.entry.title}, IoU {ious[other.entry.name]:.2f}"
        place = other.found.best.get(number) if other.found is not None else None
        canvas = image if place is None else _outline(image, other.detections[place], FOUND_COLOR)
        pictures.append((title, _jpeg(_cut(canvas, window), FAILURE_SIDE_PX)))
    return Failure(
        image=os.path.basename(files[annotation["image_id"]]),
        annotation_id=truth.annotation_ids[number],
        class_name=truth.categories[annotation["category_id"]],
        area_px=float(annotation["area"]),
        ious=ious,
        loss=loss,
        pictures=pictures,
    )


def _outline(image: np.ndarray, one: Mapping[str, Any], color: Color) -> np.ndarray:
    """The image with the mask of an annotation or a detection, or its box where it has none."""
    if "segmentation" in one:
        return draw_mask(image, coco_mask.decode(one["segmentation"]).astype(bool), color)
    return draw_boxes(image, _corners(one["bbox"])[None], color)


def _corners(box_xywh: Sequence[float]) -> np.ndarray:
    left, top, width, height = box_xywh
    return np.array([left, top, left + width, top + height], dtype=np.float64)


def _window(box_xywh: Sequence[float], size: Sequence[int]) -> tuple[slice, slice]:
    """Rows and columns around a box, a square where the image allows it."""
    left, top, width, height = box_xywh
    half = max(width, height) * (0.5 + MARGIN_SHARE) + MIN_MARGIN_PX
    center_x, center_y = left + width / 2, top + height / 2
    rows = slice(max(0, int(center_y - half)), min(size[0], int(np.ceil(center_y + half))))
    columns = slice(max(0, int(center_x - half)), min(size[1], int(np.ceil(center_x + half))))
    return rows, columns


def _cut(image: np.ndarray, window: tuple[slice, slice]) -> np.ndarray:
    return np.ascontiguousarray(image[window])


def _jpeg(image: np.ndarray, side_px: int = GALLERY_SIDE_PX) -> bytes:
    """JPEG of a picture, made smaller until its long side is at most `side_px`."""
    scale = side_px / max(image.shape[:2])
    if scale < 1:
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    is_encoded, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not is_encoded:
        raise ConfigError(f"a picture of {image.shape} cannot be encoded", "install an OpenCV with JPEG")
    return encoded.tobytes()
