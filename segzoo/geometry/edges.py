"""Run lengths of masks from the places where they change, in numpy alone: exported models run without torch.

Shape shorthand:
    H, W: size of the image in pixels.
"""

from __future__ import annotations

import numpy as np
from pycocotools import mask as coco_mask


def encode_columns(columns: np.ndarray, left: int, image_size: tuple[int, int]) -> dict:
    """Compressed RLE of a mask of which only some columns are held.

    Args:
        columns: (H, w) bool or uint8, the columns left .. left + w - 1.
        left: number of the first column.
        image_size: (H, W) of the mask, empty elsewhere.
    """
    pixels = np.pad(columns.T.reshape(-1) != 0, 1)
    return encode_edges(np.flatnonzero(pixels[1:] != pixels[:-1]) + left * image_size[0], image_size)


def encode_edges(edges: np.ndarray, image_size: tuple[int, int]) -> dict:
    """Compressed RLE of a mask from the places where it changes.

    Args:
        edges: ascending numbers of pixels, counted down the columns: the first of a run, the first behind it, the
            first of the next one, ... A run that begins where another ends is joined to it.
        image_size: (H, W) of the mask.
    """
    height, width = image_size
    is_joint = edges[1:] == edges[:-1]
    if is_joint.any():
        edges = edges[~(np.append(is_joint, False) | np.insert(is_joint, 0, False))]
    lengths = np.diff(edges, prepend=0, append=height * width)
    if len(lengths) > 1 and lengths[-1] == 0:
        lengths = lengths[:-1]
    return coco_mask.frPyObjects({"size": [height, width], "counts": lengths.tolist()}, height, width)


def run_lengths(rle: dict) -> np.ndarray:
    """Lengths of the runs of a compressed RLE, int64, background first, down the columns.

    Reads COCO's text form itself, because pycocotools neither gives the lengths nor checks them.
    """
    counts = rle["counts"]
    text = np.frombuffer(counts.encode("ascii") if isinstance(counts, str) else counts, dtype=np.uint8)
    codes = text.astype(np.int64) - 48
    is_last = (codes & 0x20) == 0
    number = np.cumsum(is_last) - is_last
    starts = np.flatnonzero(np.concatenate([[True], is_last[:-1]])) if len(codes) else np.zeros(0, np.int64)
    digit = np.arange(len(codes)) - starts[number] if len(starts) else number
    # Seven digits of five bits hold every 32-bit length; longer ones are garbage and must not overflow.
    values = np.bincount(number, (codes & 0x1F) * 32.0 ** np.minimum(digit, 8)) if len(codes) else np.zeros(0)
    negative = is_last & ((codes & 0x10) != 0)
    values[number[negative]] -= 32.0 ** (np.minimum(digit[negative], 8) + 1)
    lengths = values.astype(np.int64)
    # From the fourth number on each is stored as its difference to the one two places before.
    for first in (1, 2):
        lengths[first::2] = np.cumsum(lengths[first::2])
    return lengths


def crop_rle(rle: dict, window: tuple[int, int, int, int]) -> dict:
    """What a window (x0, y0, x1, y1) px within the image shows of a mask, as compressed RLE of the window's size."""
    x0, y0, x1, y1 = window
    return encode_edges(_cropped_edges(rle, window), (y1 - y0, x1 - x0))


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
