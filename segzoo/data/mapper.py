"""From a dataset dict to a training or test sample: the one mapper of all methods.

Shape shorthand:
    M: instances, H, W: size of the augmented image in pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import BitMasks, Boxes, Instances
from fvcore.transforms.transform import NoOpTransform, Transform, TransformList
from pycocotools import mask as coco_mask

from segzoo.data.augmentation import build_augmentations
from segzoo.data.image_io import image_size, read_image
from segzoo.errors import ConfigError, DatasetError
from segzoo.geometry.polygons import segmentation_to_rle
from segzoo.geometry.rle import run_lengths

LOST_INSTANCES = "instances without a pixel after augmentation"
SURPLUS_INSTANCES = "instances beyond INPUT.MAX_INSTANCES"


class DatasetMapper:
    """Reads, augments and draws one image with its instances.

    Args:
        cfg: the config (INPUT).
        is_train: whether to augment at random and to give instances.
    """

    def __init__(self, cfg: CfgNode, is_train: bool) -> None:
        if cfg.INPUT.FORMAT not in ("BGR", "RGB"):
            raise ConfigError(f"INPUT.FORMAT is {cfg.INPUT.FORMAT!r}", "use 'BGR' or 'RGB'")
        self.is_train = is_train
        self.image_format = cfg.INPUT.FORMAT
        self.max_instances = cfg.INPUT.MAX_INSTANCES
        self.augmentations = build_augmentations(cfg, is_train)
        self.pad_to = tuple(cfg.INPUT.FIXED_SIZE) if cfg.INPUT.RESIZE == "letterbox" else None

    def __call__(self, dataset_dict: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Makes a sample.

        Args:
            dataset_dict: Detectron2's standard format; not changed.
            rng: the only source of randomness.

        Returns:
            "image" (3, H, W) uint8 in the order INPUT.FORMAT; "height", "width" of the original image, px; "image_id";
            "file_name"; with INPUT.RESIZE letterbox "pad_to", the (height, width) a batch is padded to at least.
            In training also "instances" (gt_boxes, gt_classes, gt_masks, all there when M = 0) and "counts",
            {reason: number} of instances that were left out.

        Raises:
            DatasetError: the image cannot be read, or its size is not the json's.
        """
        image = read_image(dataset_dict["file_name"], self.image_format)
        check_size(dataset_dict, image.shape[0], image.shape[1])
        transforms: list[Transform] = []
        for augmentation in self.augmentations:
            transforms.append(augmentation.get_transform(image, rng))
            image = transforms[-1].apply_image(image)
        sample = {key: dataset_dict[key] for key in ("file_name", "image_id", "height", "width")}
        sample["image"] = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        if self.pad_to is not None:
            sample["pad_to"] = self.pad_to
        if self.is_train:
            annotations, num_surplus = self._select(dataset_dict.get("annotations", []), rng)
            instances, num_lost = draw_instances(annotations, TransformList(transforms), dataset_dict, image.shape[:2])
            sample["instances"] = instances
            counts = {LOST_INSTANCES: num_lost, SURPLUS_INSTANCES: num_surplus}
            sample["counts"] = {reason: count for reason, count in counts.items() if count}
        return sample

    def _select(self, annotations: list[dict], rng: np.random.Generator) -> tuple[list[dict], int]:
        """Leaves out crowds, and a random choice of what exceeds MAX_INSTANCES (0 = no limit)."""
        objects = [annotation for annotation in annotations if not annotation.get("iscrowd", 0)]
        num_surplus = len(objects) - self.max_instances
        if self.max_instances <= 0 or num_surplus <= 0:
            return objects, 0
        chosen = np.sort(rng.choice(len(objects), self.max_instances, replace=False))
        return [objects[k] for k in chosen], num_surplus


def draw_instances(
    annotations: list[dict], transforms: TransformList, dataset_dict: dict[str, Any], image_size: tuple[int, int]
) -> tuple[Instances, int]:
    """Draws annotations into the augmented image.

    Polygons are transformed as polygons and drawn once, at the final size, exactly as pycocotools draws them; run
    lengths are decoded at the original size and then transformed pixel by pixel.

    Args:
        annotations: M of them, with "segmentation" and "category_id".
        transforms: from the original to the augmented image.
        dataset_dict: for "height" and "width" of the original image, and the names in errors.
        image_size: (H, W) of the augmented image.

    Returns:
        Instances with gt_boxes (M', 4), gt_classes (M',) int64 and gt_masks (M', H, W) bool, without those that have
        no pixel left; the number of these.
    """
    height, width = image_size
    is_identity = all(isinstance(transform, NoOpTransform) for transform in transforms.transforms)
    rles = []
    for annotation in annotations:
        try:
            rles.append(_transformed_rle(annotation["segmentation"], transforms, dataset_dict, image_size, is_identity))
        except DatasetError as error:
            where = f"{dataset_dict['file_name']}: image id {dataset_dict['image_id']}"
            what = f"{where}: annotation id {annotation.get('id')}: {error.message}"
            raise DatasetError(what, error.remedy) from error
    corners = _corners(rles)
    has_pixels = (corners[:, 2] > corners[:, 0]) & (corners[:, 3] > corners[:, 1])
    kept = np.flatnonzero(has_pixels)
    masks = np.zeros((len(kept), height, width), dtype=bool)
    for mask, k in zip(masks, kept):
        x_min, y_min, x_end, y_end = corners[k]
        mask[y_min:y_end, x_min:x_end] = _decode_columns(rles[k], x_min, x_end)[y_min:y_end]
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.from_numpy(corners[kept].astype(np.float32)))
    classes = [annotations[k]["category_id"] for k in kept]
    instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
    instances.gt_masks = BitMasks(torch.from_numpy(masks))
    return instances, len(annotations) - len(kept)


def _transformed_rle(
    segmentation: Any,
    transforms: TransformList,
    dataset_dict: dict[str, Any],
    image_size: tuple[int, int],
    is_identity: bool,
) -> dict:
    height, width = image_size
    if isinstance(segmentation, dict):
        rle = segmentation_to_rle(segmentation, dataset_dict["height"], dataset_dict["width"])
        if is_identity:
            return rle
        mask = transforms.apply_segmentation(coco_mask.decode(rle))
        return coco_mask.encode(np.asfortranarray(mask))
    lengths = [len(polygon) for polygon in segmentation]
    points = np.concatenate([np.asarray(polygon, dtype=np.float64) for polygon in segmentation]).reshape(-1, 2)
    flat = transforms.apply_coords(points).reshape(-1)
    return segmentation_to_rle(np.split(flat, np.cumsum(lengths)[:-1]), height, width)


def _decode_columns(rle: dict, x_min: int, x_end: int) -> np.ndarray:
    """(H, x_end - x_min) bool: some columns of an RLE. Decoding whole masks would be the dearest step of a sample."""
    height = rle["size"][0]
    lengths = run_lengths(rle)
    ends = np.clip(np.cumsum(lengths), x_min * height, x_end * height)
    is_object = np.arange(len(lengths)) % 2 == 1
    return np.repeat(is_object, np.diff(ends, prepend=x_min * height)).reshape(-1, height).T


def _corners(rles: list[dict]) -> np.ndarray:
    """(M, 4) int64 boxes x_min, y_min, x_max + 1, y_max + 1; all zero for an empty mask."""
    if not rles:
        return np.zeros((0, 4), dtype=np.int64)
    boxes = coco_mask.toBbox(rles).astype(np.int64)
    boxes[:, 2:] += boxes[:, :2]
    # An empty mask gets some box or other. One by one: with numpy 2, pycocotools' area fails on more than 255 at once.
    boxes[[not coco_mask.area(rle) for rle in rles]] = 0
    return boxes


def check_size(dataset_dict: dict[str, Any], height: int, width: int) -> None:
    """Refuses an image whose size (as shown, px) is not the json's, where every mask would be shifted.

    Raises:
        DatasetError: with both sizes, and the EXIF orientation if that explains the difference.
    """
    expected = (dataset_dict["height"], dataset_dict["width"])
    if expected == (height, width):
        return
    where = f"image {dataset_dict['file_name']} (image id {dataset_dict['image_id']})"
    raise size_mismatch(where, expected, (height, width), image_size(dataset_dict["file_name"]).orientation)


def size_mismatch(where: str, expected: tuple[int, int], actual: tuple[int, int], orientation: int) -> DatasetError:
    """The error for an image of `actual` (height, width) px, as shown, that the json calls `expected`."""
    what = f"{where} is {actual[1]} x {actual[0]} (width x height) but {expected[1]} x {expected[0]} in the json"
    if orientation != 1 and expected == actual[::-1]:
        return DatasetError(
            f"{what}: the json ignores the file's EXIF orientation {orientation}, its masks lie on the image turned",
            "rotate the pixels and remove the EXIF tag, or annotate the image as it is shown",
        )
    return DatasetError(
        f"{what}: the masks would be shifted", "correct the json's width and height, or replace the file"
    )
