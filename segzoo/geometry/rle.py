"""Masks held as COCO's run lengths (RLE): a hundred full-size masks in kilobytes.

Shape shorthand:
    D: detections, H, W: size of the image in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask

from segzoo.geometry.edges import encode_columns, encode_edges, run_lengths

__all__ = [
    "RLEMasks",
    "encode_columns",
    "encode_edges",
    "encode_in_chunks",
    "encode_masks",
    "run_lengths",
]

# Bytes a pixel of a mask takes while it is encoded: the bool itself and its column-major copy.
ENCODING_BYTES_PER_PIXEL = 2


class RLEMasks:
    """Masks of one image as compressed COCO run lengths; a field for Detectron2's Instances and its Visualizer.

    Args:
        rles: D dicts {"size": [H, W], "counts": bytes} as pycocotools makes them.
        size: (H, W), known also when there is no mask.

    Raises:
        ValueError: an RLE has another size.
    """

    def __init__(self, rles: Sequence[dict], size: tuple[int, int]) -> None:
        self.rles = list(rles)
        self.image_size = (int(size[0]), int(size[1]))
        for rle in self.rles:
            if tuple(rle["size"]) != self.image_size:
                raise ValueError(f"an RLE of size {tuple(rle['size'])} among masks of size {self.image_size}")

    def __len__(self) -> int:
        return len(self.rles)

    def __repr__(self) -> str:
        return f"RLEMasks(num_masks={len(self)}, image_size={self.image_size})"

    def __getitem__(self, item: int | slice | torch.Tensor | np.ndarray | list) -> RLEMasks:
        """The chosen masks; a single index gives RLEMasks of length 1, as Detectron2's BitMasks do."""
        if isinstance(item, slice):
            return RLEMasks(self.rles[item], self.image_size)
        index = np.asarray(item.cpu() if isinstance(item, torch.Tensor) else item)
        if index.dtype == bool and index.shape != (len(self),):
            raise IndexError(f"a bool index of shape {index.shape} for {len(self)} masks")
        chosen = np.flatnonzero(index) if index.dtype == bool else index.reshape(-1).astype(np.int64)
        return RLEMasks([self.rles[position] for position in chosen], self.image_size)

    def to(self, *args: Any, **kwargs: Any) -> RLEMasks:
        """Itself: run lengths live on the CPU whatever the device of the other fields."""
        return self

    def to_tensor(self) -> torch.Tensor:
        """All masks as one bool tensor (D, H, W) on the CPU."""
        return torch.from_numpy(np.asarray(self))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All masks as one bool array (D, H, W), C-contiguous (OpenCV 5 refuses pycocotools' column-major order)."""
        if copy is False:
            raise ValueError("run lengths cannot become an array without a copy")
        masks = np.zeros((len(self), *self.image_size), dtype=bool)
        # One by one, so that no second full-size stack is held beside the result.
        for mask, rle in zip(masks, self.rles, strict=True):
            mask[...] = coco_mask.decode(rle)
        return masks if dtype is None else masks.astype(dtype, copy=False)

    def area(self) -> torch.Tensor:
        """Pixels of each mask, int64 (D,)."""
        # One by one: with numpy 2, pycocotools' area raises OverflowError for more than 255 masks at once.
        areas = [coco_mask.area(rle) for rle in self.rles]
        return torch.as_tensor(np.asarray(areas, dtype=np.int64))

    def boxes(self) -> torch.Tensor:
        """Box of each mask, float32 (D, 4) xyxy px: (x_min, y_min, x_max + 1, y_max + 1); zeros for an empty one."""
        if not self.rles:
            return torch.zeros(0, 4)
        boxes = torch.as_tensor(np.asarray(coco_mask.toBbox(self.rles), dtype=np.float32))
        boxes[:, 2:] += boxes[:, :2]
        boxes[self.area() == 0] = 0.0
        return boxes

    @staticmethod
    def cat(masks: Sequence[RLEMasks]) -> RLEMasks:
        """Joins masks of the same image size, in order. Raises ValueError when there is none or sizes differ."""
        if not masks:
            raise ValueError("nothing to join: the image size would be unknown")
        return RLEMasks([rle for part in masks for rle in part.rles], masks[0].image_size)


def encode_masks(masks: torch.Tensor | np.ndarray) -> list[dict]:
    """Run lengths of full-size masks (D, H, W) bool, the same bytes as pycocotools' encode.

    Holds one column-major copy of `masks` meanwhile; see `encode_in_chunks` for bounded memory.
    """
    if isinstance(masks, torch.Tensor):
        # Transposed where the masks live: on a GPU that costs nothing beside the copy to the host.
        columns = masks.transpose(1, 2).contiguous().cpu().numpy()
    else:
        columns = np.ascontiguousarray(np.asarray(masks).transpose(0, 2, 1))
    if columns.dtype != bool:
        columns = columns.astype(bool)
    # (D, W, H) in C order read backwards is the (H, W, D) in Fortran order that pycocotools wants.
    return coco_mask.encode(columns.view(np.uint8).transpose(2, 1, 0))


def encode_in_chunks(
    make_masks: Callable[[slice], torch.Tensor | np.ndarray],
    count: int,
    image_size: tuple[int, int],
    budget_mb: float,
) -> RLEMasks:
    """Makes `count` masks a chunk at a time and keeps only their run lengths.

    Args:
        make_masks: gives the masks (d, H, W) bool of a slice of the detections.
        count: number D of detections.
        image_size: (H, W) of the masks.
        budget_mb: MiB of full-size masks (with the encoder's copy) held at once; one mask is always allowed.
    """
    bytes_per_mask = max(1, image_size[0] * image_size[1] * ENCODING_BYTES_PER_PIXEL)
    step = max(1, int(budget_mb * 2**20) // bytes_per_mask)
    rles: list[dict] = []
    for start in range(0, count, step):
        rles.extend(encode_masks(make_masks(slice(start, min(start + step, count)))))
    return RLEMasks(rles, image_size)
