"""Reading image files: every kind becomes 3 x uint8 by one set of rules, upright, or a DatasetError naming the file.

Rules: EXIF orientation is applied; grey, palette, 1-bit, CMYK and other colour spaces are converted by Pillow; alpha is
dropped, not blended; of 16 bits a channel the high byte is kept. Files with several frames are refused, because
it would be a guess which frame the annotations belong to.
"""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from segzoo.errors import DatasetError

EXIF_ORIENTATION = 0x0112
# Orientations that exchange height and width.
SIDEWAYS = frozenset((5, 6, 7, 8))
# What makes each orientation upright. Pillow's exif_transpose also rewrites the EXIF block and fails on damaged ones.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# A photo with embedded previews of itself; the first picture is the photo.
_SEVERAL_PICTURES_ALLOWED = frozenset(("MPO",))
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    TypeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


@dataclass(frozen=True)
class ImageHeader:
    """Size of an image as it is shown, in pixels, and the EXIF orientation (1..8) that was applied for it."""

    height: int
    width: int
    orientation: int

    @property
    def stored_size(self) -> tuple[int, int]:
        """(height, width) of the pixels in the file, before the orientation is applied."""
        return (self.width, self.height) if self.orientation in SIDEWAYS else (self.height, self.width)


def read_image(path: str, image_format: str = "BGR") -> np.ndarray:
    """Reads an image file upright.

    Args:
        path: the file.
        image_format: order of the channels, "BGR" or "RGB".

    Returns:
        (H, W, 3) uint8, contiguous.

    Raises:
        DatasetError: names the file that is missing, not an image, truncated, corrupt or has several frames.
    """
    if image_format not in ("BGR", "RGB"):
        raise ValueError(f"image_format must be 'BGR' or 'RGB', got {image_format!r}")
    with _open(path) as image:
        _check_single_frame(image, path)
        try:
            # Before anything else touches the pixels: Pillow reports a failed decoding only once.
            image.load()
            pixels = np.asarray(_to_rgb(_upright(image), path))
        except _DECODER_ERRORS as error:
            raise _undecodable(path, error) from error
    return np.ascontiguousarray(pixels[:, :, ::-1] if image_format == "BGR" else pixels)


def image_size(path: str) -> ImageHeader:
    """Size and orientation from the file's header; the pixels are not decoded.

    Raises:
        DatasetError: the file is missing or has no readable header.
    """
    with _open(path) as image:
        orientation = _orientation(image)
        width, height = image.size
    if orientation in SIDEWAYS:
        height, width = width, height
    return ImageHeader(height, width, orientation)


def _open(path: str) -> Image.Image:
    try:
        return Image.open(path)
    except FileNotFoundError as error:
        raise DatasetError(f"image {path} does not exist", "check the image folder and the file names") from error
    except UnidentifiedImageError as error:
        is_empty = os.path.isfile(path) and os.path.getsize(path) == 0
        what = "is empty (0 bytes)" if is_empty else "is not an image, whatever its name says"
        raise DatasetError(f"image {path} {what}", "replace the file or remove its entry") from error
    except _DECODER_ERRORS as error:
        raise _undecodable(path, error) from error


def _undecodable(path: str, error: BaseException) -> DatasetError:
    return DatasetError(
        f"image {path} cannot be decoded ({error}): truncated or corrupt",
        "replace the file, remove its entry, or train with INPUT.ON_BAD_IMAGE skip",
    )


def _check_single_frame(image: Image.Image, path: str) -> None:
    try:
        num_frames = 1 if image.format in _SEVERAL_PICTURES_ALLOWED else getattr(image, "n_frames", 1)
    except _DECODER_ERRORS as error:
        raise _undecodable(path, error) from error
    if num_frames > 1:
        raise DatasetError(
            f"image {path} has {num_frames} frames or pages ({image.format}), not one",
            "extract the frame that is meant into a file of its own",
        )


def _orientation(image: Image.Image) -> int:
    try:
        # The base class's, because the PNG reader's own decodes the whole image to look for EXIF behind the pixels.
        orientation = Image.Image.getexif(image).get(EXIF_ORIENTATION, 1)
    except _DECODER_ERRORS:
        # A damaged EXIF block says nothing about the pixels: viewers show such a file as it is stored, and so do we.
        return 1
    return orientation if orientation in range(1, 9) else 1


def _upright(image: Image.Image) -> Image.Image:
    orientation = _orientation(image)
    return image if orientation == 1 else image.transpose(_UPRIGHT[orientation])


def _to_rgb(image: Image.Image, path: str) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):
        return _high_byte(image, path).convert("RGB")
    if image.mode == "F":
        raise DatasetError(
            f"image {path} has floating-point pixels, whose range is unknown", "save it with 8 or 16 bits a channel"
        )
    if image.mode == "RGBa":
        # Premultiplied: the colours have to be divided by alpha before it is dropped.
        image = image.convert("RGBA")
    return image.convert("RGB")


def _high_byte(image: Image.Image, path: str) -> Image.Image:
    """16-bit grey to 8 bits, as Pillow itself reads 16-bit colour."""
    values = np.asarray(image).astype(np.int64)
    if values.size and (values.min() < 0 or values.max() > 0xFFFF):
        raise DatasetError(
            f"image {path} has grey values from {values.min()} to {values.max()}, more than 16 bits",
            "save it with 8 or 16 bits a channel",
        )
    return Image.fromarray((values >> 8).astype(np.uint8))
