"""What every picture needs: colours, legible text, sub-pixel coordinates, panels, files.

Images are (H, W, 3) uint8 BGR. Functions return a new image and leave their input as it is, but for those whose
name ends in _inplace.
"""

from __future__ import annotations

import colorsys
import os
import unicodedata
from collections.abc import Sequence

import cv2
import numpy as np

from segzoo.errors import SegZooError

# Consecutive hues are this far apart on the circle (golden ratio), so that neighbours in a list differ.
HUE_STEP = 0.61803398875
# Fractional bits of the coordinates that OpenCV draws at.
SUBPIXEL_BITS = 4
# Beyond this OpenCV's fixed-point coordinates could overflow; nothing so far out is seen.
MAX_COORDINATE_PX = 1e5
FONT = cv2.FONT_HERSHEY_SIMPLEX

Color = tuple[int, int, int]


def instance_color(index: int) -> Color:
    """BGR of instance `index`: bright, and different from those of the indices near it."""
    lightness = (0.55, 0.65, 0.45)[index % 3]
    red, green, blue = colorsys.hls_to_rgb((0.02 + index * HUE_STEP) % 1.0, lightness, 0.95)
    return round(255 * blue), round(255 * green), round(255 * red)


def check_image(image: np.ndarray) -> np.ndarray:
    """A copy of `image` to draw on. Raises ValueError when it is not (H, W, 3) uint8."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"an image to draw on must be (H, W, 3) uint8, got {image.shape} {image.dtype}")
    return np.ascontiguousarray(image).copy()


def line_thickness(image: np.ndarray) -> int:
    """Pixels of a line that shows on an image of this size."""
    return max(1, round(min(image.shape[:2]) / 400))


def to_fixed_point(points: np.ndarray) -> np.ndarray:
    """(n, 2) continuous image coordinates (x, y) to OpenCV's int32 coordinates with SUBPIXEL_BITS.

    OpenCV counts from the centre of the first pixel, which lies at (.5, .5) of the image.
    """
    clipped = np.clip(np.asarray(points, dtype=np.float64), -MAX_COORDINATE_PX, MAX_COORDINATE_PX)
    return np.round((clipped - 0.5) * (1 << SUBPIXEL_BITS)).astype(np.int32)


def to_ascii(text: str, fallback: str) -> str:
    """What OpenCV's fonts can draw of a text: accents dropped; `fallback` when nothing is left."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii").strip()
    return plain or fallback


def draw_text_inplace(image: np.ndarray, text: str, left: float, bottom: float, color: Color) -> None:
    """Writes on a filled label whose lower left corner is (left, bottom) px, moved so that it lies in the image."""
    scale = max(0.32, min(image.shape[:2]) / 1100)
    thickness = line_thickness(image)
    (width, height), baseline = cv2.getTextSize(text, FONT, scale, thickness)
    full_height = height + baseline + 2
    x = int(np.clip(left, 0, max(0, image.shape[1] - width - 2)))
    y = int(np.clip(bottom - full_height, 0, max(0, image.shape[0] - full_height)))
    cv2.rectangle(image, (x, y), (x + width + 1, y + full_height - 1), color, cv2.FILLED)
    is_light = 0.114 * color[0] + 0.587 * color[1] + 0.299 * color[2] > 128
    ink = (0, 0, 0) if is_light else (255, 255, 255)
    cv2.putText(image, text, (x + 1, y + height + 1), FONT, scale, ink, thickness, cv2.LINE_AA)


def draw_text(image: np.ndarray, text: str, left: float, bottom: float, color: Color = (32, 32, 32)) -> np.ndarray:
    """See `draw_text_inplace`; returns a new image."""
    canvas = check_image(image)
    draw_text_inplace(canvas, to_ascii(text, "?"), left, bottom, color)
    return canvas


def side_by_side(
    panels: Sequence[np.ndarray], titles: Sequence[str] = (), columns: int = 0, gap_px: int = 4
) -> np.ndarray:
    """Puts images on one sheet, row by row, each in a cell as large as the largest of them.

    Args:
        panels: (H, W, 3) uint8 BGR each; sizes may differ.
        titles: one a panel, written above it; none for no titles.
        columns: panels in a row; 0 puts all in one.
        gap_px: white space between panels.

    Raises:
        ValueError: no panel, or another number of titles.
    """
    if not panels or (titles and len(titles) != len(panels)):
        raise ValueError(f"side_by_side: {len(panels)} panels and {len(titles)} titles")
    columns = columns or len(panels)
    title_px = 18 if titles else 0
    cell_height = max(panel.shape[0] for panel in panels) + title_px
    cell_width = max(panel.shape[1] for panel in panels)
    num_rows = -(-len(panels) // columns)
    sheet_height = num_rows * cell_height + (num_rows - 1) * gap_px
    sheet = np.full((sheet_height, columns * cell_width + (columns - 1) * gap_px, 3), 255, dtype=np.uint8)
    for index, panel in enumerate(panels):
        row, column = divmod(index, columns)
        top, left = row * (cell_height + gap_px), column * (cell_width + gap_px)
        if titles:
            title = to_ascii(titles[index], "")
            cv2.putText(sheet, title, (left + 2, top + title_px - 5), FONT, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
        content = check_image(panel)
        sheet[top + title_px : top + title_px + content.shape[0], left : left + content.shape[1]] = content
    return sheet


def save_image(path: str, image: np.ndarray, png_level: int | None = None) -> None:
    """Writes an image, its format by the name's ending (.png, .jpg ...); makes the folder.

    Args:
        path: of the file.
        image: (H, W, 3) uint8 BGR.
        png_level: 0..9, higher is smaller and slower; None is OpenCV's quick choice.

    Raises:
        SegZooError: the ending is not one of an image format, or the file cannot be written.
    """
    ending = os.path.splitext(path)[1].lower()
    options = [] if png_level is None else [cv2.IMWRITE_PNG_COMPRESSION, png_level]
    try:
        is_encoded, encoded = cv2.imencode(ending or ".", image, options)
    except cv2.error:
        is_encoded = False
    if not is_encoded:
        raise SegZooError(f"{path}: no image format has the ending {ending!r}", "use .png or .jpg")
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        # Not cv2.imwrite: it returns False where the file system says why.
        with open(path, "wb") as stream:
            stream.write(encoded.tobytes())
    except OSError as error:
        raise SegZooError(f"cannot write {path}: {error}", "choose a writable folder") from error
