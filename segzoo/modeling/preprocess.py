"""From the mapper's images to a network's input batch.

Shape shorthand:
    N: images, H, W: size of an image in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.structures import ImageList
from torch import nn


class ImagePreprocessor(nn.Module):
    """Normalises images and pads them to one batch.

    Args:
        pixel_mean, pixel_std: one value a channel, in the order of `input_format`.
        size_divisibility: the batch's height and width become multiples of it; 0 or 1 = no such padding.
        input_format: order of the channels, "BGR" or "RGB", for those who show the images; the mapper has already
            put them in this order.
    """

    pixel_mean: torch.Tensor
    pixel_std: torch.Tensor

    def __init__(
        self,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        size_divisibility: int = 0,
        input_format: str = "BGR",
    ) -> None:
        super().__init__()
        if len(pixel_mean) != len(pixel_std):
            raise ValueError(f"pixel_mean {pixel_mean} and pixel_std {pixel_std} disagree in length")
        self.size_divisibility = size_divisibility
        self.input_format = input_format
        # Not persistent: they come from the config, and a checkpoint must not bring back another's.
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean, dtype=torch.float32).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std, dtype=torch.float32).view(-1, 1, 1), False)

    def forward(self, batched_inputs: list[dict], device: torch.device | str | None = None) -> ImageList:
        """Batches the "image" tensors (3, H, W), uint8 or float, of one or several sizes.

        Args:
            batched_inputs: dicts with "image" and perhaps "pad_to", the least (height, width) of the batch.
            device: where the batch is made; None = where the mean lies.

        Returns:
            ImageList: `.tensor` (N, 3, H', W') float32, zero (the mean colour) in the padding at the right and the
            bottom; `.image_sizes` the N sizes (H, W) without it.
        """
        device = torch.device(device) if device is not None else self.pixel_mean.device
        mean, std = self.pixel_mean.to(device), self.pixel_std.to(device)
        # Moved as uint8: a quarter of the bytes.
        images = [(entry["image"].to(device, non_blocking=True).float() - mean) / std for entry in batched_inputs]
        sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        # "pad_to" is the mapper's letterbox: a batch at least that large.
        at_least = [tuple(entry["pad_to"]) for entry in batched_inputs if "pad_to" in entry]
        height, width = (self._padded(max(sides)) for sides in zip(*sizes, *at_least, strict=True))
        batch = images[0].new_zeros(len(images), images[0].shape[0], height, width)
        for slot, image in zip(batch, images, strict=True):
            slot[:, : image.shape[-2], : image.shape[-1]] = image
        return ImageList(batch, sizes)

    def to_bgr(self, image: torch.Tensor) -> np.ndarray:
        """(3, H, W) of the mapper, in the order of `input_format` -> (H, W, 3) uint8 BGR, to draw on."""
        pixels = image.float().round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()
        return np.ascontiguousarray(pixels[:, :, ::-1] if self.input_format == "RGB" else pixels)

    def _padded(self, side: int) -> int:
        divisor = max(self.size_divisibility, 1)
        return -(-side // divisor) * divisor
