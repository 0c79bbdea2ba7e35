"""CenterNet's targets for a whole batch, on the device (section 3.1; Zhou et al., "Objects as Points", 2019).

Boxes and everything made of them count cells of the maps: pixels / 4, so that cell (column x, row y) reaches from x to
x + 1. As in CenterNet's program boxes end at the last cell's left or upper border, and a centre belongs to the cell
that its coordinates are cut off to.

What is no object for the centre part:

* a box without a width or a height once it is clipped. Every mask has a box of at least a pixel, a quarter of a cell,
  so that this only meets objects within the last cell of the batch's maps, which are as large as its largest image's;
* objects of an image beyond the first MAX_OBJECTS, in the order of the sample.

Both are counted. An object of one pixel has a Gaussian of radius 0, its peak alone. Two objects of one class with their
centres in one cell share their peak, which counts once; both have an offset, a size and a mask there, and the loss
weighs them alike.

Shape shorthand: N images, M ground truths, P objects, K classes, H, W size of the maps, T pixels of Gaussians.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from detectron2.structures import Instances
from torch import Tensor

from centermask.maps import MAP_STRIDE
from segzoo.geometry.runs import bounded_blocks, expand_ranges

# Least IoU with the object of a box of the same size whose corners move by up to the radius.
MIN_OVERLAP = 0.7
# Pixels of Gaussians that are worked on at once; bounds the memory of their coordinates and values to some 100 MB.
MAX_GAUSSIAN_PIXELS = 2_000_000


class Objects(NamedTuple):
    """The P objects of a batch, by image.

    images: (P,) number of the image. classes: (P,). boxes: (P, 4) xyxy, clipped. cells: (P, 2) column and row of the
    centre's cell. order: (P,) place among the M ground truths of the batch.
    """

    images: Tensor
    classes: Tensor
    boxes: Tensor
    cells: Tensor
    order: Tensor

    @property
    def sizes(self) -> Tensor:
        """(P, 2) width and height."""
        return self.boxes[:, 2:] - self.boxes[:, :2]

    @property
    def offsets(self) -> Tensor:
        """(P, 2) x and y of the centre in its cell, 0..1."""
        return box_centers(self.boxes) - self.cells


class NotTrained(NamedTuple):
    """How many of a batch's ground truths are no objects: without extent, and beyond an image's limit."""

    flat: int
    surplus: int


def box_centers(boxes: Tensor) -> Tensor:
    """(P, 2) x and y of the middle of (P, 4) xyxy."""
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def collect_objects(
    gt_instances: Sequence[Instances], map_size: tuple[int, int], max_objects: int
) -> tuple[Objects, NotTrained]:
    """The objects that a batch's centre part is trained on, and how many ground truths are left out.

    Args:
        gt_instances: N times gt_boxes (xyxy px) and gt_classes, on the device.
        map_size: (H, W) of the batch's maps.
        max_objects: of an image.
    """
    boxes = torch.cat([instances.gt_boxes.tensor for instances in gt_instances]) / MAP_STRIDE
    classes = torch.cat([instances.gt_classes for instances in gt_instances])
    images = image_numbers(gt_instances, boxes.device)
    last = boxes.new_tensor((map_size[1] - 1, map_size[0] - 1)).repeat(2)
    boxes = boxes.clamp(min=0).minimum(last)
    is_solid = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    # Number of solid boxes before each one, less those of the images before its own.
    num_solid = images.new_zeros(len(gt_instances)).index_add(0, images, is_solid.long())
    rank = is_solid.cumsum(0) - 1 - (num_solid.cumsum(0) - num_solid)[images]
    order = (is_solid & (rank < max_objects)).nonzero().squeeze(1)
    num_left = len(boxes) - len(order)
    # A second wait for the device only where something was left out.
    flat = len(boxes) - int(num_solid.sum()) if num_left else 0
    boxes = boxes[order]
    objects = Objects(images[order], classes[order], boxes, box_centers(boxes).long(), order)
    return objects, NotTrained(flat, num_left - flat)


def image_numbers(gt_instances: Sequence[Instances], device: torch.device) -> Tensor:
    """(M,) the number of every ground truth's image."""
    counts = torch.tensor([len(instances) for instances in gt_instances], device=device)
    num_objects = sum(len(instances) for instances in gt_instances)
    return torch.arange(len(gt_instances), device=device).repeat_interleave(counts, output_size=num_objects)


def gaussian_radius(sizes: Tensor, min_overlap: float = MIN_OVERLAP) -> Tensor:
    """(P,) how far both corners of a box may move before its IoU with the object falls below `min_overlap`, cells.

    The smallest solution of three equations: both corners move in one direction, inwards, and outwards. CenterNet's
    program, and CornerNet's before it, divides each by 2 where the solution a r^2 - b r + c = 0 has 2 a, and takes the
    larger root. Released weights are trained with that radius, so it stays.

    Args:
        sizes: (P, 2) sides, in fp64: a radius is cut off to whole cells.
    """
    total, area = sizes.sum(dim=1), sizes.prod(dim=1)
    shift = total, area * (1 - min_overlap) / (1 + min_overlap)
    inwards = 2 * total, 4 * area * (1 - min_overlap)
    outwards = -2 * min_overlap * total, 4 * min_overlap * (min_overlap - 1) * area
    roots = [(b + (b.square() - 4 * ac).sqrt()) / 2 for b, ac in (shift, inwards, outwards)]
    return torch.stack(roots).amin(dim=0)


def peak_radii(sizes: Tensor) -> Tensor:
    """(P,) int64 radii in whole cells of the Gaussians of (P, 2) sizes."""
    return gaussian_radius(sizes.double().ceil()).long().clamp(min=0)


def heatmap_targets(objects: Objects, num_images: int, num_classes: int, map_size: tuple[int, int]) -> Tensor:
    """(N, K, H, W) a Gaussian around the centre of every object, 1 there; where several meet, the largest value.

    A Gaussian of radius r has sigma (2 r + 1) / 6 and ends r cells from its centre, on both axes.

    Args:
        objects: P objects.
        num_images, num_classes, map_size: N, K, (H, W).
    """
    height, width = map_size
    heatmap = objects.boxes.new_zeros(num_images * num_classes * height * width)
    radii = peak_radii(objects.sizes)
    maps, spread = objects.images * num_classes + objects.classes, 2 * ((2 * radii + 1) / 6).square()
    for owner, x, y in _square_cells(objects.cells, radii, map_size):
        away = (x - objects.cells[owner, 0]).square() + (y - objects.cells[owner, 1]).square()
        place = (maps[owner] * height + y) * width + x
        heatmap.scatter_reduce_(0, place, (-away / spread[owner]).exp(), "amax")
    return heatmap.view(num_images, num_classes, height, width)


def _square_cells(cells: Tensor, radii: Tensor, map_size: tuple[int, int]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Blocks of the cells of the squares around (P, 2) cells, cut at the map's border: (T,) number, x, y."""
    limit = cells.new_tensor((map_size[1], map_size[0]))
    first, end = (cells - radii[:, None]).clamp(min=0), (cells + radii[:, None] + 1).minimum(limit)
    width, height = (end - first).unbind(dim=1)
    owner, row = expand_ranges(first[:, 1], height)
    row_width, row_left = width[owner], first[owner, 0]
    for block in bounded_blocks(row_width, MAX_GAUSSIAN_PIXELS):
        line, x = expand_ranges(row_left[block], row_width[block])
        yield owner[block][line], x, row[block][line]
