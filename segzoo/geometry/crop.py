"""Windows of masks that are held as run lengths, without drawing them.

Shape shorthand:
    D: masks, H, W: size of their image in pixels.
"""

from __future__ import annotations

import numpy as np

from segzoo.geometry.rle import RLEMasks, encode_edges, run_lengths


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
    size = (y1 - y0, x1 - x0)
    return RLEMasks([encode_edges(_cropped_edges(rle, window), size) for rle in masks.rles], size)


def _cropped_edges(rle: dict, window: tuple[int, int, int, int]) -> np.ndarray:
    """Numbers of pixels in the window, counted down its columns, where runs begin and end (see `encode_edges`)."""
    height, (x0, y0, x1, y1) = rle["size"][0], window
    bounds = np.cumsum(run_lengths(rle))
    # Background comes first, and last where the number of runs is odd.
    starts, ends = bounds[:-1:2], bounds[1::2]
    is_run = starts < ends
    starts, ends = starts[is_run], ends[is_run]
    # A run that turns into the next column is one piece in each.
    first = np.maximum(starts // height, x0)
    counts = np.maximum(np.minimum((ends - 1) // height, x1 - 1) - first + 1, 0)
    run = np.repeat(np.arange(len(starts)), counts)
    column = first[run] + np.arange(len(run)) - (np.cumsum(counts) - counts)[run]
    upper = np.clip(starts[run] - column * height, y0, y1)
    lower = np.clip(ends[run] - column * height, y0, y1)
    corner = (column - x0) * (y1 - y0) - y0
    edges = np.stack([corner + upper, corner + lower], axis=1)
    return edges[upper < lower].reshape(-1)
