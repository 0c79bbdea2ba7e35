"""Pasting against Detectron2's, and the bound on what it samples at once."""

from __future__ import annotations

import pytest
import torch
from detectron2.layers.mask_ops import paste_masks_in_image

import segzoo.geometry.paste as paste_module
from segzoo.geometry.paste import SAMPLING_BYTES_PER_PIXEL, paste_as_rle, paste_masks

SIZE = (37, 53)


def random_case(count: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    corners = torch.rand(count, 2, 2) * torch.tensor([70.0, 50.0]) - 8
    boxes = torch.cat([corners.amin(1), corners.amax(1) + 0.3], dim=1)
    return torch.rand(count, 28, 28), boxes


@pytest.mark.parametrize("budget_mb", [64.0, 1e-3, 1e-9])
def test_paste_masks_equals_detectron2_whatever_the_budget(budget_mb: float) -> None:
    probabilities, boxes = random_case()
    expected = paste_masks_in_image(probabilities, boxes, SIZE)
    assert expected.any()
    assert torch.equal(paste_masks(probabilities, boxes, SIZE, budget_mb=budget_mb), expected)


def test_paste_masks_samples_no_more_than_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    sampled = []
    original = paste_module._sample

    def counting(probability: torch.Tensor, box: torch.Tensor, region: tuple[int, int, int, int]) -> torch.Tensor:
        top, bottom, left, right = region
        sampled.append((bottom - top) * (right - left))
        return original(probability, box, region)

    monkeypatch.setattr(paste_module, "_sample", counting)
    budget_mb = 5 * SIZE[1] * SAMPLING_BYTES_PER_PIXEL / 2**20
    whole_image = torch.tensor([[0.0, 0.0, SIZE[1], SIZE[0]]])
    masks = paste_masks(torch.ones(1, 28, 28), whole_image, SIZE, budget_mb=budget_mb)
    assert max(sampled) * SAMPLING_BYTES_PER_PIXEL <= budget_mb * 2**20
    assert sum(sampled) == masks[0].numel()
    assert masks.all()


def test_paste_masks_none_and_outside_of_the_image() -> None:
    assert paste_masks(torch.zeros(0, 28, 28), torch.zeros(0, 4), SIZE).shape == (0, *SIZE)
    outside = torch.tensor([[-50.0, -50.0, -20.0, -20.0], [90.0, 90.0, 99.0, 99.0]])
    assert not paste_masks(torch.ones(2, 28, 28), outside, SIZE).any()


@pytest.mark.parametrize("budget_mb", [64.0, 1e-6])
def test_paste_as_rle_equals_paste_masks_whatever_the_budget(budget_mb: float) -> None:
    probabilities, corners = torch.rand(5, 28, 28), torch.rand(5, 2) * 20
    boxes = torch.cat((corners, corners + torch.rand(5, 2) * 20 + 1), dim=1)
    found = paste_as_rle(probabilities, boxes, SIZE, budget_mb=budget_mb)
    assert torch.equal(found.to_tensor(), paste_masks(probabilities, boxes, SIZE))
    assert found.area().sum() > 0
    assert paste_as_rle(probabilities[:0], boxes[:0], SIZE, budget_mb=budget_mb).image_size == SIZE
