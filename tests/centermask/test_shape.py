"""Shapes at cells are those of the dense map."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from centermask.shape import ShapeHead, gather_neighborhoods, kernel_matrix


def all_cells(num_images: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(P,) images and (P, 2) x and y of every cell, borders and corners among them, in the order of a map."""
    image, y, x = torch.meshgrid(torch.arange(num_images), torch.arange(height), torch.arange(width), indexing="ij")
    return image.flatten(), torch.stack((x.flatten(), y.flatten()), dim=1)


@pytest.mark.parametrize("size", [(5, 7), (1, 1), (1, 4), (3, 1)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_shapes_at_every_cell_equal_the_dense_map(size: tuple[int, int], memory_format: torch.memory_format) -> None:
    head = ShapeHead(6, shape_size=3, hidden_channels=10)
    features = torch.randn(2, 6, *size).to(memory_format=memory_format)
    found = head(features, *all_cells(2, *size))
    expected = head.dense(features).permute(0, 2, 3, 1).reshape(-1, 3, 3)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_gradients_equal_those_of_the_dense_map() -> None:
    head, features = ShapeHead(6, shape_size=3, hidden_channels=10), torch.randn(2, 6, 5, 7, requires_grad=True)
    images, cells = torch.tensor([0, 1, 1, 1]), torch.tensor([[0, 0], [6, 4], [3, 2], [3, 2]])
    weights = torch.randn(4, 9)
    (head(features, images, cells).flatten(1) * weights).sum().backward()
    found = [features.grad, *(parameter.grad for parameter in head.parameters())]
    features.grad = None
    head.zero_grad()
    (head.dense(features)[images, :, cells[:, 1], cells[:, 0]] * weights).sum().backward()
    for ours, dense in zip(found, [features.grad, *(p.grad for p in head.parameters())], strict=True):
        torch.testing.assert_close(ours, dense, rtol=1e-5, atol=1e-5)


def test_no_cells_give_no_shapes_and_every_parameter_a_gradient() -> None:
    head, features = ShapeHead(6, shape_size=3), torch.randn(2, 6, 5, 7, requires_grad=True)
    shapes = head(features, torch.zeros(0, dtype=torch.int64), torch.zeros(0, 2, dtype=torch.int64))
    assert shapes.shape == (0, 3, 3)
    shapes.sum().backward()
    for value in (features, *head.parameters()):
        assert value.grad is not None
        assert not value.grad.any()


def test_shapes_under_autocast_come_in_fp32_near_those_without() -> None:
    head, features = ShapeHead(6, shape_size=3), torch.randn(2, 6, 5, 7)
    cells = all_cells(2, 5, 7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = head(features, *cells)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, head(features, *cells), rtol=0.05, atol=0.05)


def test_checkpoints_hold_ordinary_convolutions() -> None:
    shapes = {name: tuple(value.shape) for name, value in ShapeHead(6, 4, 10).state_dict().items()}
    assert shapes == {
        "hidden.weight": (10, 6, 3, 3),
        "hidden.bias": (10,),
        "pred.weight": (16, 10, 1, 1),
        "pred.bias": (16,),
    }


def test_gathered_neighborhoods_times_the_kernel_equal_the_convolution() -> None:
    conv, features = nn.Conv2d(6, 4, 3, padding=1), torch.randn(2, 6, 5, 7)
    expected = conv(features).permute(0, 2, 3, 1).reshape(-1, 4)
    assert conv.bias is not None
    found = gather_neighborhoods(features, *all_cells(2, 5, 7)) @ kernel_matrix(conv).T + conv.bias
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
