"""What `tools/benchmark.py` measures of CenterMask: shapes at object centres beside the map of all shapes.

Shape shorthand: N images, C channels, P objects, S side of a shape, H, W size of the stride-4 map.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from centermask.shape import ShapeHead
from segzoo.errors import TrainingError
from segzoo.evaluation.timing import Comparison, compare_memory, compare_times

# DLA-34's feature for eight images of 512 x 512 px, and the paper's head.
BATCH, CHANNELS, HIDDEN, SHAPE_SIZE, MAP_SIZE = 8, 64, 256, 32, (128, 128)
# Some seven as COCO has, and as many as CenterNet trains on at most.
OBJECTS_PER_IMAGE = (7, 128)
TOLERANCE = 1e-5


def make_cells(num_images: int, num_objects: int, size: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """(P,) images and (P, 2) cells of objects anywhere on maps of `size` (H, W)."""
    generator = torch.Generator().manual_seed(0)
    cells = [torch.randint(limit, (num_images * num_objects,), generator=generator) for limit in reversed(size)]
    images = torch.arange(num_images).repeat_interleave(num_objects)
    return images.to(device), torch.stack(cells, dim=1).to(device)


def dense_shapes(head: ShapeHead, features: Tensor, images: Tensor, cells: Tensor) -> Tensor:
    """The oracle: the map of all shapes, of which those at the cells are taken."""
    chosen: Tensor = head.dense(features)[images, :, cells[:, 1], cells[:, 0]]
    return chosen.view(-1, head.shape_size, head.shape_size)


def benchmark_shape(
    repeats: int,
    device: torch.device,
    counts: Sequence[int] = OBJECTS_PER_IMAGE,
    batch: int = BATCH,
    size: tuple[int, int] = MAP_SIZE,
) -> Iterator[Comparison]:
    """Time and memory of a batch's shapes at the centres of its objects and of the map of all shapes.

    Raises:
        TrainingError: the two differ by more than 1e-5.
    """
    torch.manual_seed(0)
    head = ShapeHead(CHANNELS, SHAPE_SIZE, HIDDEN).to(device)
    features = torch.randn(batch, CHANNELS, *size, device=device)
    for count in counts:
        places = make_cells(batch, count, size, device)
        with torch.no_grad():
            ours = functools.partial(head, features, *places)
            oracle = functools.partial(dense_shapes, head, features, *places)
            difference = float((ours() - oracle()).abs().max())
            if not difference <= TOLERANCE:
                raise TrainingError(f"shapes at the centres differ from the dense map's by {difference:.1e}")
            title = f"shapes of {batch} x {count} objects, {size[0]}x{size[1]}x{CHANNELS}, equal to {difference:.0e}"
            row = compare_times(title, ours, oracle, repeats=repeats, device=device)
            row = row if device.type == "cuda" else compare_memory(row, ours, oracle)
        yield row


# What `tools/benchmark.py` offers: name -> function of (repeats, device).
BENCHMARKS = {"shape": benchmark_shape}
