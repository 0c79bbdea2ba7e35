"""The CPU's deformable convolution against torchvision's operator: values and all gradients."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import deform_conv2d

from segzoo.modeling.grid_deform import grid_deform_conv2d

# kernel, stride, padding, dilation (y, x), groups of filters, groups of offsets
CASES = {
    "3x3": ((3, 3), (1, 1), (1, 1), (1, 1), 1, 1),
    "stride": ((3, 3), (2, 2), (1, 1), (1, 1), 1, 1),
    "dilation": ((3, 3), (1, 1), (2, 2), (2, 2), 1, 1),
    "groups": ((3, 3), (1, 1), (1, 1), (1, 1), 2, 1),
    "offset groups": ((3, 3), (1, 1), (1, 1), (1, 1), 1, 3),
    "uneven": ((1, 3), (2, 1), (0, 2), (1, 2), 3, 2),
}


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_equals_torchvision(case: str, modulated: bool) -> None:
    kernel, stride, padding, dilation, groups, offset_groups = CASES[case]
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    feature, weight, bias = draw(2, 6, 9, 11), draw(12, 6 // groups, *kernel), draw(12)
    size = [
        (side + 2 * pad - step * (taps - 1) - 1) // stride[axis] + 1
        for axis, (side, pad, step, taps) in enumerate(zip((9, 11), padding, dilation, kernel, strict=True))
    ]
    positions = kernel[0] * kernel[1]
    # Some samples lie far outside, some between the border and its first pixel.
    offsets = (3 * draw(2, 2 * positions * offset_groups, *size).detach()).requires_grad_()
    mask = draw(2, positions * offset_groups, *size) if modulated else None
    leaves = [feature, weight, bias, offsets, *([] if mask is None else [mask])]
    options = {"stride": stride, "padding": padding, "dilation": dilation, "mask": mask}
    factors = torch.randn(2, 12, *size, generator=generator, dtype=torch.float64)
    found, expected = (
        (
            output := convolve(feature, offsets, weight, bias, **options),
            *torch.autograd.grad((output * factors).sum(), leaves),
        )
        for convolve in (grid_deform_conv2d, deform_conv2d)
    )
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)


def test_without_bias_and_images() -> None:
    feature, weight, offsets = torch.randn(0, 4, 5, 5), torch.randn(8, 4, 3, 3), torch.zeros(0, 18, 5, 5)
    options = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "mask": None}
    assert grid_deform_conv2d(feature, offsets, weight, None, **options).shape == (0, 8, 5, 5)
