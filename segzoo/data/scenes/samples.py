"""A generated scene as a training sample has it, for pictures.

Shape shorthand: M objects of the scene, H, W its size.
"""

from __future__ import annotations

import numpy as np
import torch
from detectron2.structures import BitMasks, Boxes, Instances
from pycocotools import mask as mask_api

from segzoo.data.scenes.writer import IMAGE_SIZE_PX, make_scene
from segzoo.geometry.masks import mask_boxes
from segzoo.geometry.polygons import segmentation_to_rle


def scene_sample(seed: int, index: int, size_px: int = IMAGE_SIZE_PX) -> tuple[np.ndarray, Instances]:
    """Scene `index` of a seed, (H, W, 3) uint8 BGR, and its M objects: gt_boxes, gt_classes (from 0 on), gt_masks."""
    image, annotations = make_scene(seed, index, size_px)
    height, width = image.shape[:2]
    rles = [segmentation_to_rle(one["segmentation"], height, width) for one in annotations]
    stack = torch.from_numpy(np.stack([mask_api.decode(rle).astype(bool) for rle in rles]))
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(mask_boxes(stack))
    instances.gt_classes = torch.tensor([one["category_id"] - 1 for one in annotations])
    instances.gt_masks = BitMasks(stack)
    return image, instances
