"""Deformable convolutions against a slow oracle written from the papers' equations."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from segzoo.modeling.deformable import (
    DeformConv,
    ModulatedDeformConv,
    build_offset_conv,
    deform_conv,
    predict_offsets,
    zero_offsets,
)


def sample_slowly(plane: Tensor, y: float, x: float) -> float:
    """Bilinear interpolation of an (H, W) plane at a position, with zeros outside (DCN, Eq. 3 and 4)."""
    height, width = plane.shape
    top, left = math.floor(y), math.floor(x)
    value = 0.0
    for i, j in itertools.product((top, top + 1), (left, left + 1)):
        if 0 <= i < height and 0 <= j < width:
            value += float(plane[i, j]) * (1 - abs(y - i)) * (1 - abs(x - j))
    return value


def deform_slowly(conv: nn.Conv2d, feature: Tensor, predictions: Tensor, modulated: bool) -> Tensor:
    """DCNv2's Eq. 1 (v1's Eq. 2 without a mask), one product at a time, with the layout that deformable.py states."""
    (rows, columns), (stride, _), (padding, _), (dilation, _) = (
        conv.kernel_size,
        conv.stride,
        conv.padding,
        conv.dilation,
    )
    num_images, num_predictions, height, width = predictions.shape
    num_offset_groups = num_predictions // (rows * columns * (3 if modulated else 2))
    inputs_per_filter, inputs_per_offset = conv.weight.shape[1], conv.in_channels // num_offset_groups
    outputs_per_group = conv.out_channels // conv.groups
    output = torch.zeros(num_images, conv.out_channels, height, width, dtype=feature.dtype)
    for n, d, i, j in itertools.product(range(num_images), range(conv.out_channels), range(height), range(width)):
        at, value = predictions[n, :, i, j], float(conv.bias[d]) if conv.bias is not None else 0.0
        for c, row, column in itertools.product(range(inputs_per_filter), range(rows), range(columns)):
            channel = d // outputs_per_group * inputs_per_filter + c
            k = channel // inputs_per_offset * rows * columns + row * columns + column
            y = i * stride - padding + row * dilation + float(at[2 * k])
            x = j * stride - padding + column * dilation + float(at[2 * k + 1])
            sample = sample_slowly(feature[n, channel], y, x)
            mask = float(at[2 * rows * columns * num_offset_groups + k].sigmoid()) if modulated else 1.0
            value += float(conv.weight[d, c, row, column]) * sample * mask
        output[n, d, i, j] = value
    return output


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize(
    ("options", "offset_groups"),
    [
        ({"padding": 1}, 1),
        ({"padding": 1, "stride": 2, "bias": False}, 1),
        ({"padding": 2, "dilation": 2, "groups": 2}, 1),
        ({"padding": 1, "groups": 2}, 4),
        ({"kernel_size": (1, 3), "padding": 0}, 2),
    ],
)
def test_deform_conv_equals_the_slow_oracle(modulated: bool, options: dict, offset_groups: int) -> None:
    conv = nn.Conv2d(4, 2, **{"kernel_size": 3, **options}).double()
    feature = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    shape = predict_offsets(build_offset_conv(conv, modulated=modulated, groups=offset_groups), feature.float()).shape
    predictions = 2 * torch.randn(shape, dtype=torch.float64)  # some samples lie outside
    with torch.no_grad():
        expected = deform_slowly(conv, feature, predictions, modulated)
        found = deform_conv(conv, feature, predictions, modulated=modulated)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "options",
    [{"padding": 1}, {"padding": 1, "stride": 2}, {"padding": 3, "dilation": 3, "groups": 2}, {"kernel_size": 1}],
)
def test_deform_conv_with_zero_offsets_equals_the_plain_convolution(options: dict) -> None:
    conv = nn.Conv2d(4, 6, **{"kernel_size": 3, **options})
    feature = torch.randn(2, 4, 7, 9)
    predictions = predict_offsets(build_offset_conv(conv, modulated=False), feature)
    torch.testing.assert_close(deform_conv(conv, feature, predictions, modulated=False), conv(feature))


def test_modulated_deform_conv_starts_as_half_the_plain_convolution() -> None:
    layer = ModulatedDeformConv(4, 6, padding=1)
    feature = torch.randn(2, 4, 7, 9)
    plain = nn.functional.conv2d(feature, layer.weight, padding=1)
    torch.testing.assert_close(layer(feature), 0.5 * plain + layer.bias[:, None, None])


def test_modulated_deform_conv_moves_and_weighs_by_its_own_predictions() -> None:
    # All samples one pixel down and two to the left, with masks 0.75.
    layer = ModulatedDeformConv(1, 1, kernel_size=3, padding=1, bias=False)
    with torch.no_grad():
        layer.offset.bias[0:18:2] = 1.0
        layer.offset.bias[1:18:2] = -2.0
        layer.offset.bias[18:] = math.log(3)
    feature = torch.randn(1, 1, 8, 8)
    moved = torch.zeros_like(feature)
    moved[..., :-1, 2:] = feature[..., 1:, :-2]
    # Inside: the moved image lacks what lies beyond its first row and last columns.
    expected = 0.75 * nn.functional.conv2d(moved, layer.weight, padding=1)
    torch.testing.assert_close(layer(feature)[..., 1:, :-2], expected[..., 1:, :-2])


def test_modulated_deform_conv_has_the_documented_parameters() -> None:
    shapes = {key: tuple(value.shape) for key, value in ModulatedDeformConv(4, 6, padding=1).state_dict().items()}
    assert shapes == {"weight": (6, 4, 3, 3), "bias": (6,), "offset.weight": (27, 4, 3, 3), "offset.bias": (27,)}
    grouped = ModulatedDeformConv(4, 6, kernel_size=5, padding=2, groups=2, bias=False, offset_groups=2)
    shapes = {key: tuple(value.shape) for key, value in grouped.state_dict().items()}
    assert shapes == {"weight": (6, 2, 5, 5), "offset.weight": (150, 4, 5, 5), "offset.bias": (150,)}


@pytest.mark.parametrize("modulated", [False, True])
def test_deform_conv_gradients_equal_finite_differences(modulated: bool) -> None:
    conv = nn.Conv2d(2, 2, kernel_size=3, padding=1, stride=2).double()
    feature = torch.randn(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    # Away from whole pixels, where bilinear interpolation has a kink.
    offsets = torch.randint(-2, 2, (1, 18, 2, 3)) + 0.2 + 0.6 * torch.rand(1, 18, 2, 3)
    logits = torch.randn(1, 9, 2, 3)
    predictions = (torch.cat((offsets, logits), dim=1) if modulated else offsets).double().requires_grad_()

    def run(feature: Tensor, predictions: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(Wrapped(conv, modulated), state(weight, bias), (feature, predictions))

    assert torch.autograd.gradcheck(run, (feature, predictions, conv.weight, conv.bias))


class Wrapped(nn.Module):
    """`deform_conv` as a module, so that a weight can be put into its convolution."""

    def __init__(self, conv: nn.Conv2d, modulated: bool) -> None:
        super().__init__()
        self.conv, self.modulated = conv, modulated

    def forward(self, feature: Tensor, predictions: Tensor) -> Tensor:
        return deform_conv(self.conv, feature, predictions, modulated=self.modulated)


def state(weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
    return {"conv.weight": weight, "conv.bias": bias}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_offsets_that_are_not_finite_give_nan_there_only(value: float) -> None:
    # torchvision's operator alone ends the process with a segmentation fault for x = NaN, and gives 0 for infinities.
    conv = nn.Conv2d(4, 4, kernel_size=3, padding=1)
    feature = torch.randn(2, 4, 50, 60, requires_grad=True)
    predictions = torch.zeros(2, 18, 50, 60)
    predictions[0, 1::2, 7, 9] = value
    output = deform_conv(conv, feature, predictions.requires_grad_(), modulated=False)
    output.nansum().backward()
    bad = output.isnan()
    assert bad[0, :, 7, 9].all()
    assert bad.sum() == 4
    torch.testing.assert_close(output[~bad], conv(feature)[~bad])
    assert feature.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_the_precision_of_a_plain_convolution_near_fp32(dtype: torch.dtype) -> None:
    layer = trained(ModulatedDeformConv(8, 8, padding=1))
    feature = torch.randn(1, 8, 6, 6)
    with torch.autocast("cpu", dtype=dtype):
        output = layer(feature)
        output.float().square().mean().backward()
        assert output.dtype == nn.Conv2d(8, 8, 1)(feature).dtype == dtype
    torch.testing.assert_close(output.float(), layer(feature), rtol=2e-2, atol=2e-2)
    assert all(parameter.grad.abs().max() > 0 for parameter in layer.parameters())


def test_offsets_are_not_rounded_under_autocast() -> None:
    # bfloat16 would give 300.0: no sample would be taken between two pixels.
    offset_conv = build_offset_conv(nn.Conv2d(1, 1, 3, padding=1), modulated=False)
    nn.init.constant_(offset_conv.bias, 300.25)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert predict_offsets(offset_conv, torch.zeros(1, 1, 4, 4, dtype=torch.bfloat16)).unique().tolist() == [300.25]


def test_a_layer_in_half_precision_runs_and_answers_in_it() -> None:
    layer = trained(ModulatedDeformConv(4, 4, padding=1))
    feature = torch.randn(1, 4, 6, 6)
    output = layer.bfloat16()(feature.bfloat16())
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), layer.float()(feature), rtol=5e-2, atol=5e-2)


def test_memory_order_does_not_change_the_result() -> None:
    layer = trained(ModulatedDeformConv(4, 4, padding=1))
    feature = torch.randn(2, 4, 6, 6)
    expected = layer(feature)
    layer = layer.to(memory_format=torch.channels_last)
    torch.testing.assert_close(layer(feature.to(memory_format=torch.channels_last)), expected)


def test_deform_conv_layer_applies_its_norm() -> None:
    norm = nn.BatchNorm2d(4)
    layer = DeformConv(4, 4, kernel_size=3, padding=1, bias=False, norm=norm)
    feature, predictions = torch.randn(2, 4, 6, 6), torch.randn(2, 18, 6, 6)
    expected = norm(deform_conv(layer, feature, predictions, modulated=False))
    torch.testing.assert_close(layer(feature, predictions), expected)
    assert "norm.weight" in layer.state_dict()


def test_zero_offsets_undoes_an_initialisation() -> None:
    layer = trained(ModulatedDeformConv(4, 4, padding=1))
    assert layer.offset.weight.abs().min() > 0
    zero_offsets(layer.offset)
    assert not any(parameter.any() for parameter in layer.offset.parameters())


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_cuda_equals_the_cpu_also_under_autocast(dtype: torch.dtype) -> None:
    layer = trained(ModulatedDeformConv(8, 8, padding=1))
    feature = torch.randn(2, 8, 12, 12)
    expected = layer(feature)
    layer.cuda()
    torch.testing.assert_close(layer(feature.cuda()).cpu(), expected, rtol=1e-3, atol=1e-3)
    with torch.autocast("cuda", dtype=dtype):
        output = layer(feature.cuda())
        output.float().square().mean().backward()
    assert output.dtype == dtype
    torch.testing.assert_close(output.float().cpu(), expected, rtol=2e-2, atol=2e-2)


def trained(layer: ModulatedDeformConv) -> ModulatedDeformConv:
    """`layer` with offsets of about half a pixel."""
    for parameter in layer.offset.parameters():
        nn.init.normal_(parameter, std=0.1)
    return layer
