"""From a dataset dict to a training or test sample: the one mapper of all methods.

Shape shorthand:
    M: instances, H, W: size of the augmented image in pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from fvcore.transforms.transform import TransformList

from segzoo.data.augmentation import build_augmentations, build_resize
from segzoo.data.centering import results_entry
from segzoo.data.drawing import draw_instances, original_boxes, original_rle
from segzoo.data.image_io import image_size, read_image
from segzoo.data.small_objects import SmallObjectFilter
from segzoo.errors import ConfigError, DatasetError

LOST_INSTANCES = "instances without a pixel after augmentation"
SURPLUS_INSTANCES = "instances beyond INPUT.MAX_INSTANCES"


class DatasetMapper:
    """Reads, augments and draws one image with its instances.

    Args:
        cfg: the config (INPUT).
        is_train: whether to augment at random and to give instances.

    Raises:
        ConfigError: a value of INPUT that is unknown or out of range; names the key.
    """

    def __init__(self, cfg: CfgNode, is_train: bool) -> None:
        if cfg.INPUT.FORMAT not in ("BGR", "RGB"):
            raise ConfigError(f"INPUT.FORMAT is {cfg.INPUT.FORMAT!r}", "use 'BGR' or 'RGB'")
        self.is_train = is_train
        self.image_format = cfg.INPUT.FORMAT
        self.max_instances = cfg.INPUT.MAX_INSTANCES
        self.augmentations = build_augmentations(cfg, is_train)
        self.test_resize = None if is_train else build_resize(cfg, is_train=False)
        if cfg.INPUT.BOXES not in ("masks", "annotations"):
            raise ConfigError(f"INPUT.BOXES is {cfg.INPUT.BOXES!r}", "use 'masks' or 'annotations'")
        self.keeps_boxes = cfg.INPUT.BOXES == "annotations"
        self.draws_before = cfg.INPUT.RASTERIZE == "before"
        self.without_small = SmallObjectFilter(cfg)
        self.pad_to = tuple(cfg.INPUT.FIXED_SIZE) if cfg.INPUT.RESIZE == "letterbox" else None

    def __call__(self, dataset_dict: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Makes a sample.

        Args:
            dataset_dict: Detectron2's standard format; not changed.
            rng: the only source of randomness.

        Returns:
            "image" (3, H, W) uint8 in the order INPUT.FORMAT; "height", "width" of the original image, px; "image_id";
            "file_name"; with INPUT.RESIZE letterbox "pad_to", the (height, width) a batch is padded to at least. With
            fix_res or keep_res "height" and "width" of a test sample are the canvas's, the original a "window" of it.
            In training also "instances" (gt_boxes, gt_classes, gt_masks, all there when M = 0) and "counts",
            {reason: number} of instances that were left out.

        Raises:
            DatasetError: the image cannot be read, or its size is not the json's.
        """
        image = read_image(dataset_dict["file_name"], self.image_format)
        check_size(dataset_dict, image.shape[0], image.shape[1])
        boxes = original_boxes(dataset_dict) if self.is_train else None
        transforms = TransformList([])
        for augmentation in self.augmentations:
            step = augmentation.get_transform(image, rng, boxes)
            image, boxes = step.apply_image(image), None if boxes is None else step.apply_box(boxes)
            transforms += step
        sample = {key: dataset_dict[key] for key in ("file_name", "image_id", "height", "width")}
        # A copy in any case: of an image one pixel wide, numpy calls its mirrored view contiguous, torch does not.
        sample["image"] = torch.from_numpy(np.array(image.transpose(2, 0, 1), order="C"))
        if self.test_resize is not None:
            sample |= results_entry(self.test_resize, dataset_dict["height"], dataset_dict["width"])
        if self.pad_to is not None:
            sample["pad_to"] = self.pad_to
        if self.is_train:
            annotations, counts = self._select(dataset_dict, rng)
            instances, num_lost = draw_instances(
                annotations,
                transforms,
                dataset_dict,
                image.shape[:2],
                keeps_boxes=self.keeps_boxes,
            )
            sample["instances"] = instances
            counts[LOST_INSTANCES] = num_lost
            sample["counts"] = {reason: count for reason, count in counts.items() if count}
        return sample

    def _select(self, dataset_dict: dict[str, Any], rng: np.random.Generator) -> tuple[list[dict], dict[str, int]]:
        """The annotations to draw, and {reason: number} of the others but crowds.

        Left out are crowds, small objects (DROP_SMALL) and a random choice of what exceeds MAX_INSTANCES (0 = no
        limit). With RASTERIZE "before" the segmentations are RLEs of the original size.
        """
        objects = [entry for entry in dataset_dict.get("annotations", []) if not entry.get("iscrowd", 0)]
        if self.draws_before:
            objects = [{**entry, "segmentation": original_rle(entry, dataset_dict)} for entry in objects]
        objects, counts = self.without_small(objects, dataset_dict)
        num_surplus = len(objects) - self.max_instances
        if self.max_instances <= 0 or num_surplus <= 0:
            return objects, counts
        chosen = np.sort(rng.choice(len(objects), self.max_instances, replace=False))
        return [objects[k] for k in chosen], {**counts, SURPLUS_INSTANCES: num_surplus}


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
