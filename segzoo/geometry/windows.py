"""Masks on a CPU, each cut to its own pixels: the counterpart of runs.py there.

A device wants all masks in one call. On a CPU a call of torch costs more than the work on one small mask, so that numpy
and OpenCV on one window after the other are several times faster.

Shape shorthand: M masks, H, W.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

# Pixels in an int64, and the most such words of pixels that all are 1 whose sum is below 2 ** 64.
WORD = torch.int64.itemsize
MAX_SUMMED_WORDS = 255


class Window(NamedTuple):
    """A rectangle of one mask.

    mask: index of the mask. left, top: column and row of the first pixel. pixels: (h, w) uint8, 0 or 1.
    """

    mask: int
    left: int
    top: int
    pixels: np.ndarray


def tight_windows(masks: Tensor) -> Iterator[Window]:
    """The masks that have a pixel, in their order, cut to their bounding boxes (views).

    Args:
        masks: (M, H, W) bool on the CPU.
    """
    if 0 in masks.shape:
        return
    pixels = masks.numpy()
    is_row = _rows_with_pixels(masks)
    tops, bottoms = is_row.argmax(axis=1), is_row[:, ::-1].argmax(axis=1)
    for index in np.flatnonzero(np.logical_or.reduce(is_row, axis=1)).tolist():
        band = pixels[index, tops[index] : pixels.shape[1] - bottoms[index]]
        is_column = np.logical_or.reduce(band, axis=0)
        left, right = int(is_column.argmax()), len(is_column) - int(is_column[::-1].argmax())
        yield Window(index, left, int(tops[index]), band[:, left:right].view(np.uint8))


def _rows_with_pixels(masks: Tensor) -> np.ndarray:
    """(M, H) bool; the only pass over all pixels, eight at a time where the rows allow it."""
    is_in_words = masks.is_contiguous() and masks.shape[2] % WORD == 0 and masks.storage_offset() % WORD == 0
    if is_in_words:
        # Flat, as sides of length 1 may have any stride.
        words = masks.flatten().view(torch.int64).view(*masks.shape[:2], -1)
        # Pixels are bytes of 0 and 1, so that only a clear row adds up to 0, unless it is so long that the sum may come
        # back to 0; the maximum takes half as long again.
        total = words.sum(dim=2) if words.shape[2] <= MAX_SUMMED_WORDS else words.amax(dim=2)
        return total.numpy().astype(bool)
    return np.logical_or.reduce(masks.numpy(), axis=2)


def batch_windows(masks: Sequence[Tensor]) -> list[Window]:
    """`tight_windows` of all images' masks, (Mi, H, W) each, numbered through the batch."""
    starts = itertools.accumulate(map(len, masks), initial=0)
    return [
        window._replace(mask=start + window.mask)
        for start, of_image in zip(starts, masks)
        for window in tight_windows(of_image)
    ]


class Part(NamedTuple):
    """Pixels of one mask in a frame of clear ones.

    mask: index of the mask. left, top: column and row of the frame's first pixel (-1 at the image's border).
    frame: (h + 2, w + 2) uint8, 0 or 1. border: (S, 2) int32 column and row in the frame of every pixel that has one
    of its four neighbours outside, in any order, perhaps more than once.
    """

    mask: int
    left: int
    top: int
    frame: np.ndarray
    border: np.ndarray


def largest_part(window: Window) -> Part:
    """The part of a mask that encloses the most pixels (the first such part on ties), its holes filled.

    Parts are 8-connected; see `segzoo.geometry.components.largest_parts`, which does the same for all masks at once.
    """
    contours, _ = cv2.findContours(window.pixels, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if len(contours) == 1:
        return _frame(window, contours[0])
    contours, _ = cv2.findContours(window.pixels, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    largest, largest_size = None, 0
    # OpenCV lists contours from the last to the first; a contour begins with its first pixel.
    for contour in sorted(contours, key=lambda contour: contour[0, 0, ::-1].tolist()):
        part = _fill(window, contour)
        size = int(np.count_nonzero(part.frame))
        if size > largest_size:
            largest, largest_size = part, size
    assert largest is not None
    return largest


def whole_part(window: Window) -> Part:
    """All pixels of a mask, as they are."""
    contours, _ = cv2.findContours(window.pixels, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    return _frame(window, np.concatenate(contours))


def _frame(window: Window, border: np.ndarray) -> Part:
    height, width = window.pixels.shape
    frame = np.zeros((height + 2, width + 2), np.uint8)
    frame[1:-1, 1:-1] = window.pixels
    return Part(window.mask, window.left - 1, window.top - 1, frame, border[:, 0] + 1)


def _fill(window: Window, contour: np.ndarray) -> Part:
    left, top, width, height = cv2.boundingRect(contour)
    frame = np.zeros((height + 2, width + 2), np.uint8)
    cv2.drawContours(frame, [contour], -1, 1, cv2.FILLED, offset=(1 - left, 1 - top))
    border = contour[:, 0] + (1 - left, 1 - top)
    return Part(window.mask, window.left + left - 1, window.top + top - 1, frame, border)
