"""Local shapes, evaluated at object centres only (section 3.2 of the paper).

The S^2 channels of a shape are wanted at a few hundred cells of a batch. Made everywhere they are CenterMask's largest
map by far: 512 MiB for eight maps of 128 x 128 cells. Here the neighbourhoods of the wanted cells are gathered, and the
convolutions become matrix products.

Shape shorthand: N images, C channels, O output channels, P cells, S side of a shape, H, W size of a feature map.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

KERNEL = 3


def gather_neighborhoods(features: Tensor, images: Tensor, cells: Tensor) -> Tensor:
    """The 3x3 cells around each of P cells, zeros beyond the map as in a convolution that pads by 1.

    Args:
        features: (N, C, H, W).
        images: (P,) int64, number of the image.
        cells: (P, 2) int64, column and row within the map.

    Returns:
        (P, 9 * C) row by row, the channels of a cell side by side.
    """
    height, width = features.shape[-2:]
    steps = torch.arange(KERNEL, device=cells.device) - KERNEL // 2
    columns, rows = cells[:, :1] + steps, cells[:, 1:] + steps
    is_column, is_row = (columns >= 0) & (columns < width), (rows >= 0) & (rows < height)
    rows, columns = rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None]
    # Indexed as it lies: a padded copy of the map would cost more than all that is gathered.
    values = features[images[:, None, None], :, rows, columns]
    is_inside = is_row[:, :, None] & is_column[:, None]
    return (values * is_inside[..., None]).flatten(1)


def kernel_matrix(conv: nn.Conv2d) -> Tensor:
    """(O, 9 * C) weights of a 3x3 convolution in the order of `gather_neighborhoods`."""
    return conv.weight.permute(0, 2, 3, 1).flatten(1)


class ShapeHead(nn.Module):
    """conv3x3, ReLU, conv1x1 to S * S channels, as CenterNet's other heads; forward makes no map of them."""

    def __init__(self, in_channels: int, shape_size: int, hidden_channels: int = 256) -> None:
        """
        Args:
            in_channels: C of the feature.
            shape_size: S.
            hidden_channels: between the two convolutions.
        """
        super().__init__()
        self.shape_size = shape_size
        self.hidden = nn.Conv2d(in_channels, hidden_channels, KERNEL, padding=KERNEL // 2)
        self.pred = nn.Conv2d(hidden_channels, shape_size**2, 1)

    def forward(self, features: Tensor, images: Tensor, cells: Tensor) -> Tensor:
        """Shapes at P cells.

        Args:
            features: (N, C, H, W).
            images: (P,) int64, number of the image.
            cells: (P, 2) int64, column and row within the map. P may be 0; parameters have a gradient all the same.

        Returns:
            (P, S, S) float32 logits, row by row.
        """
        return self.shapes_from(gather_neighborhoods(features, images, cells))

    def shapes_from(self, neighborhoods: Tensor) -> Tensor:
        """(P, S, S) float32 logits of (P, 9 * C) neighbourhoods, see `gather_neighborhoods`."""
        hidden = functional.linear(neighborhoods, kernel_matrix(self.hidden), self.hidden.bias).relu()
        logits = functional.linear(hidden, self.pred.weight.flatten(1), self.pred.bias)
        return logits.float().view(-1, self.shape_size, self.shape_size)

    def dense(self, features: Tensor) -> Tensor:
        """(N, S * S, H, W) logits everywhere, for export and for tests."""
        return self.pred(self.hidden(features).relu())
