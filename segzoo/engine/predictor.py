"""One image in, its detections out: the same input path as evaluation."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Instances

from segzoo.data.augmentation import build_augmentations, build_resize
from segzoo.data.centering import results_entry
from segzoo.data.image_io import read_image
from segzoo.engine.device import choose_device
from segzoo.engine.validate import validate_config
from segzoo.engine.weights import load_weights
from segzoo.errors import ConfigError
from segzoo.modeling.window import restore_originals


class Predictor:
    """A model with its weights, for single images.

    Args:
        cfg: the whole config; MODEL.WEIGHTS are loaded, MODEL.DEVICE is where it runs ("cuda", the default, means the
            CPU on a machine without a GPU). MODEL.NUM_CLASSES and every method's NUM_CLASSES must be those that the
            weights were trained with.

    Raises:
        CheckpointError: the weights are unreadable or do not fit.
        ConfigError: impossible values, or a GPU that is not there.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg.clone()
        # The caller's config may be frozen; the clone is this object's own.
        self.cfg.defrost()
        self.cfg.MODEL.DEVICE = choose_device(self.cfg.MODEL.DEVICE, num_gpus=1)
        self.cfg.freeze()
        validate_config(self.cfg)
        self.model = build_model(self.cfg)
        self.model.eval()
        load_weights(self.model, self.cfg.MODEL.WEIGHTS)
        self.augmentations = build_augmentations(self.cfg, is_train=False)
        self.resize = build_resize(self.cfg, is_train=False)
        self.pad_to = tuple(self.cfg.INPUT.FIXED_SIZE) if self.cfg.INPUT.RESIZE == "letterbox" else None

    def __call__(self, image: np.ndarray | str | os.PathLike) -> Instances:
        """Detects the objects of one image.

        Args:
            image: (H, W, 3) uint8 in BGR order as OpenCV reads it, or the path of a file, which is read by the same
                rules as the data sets (EXIF, grey, 16 bits).

        Returns:
            Instances on the CPU at the image's own size: pred_boxes, scores, pred_classes and, for methods of masks,
            pred_masks (RLEMasks).

        Raises:
            DatasetError: the file cannot be read.
            ValueError: an array of another shape or type.
        """
        with torch.no_grad():
            batch = [self.prepare(image)]
            return restore_originals(batch, self.model(batch))[0]["instances"].to("cpu")

    def map_pictures(self, image: np.ndarray | str | os.PathLike) -> dict[str, np.ndarray]:
        """Pictures of the maps that the model's masks come from: (H, W, 3) uint8 BGR at the network's input size each.

        A model offers them by a method `map_pictures(inputs)`, inputs as one entry of a forward.

        Args:
            image: see `__call__`.

        Returns:
            By title; empty when there is nothing to show.

        Raises:
            ConfigError: the method has no such pictures.
        """
        if not hasattr(self.model, "map_pictures"):
            name = self.cfg.MODEL.META_ARCHITECTURE
            raise ConfigError(
                f"{name} has no pictures of its maps", "leave the option out: only some methods have them"
            )
        with torch.no_grad():
            return self.model.map_pictures(self.prepare(image))

    def prepare(self, image: np.ndarray | str | os.PathLike) -> dict[str, Any]:
        """The entry of a forward for one image, resized as in evaluation."""
        original = self._read(image)
        resized, rng = original, np.random.default_rng(0)
        for augmentation in self.augmentations:
            resized = augmentation.get_transform(resized, rng).apply_image(resized)
        entry: dict[str, Any] = {
            "image": torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1))),
            **results_entry(self.resize, *original.shape[:2]),
        }
        if self.pad_to is not None:
            entry["pad_to"] = self.pad_to
        return entry

    def _read(self, image: np.ndarray | str | os.PathLike) -> np.ndarray:
        """The image (H, W, 3) uint8 in the order INPUT.FORMAT."""
        if not isinstance(image, np.ndarray):
            return read_image(os.fspath(image), self.cfg.INPUT.FORMAT)
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise ValueError(f"an image must be (H, W, 3) uint8, got {image.shape} {image.dtype}")
        return image[:, :, ::-1] if self.cfg.INPUT.FORMAT == "RGB" else image
