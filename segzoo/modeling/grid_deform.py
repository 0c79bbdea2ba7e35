"""The deformable convolution on a CPU, by PyTorch's own vectorised sampling.

torchvision's operator walks through its samples one by one there; `grid_sample` takes a quarter of the time, forward
and backward together.

Shape shorthand: N images, C channels, H, W the input's size, Ho, Wo the output's, k filter positions, G offset groups.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def grid_deform_conv2d(
    feature: Tensor,
    offsets: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    mask: Tensor | None,
) -> Tensor:
    """What `torchvision.ops.deform_conv2d` gives, up to rounding.

    Args:
        feature: (N, C, H, W).
        offsets: (N, 2 * k * G, Ho, Wo), y before x, finite.
        weight: (out, C / groups, kh, kw).
        bias: (out,) or None.
        stride, padding, dilation: of y and x.
        mask: (N, k * G, Ho, Wo) or None.
    """
    num_images, channels, height, width = feature.shape
    num_filters, _, *kernel = weight.shape
    size, positions = offsets.shape[2:], kernel[0] * kernel[1]
    offset_groups, groups = offsets.shape[1] // (2 * positions), channels // weight.shape[1]
    num_parts = num_images * offset_groups
    places = offsets.reshape(num_parts, positions, 2, *size).unbind(dim=2)
    axes = []
    for axis, (moved, length) in enumerate(zip(places, (height, width), strict=True)):
        steps = torch.arange(kernel[axis], dtype=offsets.dtype, device=offsets.device) * dilation[axis]
        taps = steps[:, None].expand(kernel[0], kernel[1]) if axis == 0 else steps.expand(kernel[0], kernel[1])
        starts = torch.arange(size[axis], dtype=offsets.dtype, device=offsets.device) * stride[axis] - padding[axis]
        place = moved + taps.reshape(-1, 1, 1) + (starts[:, None] if axis == 0 else starts)
        # The centre of pixel i is at (2 i + 1) / length - 1 in the units of grid_sample.
        axes.append((2 * place + 1) / length - 1)
    grid = torch.stack(axes[::-1], dim=-1).flatten(1, 2)
    samples = functional.grid_sample(
        feature.reshape(num_parts, channels // offset_groups, height, width),
        grid,
        padding_mode="zeros",
        align_corners=False,
    )
    samples = samples.view(num_parts, channels // offset_groups, positions, size[0] * size[1])
    if mask is not None:
        samples = samples * mask.reshape(num_parts, 1, positions, size[0] * size[1])
    columns = samples.reshape(num_images, groups, channels // groups * positions, size[0] * size[1])
    filters = weight.reshape(groups, num_filters // groups, channels // groups * positions)
    output = (filters @ columns).view(num_images, num_filters, *size)
    return output if bias is None else output + bias.view(-1, 1, 1)
