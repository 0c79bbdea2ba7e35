"""Windows of masks that are held as run lengths, without drawing them.

Shape shorthand:
    D: masks, H, W: size of their image in pixels.
"""

from __future__ import annotations

from segzoo.geometry.edges import crop_rle
from segzoo.geometry.rle import RLEMasks


def crop_masks(masks: RLEMasks, window: tuple[int, int, int, int]) -> RLEMasks:
    """What a window shows of D masks.

    Args:
        masks: of one image (H, W).
        window: (x0, y0, x1, y1) px, within the image.

    Returns:
        Masks of size (y1 - y0, x1 - x0).

    Raises:
        ValueError: the window reaches out of the image, or has no pixel.
    """
    (height, width), (x0, y0, x1, y1) = masks.image_size, window
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise ValueError(f"window {window} (x0, y0, x1, y1) of an image of {height} x {width} (height x width)")
    return RLEMasks([crop_rle(rle, window) for rle in masks.rles], (y1 - y0, x1 - x0))
