"""Colour groups: objects whose boxes do not overlap share one pass of the segmentation (section 3.2).

Shape shorthand: N images, M objects of all images, G groups of all images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Coloring(NamedTuple):
    """Colours of a batch.

    colors: (M,) int64, from 0 on in every image. num_colors: of each of the N images.
    """

    colors: Tensor
    num_colors: list[int]


@torch.no_grad()
def color_boxes(boxes: Tensor, counts: Sequence[int]) -> Coloring:
    """Largest-First colouring of the graph whose edges are overlaps of positive area.

    Objects take the smallest free colour, those with more overlaps first, of equally many the first. The overlaps are
    found on the device; the rest, at most some hundred objects an image one after the other, on the host.

    Args:
        boxes: (M, 4) xyxy of all images. Boxes that touch, or have no area, do not overlap.
        counts: of each of the N images, M in all.
    """
    overlaps = [_overlaps(own).flatten() for own in boxes.split(list(counts))]
    # One transfer for the batch.
    flags = torch.cat(overlaps).cpu().numpy() if overlaps else np.zeros(0, bool)
    colors, num_colors, start = [], [], 0
    for count in counts:
        own = color_graph(flags[start : start + count * count].reshape(count, count))
        colors.append(own)
        num_colors.append(int(own.max()) + 1 if count else 0)
        start += count * count
    joined = np.concatenate(colors) if colors else np.zeros(0, np.int64)
    return Coloring(torch.from_numpy(joined).to(boxes.device), num_colors)


def _overlaps(boxes: Tensor) -> Tensor:
    """(m, m) bool, False on the diagonal."""
    low = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    return (high > low).all(dim=2).fill_diagonal_(False)


def color_graph(adjacency: np.ndarray) -> np.ndarray:
    """(m,) int64 Largest-First colours of a symmetric (m, m) bool matrix without loops."""
    count = len(adjacency)
    colors = np.full(count, count, np.int64)
    # A vertex without a colour yet takes the place behind all colours, where nobody looks.
    is_taken = np.zeros(count + 1, bool)
    for vertex in np.argsort(-adjacency.sum(axis=1), kind="stable"):
        is_taken[:] = False
        is_taken[colors[adjacency[vertex]]] = True
        colors[vertex] = is_taken[:count].argmin()
    return colors


def group_numbers(coloring: Coloring, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Groups numbered over the batch: image by image, colour by colour.

    Args:
        coloring: of M objects.
        counts: objects of each of the N images.

    Returns:
        (M,) int64 group of each object, and (G,) int64 image of each group.
    """
    device = coloring.colors.device
    num_colors = torch.tensor(coloring.num_colors, dtype=torch.int64)
    first = (num_colors.cumsum(0) - num_colors).repeat_interleave(torch.tensor(list(counts), dtype=torch.int64))
    group_images = torch.arange(len(num_colors)).repeat_interleave(num_colors)
    return coloring.colors + first.to(device), group_images.to(device)
