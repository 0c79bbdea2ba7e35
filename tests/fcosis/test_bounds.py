"""What FCOSIS's dense parts hold at once, and attention of many objects, of twins and between the boxes of a group."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fcosis.attention import Groups, attention_maps, group_locations
from fcosis.losses import mask_loss
from fcosis.masks import cut_masks
from fcosis.objects import all_rivals
from segzoo.evaluation.timing import peak_memory_mb
from tests.fcosis.pyramids import pyramid

SIZE = (512, 512)
MAP_SIZE = (128, 128)


def grid_of_boxes(side: int) -> Tensor:
    """(side ** 2, 4) boxes with a gap between any two, in px of `SIZE`."""
    step = SIZE[0] / side
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    corner = torch.stack((x, y), dim=-1).view(-1, 2) * step
    return torch.cat((corner + step / 4, corner + step * 3 / 4), dim=1)


def one_group(boxes: Tensor, level: int = 0) -> Groups:
    zeros = torch.zeros(len(boxes), dtype=torch.int64)
    return Groups(boxes, zeros + level, zeros, zeros, 1)


def perfect_maps(boxes: Tensor) -> tuple[Any, Tensor, Tensor]:
    """The locations, a coarse segmentation of 1 everywhere, and each location as that of the nearest box."""
    locations = pyramid(SIZE)
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    counts = [len(boxes)]
    is_own = group_locations(locations.points_px[None], centers, **all_rivals(counts, boxes.device), counts=counts)
    return locations, torch.ones(1, len(locations.points_px), requires_grad=True), is_own


@pytest.mark.parametrize("level", [0, 1])
def test_attention_between_the_boxes_of_a_group_is_0(level: int) -> None:
    boxes = grid_of_boxes(4)
    locations, coarse, is_own = perfect_maps(boxes)
    lam, mu = torch.tensor(1.5), torch.tensor(0.5)
    objects = one_group(boxes, level)
    found = attention_maps(coarse, is_own, objects, locations, lam=lam, mu=mu, map_size=MAP_SIZE)[0, 0]
    is_inside = torch.zeros(MAP_SIZE, dtype=torch.bool)
    for x0, y0, x1, y1 in (boxes / 4).long().tolist():
        is_inside[y0:y1, x0:x1] = True
    assert int(is_inside.sum()) == MAP_SIZE[0] * MAP_SIZE[1] // 4
    # Each box owns all cells around it.
    torch.testing.assert_close(found, torch.where(is_inside, 1.5, 0.0))


def test_twins_of_different_colors_have_maps_of_their_own() -> None:
    """Locations are equally near to both, and so belong to both."""
    boxes = torch.tensor([[64.0, 64, 256, 320]]).repeat(2, 1)
    locations, coarse, is_own = perfect_maps(boxes)
    zeros = torch.zeros(2, dtype=torch.int64)
    twins = Groups(boxes, zeros, zeros, torch.arange(2), 2)
    lam, mu = torch.tensor(1.5), torch.tensor(0.5)
    found = attention_maps(coarse, is_own, twins, locations, lam=lam, mu=mu, map_size=MAP_SIZE)[:, 0]
    inside = (slice(16, 80), slice(16, 64))
    for attention in found:
        assert (attention[inside] == 1.5).all()
        assert int((attention != 0).sum()) == 64 * 48


def test_attention_of_300_objects_does_not_depend_on_blocks_and_needs_no_map_an_object() -> None:
    boxes = grid_of_boxes(18)[:300]
    locations, coarse, is_own = perfect_maps(boxes)
    coarse = torch.rand(coarse.shape, requires_grad=True)
    lam, mu = torch.tensor(1.5, requires_grad=True), torch.tensor(0.5, requires_grad=True)

    def step(max_pairs: int) -> list[Tensor]:
        found = attention_maps(
            *(coarse, is_own, one_group(boxes), locations), lam=lam, mu=mu, map_size=MAP_SIZE, max_pairs=max_pairs
        )
        return [found.detach(), *torch.autograd.grad(found.square().sum(), (coarse, lam, mu))]

    for whole, parts in zip(step(10**9), step(300), strict=True):
        assert whole.any()
        torch.testing.assert_close(parts, whole)
    one_map_an_object_mb = len(boxes) * MAP_SIZE[0] * MAP_SIZE[1] * 4 / 2**20
    assert peak_memory_mb(lambda: step(10**9)) < one_map_an_object_mb / 4


def test_attention_memory_is_bounded_whatever_the_objects() -> None:
    boxes = torch.tensor([[0.0, 0, 512, 512]]).repeat(40, 1)
    locations, coarse, is_own = perfect_maps(boxes)
    zeros = torch.zeros(40, dtype=torch.int64)
    # One color for all, which no coloring would give: the maps themselves do not count then.
    objects = Groups(boxes, zeros, zeros, zeros, 1)
    lam, mu = torch.ones(()), torch.ones(())

    def step(max_pairs: int) -> None:
        attention_maps(
            *(coarse, is_own, objects, locations), lam=lam, mu=mu, map_size=MAP_SIZE, max_pairs=max_pairs
        ).sum().backward()

    assert peak_memory_mb(lambda: step(20_000)) < peak_memory_mb(lambda: step(10**9)) / 5


def test_grouping_memory_is_bounded_whatever_the_objects() -> None:
    points, centers = torch.rand(1, 5000, 2) * 500, torch.rand(300, 2) * 500

    def group(max_pairs: int) -> None:
        group_locations(points, centers, **all_rivals([300], centers.device), counts=[300], max_pairs=max_pairs)

    assert peak_memory_mb(lambda: group(20_000)) < peak_memory_mb(lambda: group(10**9)) / 5


def test_mask_loss_memory_is_bounded_whatever_the_objects() -> None:
    logits, channels = torch.randn(1, *MAP_SIZE, requires_grad=True), torch.zeros(40, dtype=torch.int64)
    boxes, masks = torch.tensor([[0.0, 0, 128, 128]]).repeat(40, 1), torch.rand(40, *MAP_SIZE)

    def step(max_pairs: int) -> None:
        mask_loss(logits, channels, boxes, masks, max_pairs=max_pairs).sum().backward()

    assert peak_memory_mb(lambda: step(20_000)) < peak_memory_mb(lambda: step(10**9)) / 5


def test_masks_of_a_12_megapixel_image_stay_within_the_budget() -> None:
    logits, channels = torch.randn(1, *MAP_SIZE), torch.zeros(3, dtype=torch.int64)
    boxes = torch.tensor([[10.0, 20, 480, 500]]).repeat(3, 1)
    sizes: dict[str, Any] = {"input_size": SIZE, "output_size": (3000, 4000), "threshold": 0.5}
    peak = peak_memory_mb(lambda: cut_masks(logits, channels, boxes, **sizes, budget_mb=16.0))
    # Beside the budget the ends of the runs.
    assert peak < 24
