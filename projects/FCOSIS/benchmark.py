"""What `tools/benchmark.py coloring` measures of FCOSIS: objects that share passes of the segmentation by colour.

Shape shorthand: N images, M objects, C channels, H, W size of the network's input.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fcosis.attention import Groups, attention_maps
from fcosis.coloring import color_boxes, group_numbers
from fcosis.segmentation import SegmentationHead, shrink
from segzoo.errors import TrainingError
from segzoo.evaluation.timing import Comparison, compare_times
from segzoo.geometry.soft_masks import MASK_STRIDE
from segzoo.modeling.fcos.locations import Locations, compute_locations

# The paper's head; the input is small, so that thirty passes of a CPU end.
CHANNELS, LEVELS, INPUT_SIZE = 256, 3, (320, 512)
STRIDES = (8, 16, 32, 64, 128)
# Half of a box's longer side up to which its attention is made on each level but the last.
SIZES_OF_INTEREST = [64.0, 128.0, 256.0, 512.0]
OBJECTS = (7, 30)
# Sides of the boxes, log-uniform, in shares of the input's shorter side: 1.8 colours on average for 7, 3.7 for 30.
SIDES = (0.02, 0.5)
BUDGET_MB = 4096.0
TOLERANCE = 1e-5


def random_boxes(count: int, size: tuple[int, int], seed: int = 0) -> Tensor:
    """(M, 4) xyxy px of objects as pictures have them: most of them small, anywhere in an input of `size` (H, W)."""
    generator = torch.Generator().manual_seed(seed)
    low, high = (math.log(share * min(size)) for share in SIDES)
    sides = torch.empty(count, 2).uniform_(low, high, generator=generator).exp()
    corners = torch.rand(count, 2, generator=generator) * (torch.tensor([size[1], size[0]]) - sides)
    return torch.cat((corners, corners + sides), dim=1)


class Picture:
    """One image's features and objects, and a head with random weights."""

    def __init__(self, count: int, size: tuple[int, int], channels: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(1)
        self.size, self.boxes = size, random_boxes(count, size).to(device)
        maps = [(size[0] // stride, size[1] // stride) for stride in (4, 8, 16)]
        self.features = [torch.randn(1, channels, *shape, generator=generator).to(device) for shape in maps]
        levels = [(-(-size[0] // stride), -(-size[1] // stride)) for stride in STRIDES]
        self.locations: Locations = compute_locations(levels, STRIDES, device)
        self.coarse = torch.rand(1, len(self.locations.points_px), generator=generator).to(device)
        owners = torch.randint(count, (self.coarse.shape[1],), generator=generator)
        self.is_own = (owners == torch.arange(count)[:, None]).to(device)
        half = (self.boxes[:, 2:] - self.boxes[:, :2]).amax(dim=1) / 2
        self.levels = torch.bucketize(half, half.new_tensor(SIZES_OF_INTEREST))
        self.zero = self.levels.new_zeros(1)
        torch.manual_seed(0)
        self.head = SegmentationHead(channels=channels, hidden=channels, num_levels=LEVELS).to(device).eval()

    def segment(self, groups: Tensor, num_groups: int, budget_mb: float = BUDGET_MB) -> Tensor:
        """(G, h, w) logits of the objects' (M,) groups."""
        objects = Groups(self.boxes, self.levels, torch.zeros_like(groups), groups, num_groups)
        attention = attention_maps(
            *(self.coarse, self.is_own, objects, self.locations),
            lam=self.coarse.new_ones(()),
            mu=self.coarse.new_ones(()),
            map_size=(self.size[0] // MASK_STRIDE, self.size[1] // MASK_STRIDE),
        )
        images = torch.zeros(num_groups, dtype=torch.int64, device=groups.device)
        return self.head(self.features, shrink(attention, LEVELS), images, budget_mb)

    def by_color(self, budget_mb: float = BUDGET_MB) -> Tensor:
        """Ours: colours, and all groups as one batch."""
        coloring = color_boxes(self.boxes, [len(self.boxes)])
        groups, group_images = group_numbers(coloring, [len(self.boxes)])
        return self.segment(groups, len(group_images), budget_mb)

    def one_by_one(self) -> list[Tensor]:
        """The oracle: a forward of the segmentation for every object."""
        logits = []
        for index in range(len(self.boxes)):
            objects = Groups(
                *(self.boxes[index : index + 1], self.levels[index : index + 1], self.zero, self.zero), num_groups=1
            )
            attention = attention_maps(
                *(self.coarse, self.is_own[index : index + 1], objects, self.locations),
                lam=self.coarse.new_ones(()),
                mu=self.coarse.new_ones(()),
                map_size=(self.size[0] // MASK_STRIDE, self.size[1] // MASK_STRIDE),
            )
            logits.append(self.head(self.features, shrink(attention, LEVELS), self.zero, BUDGET_MB)[0])
        return logits


def benchmark_coloring(
    repeats: int,
    device: torch.device,
    counts: Sequence[int] = OBJECTS,
    size: tuple[int, int] = INPUT_SIZE,
    channels: int = CHANNELS,
) -> Iterator[Comparison]:
    """Colouring, attention and segmentation of all objects, beside attention and segmentation of one after the other.

    Raises:
        TrainingError: the batch of all groups differs from one forward a group by more than 1e-5.
    """
    for count in counts:
        picture = Picture(count, size, channels, device)
        with torch.no_grad():
            together, apart = picture.by_color(), picture.by_color(budget_mb=1e-6)
            difference = float((together - apart).abs().max())
            if not difference <= TOLERANCE * max(1.0, float(apart.abs().max())):
                raise TrainingError(f"groups in one batch differ from one forward a group by {difference:.1e}")
            title = f"{count} objects in {len(together)} colours, {size[0]}x{size[1]}, {channels} channels"
            row = compare_times(title, picture.by_color, picture.one_by_one, repeats=repeats, device=device)
        yield row


# What `tools/benchmark.py` offers: name -> function of (repeats, device).
BENCHMARKS = {"coloring": benchmark_coloring}
