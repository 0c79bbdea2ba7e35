"""From an image file to the network's input, by the rules that evaluation has; they come with the model's file.

Shape shorthand: H, W size of the image in pixels, h, w of the network's input.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import cv2
import numpy as np

from segzoo.errors import ConfigError, DatasetError
from segzoo.export.runtime import pillow


class Prepared(NamedTuple):
    """An image as the network gets it.

    batch: (1, 3, h, w) float32. input_size: (height, width) px without the padding. output_size: (height, width) px
    that boxes and masks are made at. window: (x0, y0, x1, y1) px, where the image lies in the output, or None: it is
    all of it.
    """

    batch: np.ndarray
    input_size: tuple[int, int]
    output_size: tuple[int, int]
    window: tuple[int, int, int, int] | None


def read_image(path: str | os.PathLike) -> np.ndarray:
    """(H, W, 3) uint8 BGR of a file, upright.

    Pixels of 16 bits become the high byte, and transparency is dropped. OpenCV's JPEG decoder may differ from Pillow's,
    which evaluation reads with, by a grey level or two.

    Raises:
        DatasetError: the file is missing, or no image that OpenCV reads.
    """
    try:
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        raise DatasetError(f"image {os.fspath(path)} cannot be read: {error}", "check the path") from error
    image = cv2.imdecode(content, cv2.IMREAD_COLOR) if len(content) else None
    if image is None:
        raise DatasetError(f"image {os.fspath(path)} is not an image, truncated or corrupt", "replace the file")
    return image


def prepare(image: np.ndarray, rule: Mapping[str, Any]) -> Prepared:
    """Resizes, orders channels, normalises and pads.

    Args:
        image: (H, W, 3) uint8 BGR.
        rule: the "input" of the model's metadata, see `segzoo.export.files.input_rule`.

    Raises:
        ValueError: an image of another shape or type.
        ConfigError: the image does not fit into a graph of fixed size.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise ValueError(f"an image must be (H, W, 3) uint8, got {image.shape} {image.dtype}")
    resized, output_size, window = _resized(np.ascontiguousarray(image), rule["resize"], rule["resampling"])
    if rule["format"] == "RGB":
        resized = resized[:, :, ::-1]
    size = (resized.shape[0], resized.shape[1])
    at_least = rule["resize"]["size"] if rule["resize"]["mode"] == "letterbox" else (1, 1)
    divisor = max(1, rule["divisor"])
    padded = [-(-max(side, least) // divisor) * divisor for side, least in zip(size, at_least)]
    fixed = rule["size"] or padded
    if any(side > limit for side, limit in zip(padded, fixed)):
        raise ConfigError(
            f"the image becomes {padded[0]} x {padded[1]} (height x width), the model takes {fixed[0]} x {fixed[1]}",
            "export without --size, or with a larger one",
        )
    mean, std = (np.array(rule[name], np.float32) for name in ("mean", "std"))
    batch = np.zeros((1, 3, *fixed), np.float32)
    pixels = resized.astype(np.float32)
    if rule["raw"]:
        # What becomes 0 when the graph normalises it.
        batch += mean[:, None, None]
    else:
        pixels = (pixels - mean) / std
    batch[0, :, : size[0], : size[1]] = pixels.transpose(2, 0, 1)
    return Prepared(batch, size, output_size, window)


Resized = tuple[np.ndarray, tuple[int, int], tuple[int, int, int, int] | None]


def _resized(image: np.ndarray, rule: Mapping[str, Any], resampling: str) -> Resized:
    """The image for the network without padding, the size of the results, and the image's window in them."""
    height, width = image.shape[:2]
    mode = rule["mode"]
    if mode == "keep_res":
        return _unscaled(image, rule["multiple"])
    if mode == "fix_res":
        return _centered(image, rule["size"], resampling)
    if mode == "fixed":
        size = (rule["size"][0], rule["size"][1])
    elif mode == "letterbox":
        size = _scaled(height, width, min(rule["size"][0] / height, rule["size"][1] / width))
    else:
        size = shortest_edge_size(height, width, rule["shortest"], rule["longest"])
    return _resize(image, size, resampling), (height, width), None


def shortest_edge_size(height: int, width: int, shortest: int, longest: int) -> tuple[int, int]:
    """(height, width) px whose shorter side is `shortest` (0 = as it is), the longer at most `longest` (0 = any)."""
    if shortest == 0:
        return height, width
    scale = shortest / min(height, width)
    if longest and max(height, width) * scale > longest:
        scale = longest / max(height, width)
    return _scaled(height, width, scale)


def _scaled(height: int, width: int, scale: float) -> tuple[int, int]:
    return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)


def _resize(image: np.ndarray, size: tuple[int, int], resampling: str) -> np.ndarray:
    if image.shape[:2] == size:
        return image
    if resampling == "opencv":
        return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    return pillow.resize(image, *size)


def _unscaled(image: np.ndarray, multiple: int) -> Resized:
    """The image in the middle of a black canvas whose sides are the next larger multiples."""
    height, width = image.shape[:2]
    size = ((height // multiple + 1) * multiple, (width // multiple + 1) * multiple)
    top, left = size[0] // 2 - height // 2, size[1] // 2 - width // 2
    canvas = np.zeros((*size, 3), np.uint8)
    canvas[top : top + height, left : left + width] = image
    return canvas, size, (left, top, left + width, top + height)


def _centered(image: np.ndarray, size: tuple[int, int], resampling: str) -> Resized:
    """The image fitted into (height, width) px, its ratio kept, in the middle of black."""
    height, width = image.shape[:2]
    longer = max(height / size[0], width / size[1])
    canvas = (max(round(longer * size[0]), height), max(round(longer * size[1]), width))
    left, top = (canvas[1] - width) // 2, (canvas[0] - height) // 2
    window = (left, top, left + width, top + height)
    scale = (size[1] / canvas[1], size[0] / canvas[0])
    shift = (scale[0] * left, scale[1] * top)
    if resampling == "opencv":
        # Its pixels lie at whole numbers, ours half a pixel further.
        matrix = np.array(
            [[scale[0], 0, shift[0] + 0.5 * scale[0] - 0.5], [0, scale[1], shift[1] + 0.5 * scale[1] - 0.5]]
        )
        warped = cv2.warpAffine(image, matrix, (size[1], size[0]), flags=cv2.INTER_LINEAR, borderValue=(0, 0, 0))
        return warped, canvas, window
    # The longer side first, as in evaluation: every pass rounds.
    for axis in (1, 0) if width >= height else (0, 1):
        image = _warp_axis(image, axis, size[axis], scale[1 - axis], shift[1 - axis])
    return image, canvas, window


def _warp_axis(image: np.ndarray, axis: int, new: int, scale: float, shift: float) -> np.ndarray:
    """x -> scale x + shift along one axis of the array, onto `new` pixels, black around."""
    old = image.shape[axis]
    first = -shift / scale
    last = first + new / scale
    before, after = max(math.ceil(-first), 0), max(math.ceil(last - old), 0)
    padding = [(before, after) if axis == own else (0, 0) for own in range(3)]
    padded = np.pad(image, padding)
    height, width = padded.shape[:2]
    if axis == 1:
        return pillow.resize(padded, height, new, (first + before, 0, last + before, height))
    return pillow.resize(padded, new, width, (0, first + before, width, last + before))
