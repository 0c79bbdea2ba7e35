"""Deformable convolutions without the compiled extension of Detectron2: torchvision's operator, on a CPU PyTorch's
sampling, which is faster there.

Version 1 (Dai et al., ICCV 2017) samples the feature for filter position k not at p + p_k but at p + p_k + offset_k,
bilinearly, with zeros outside; version 2 (Zhu et al., CVPR 2019, "modulated") also weighs each sample by a mask in
0..1. Offsets and masks are predicted from the same feature by a plain convolution of the same geometry.

Layout of the predictions, that of the DCN papers' own programs and so of the weights built on them (Detectron2's
`conv2_offset`, CenterNet's `conv_offset_mask`): with G groups and the k filter positions counted row by row, first
2 * k * G offsets, (y, x) interleaved, group after group; then, in version 2, the k * G logits of the masks.

Shape shorthand: N images, C channels, H, W the input's size, Ho, Wo the output's, k filter positions, G offset groups.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from detectron2.layers import Conv2d
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from segzoo.modeling.grid_deform import grid_deform_conv2d


def build_offset_conv(conv: nn.Conv2d, *, modulated: bool, groups: int = 1) -> nn.Conv2d:
    """The convolution that predicts the offsets (and mask logits) of `conv`, all 0 at first as in both papers.

    So the deformable convolution starts as the plain one, and a modulated one as half of it (sigmoid(0) = 0.5).

    Args:
        conv: the deformable convolution; its kernel, stride, padding and dilation are taken over.
        modulated: whether there are mask logits.
        groups: G, parts of the input channels with offsets of their own.
    """
    offset_conv = nn.Conv2d(
        conv.in_channels,
        (3 if modulated else 2) * math.prod(conv.kernel_size) * groups,
        kernel_size=conv.kernel_size,  # type: ignore[arg-type]
        stride=conv.stride,  # type: ignore[arg-type]
        padding=conv.padding,  # type: ignore[arg-type]
        dilation=conv.dilation,  # type: ignore[arg-type]
    )
    zero_offsets(offset_conv)
    return offset_conv


def zero_offsets(offset_conv: nn.Conv2d) -> None:
    """Makes `offset_conv` predict 0 everywhere."""
    assert offset_conv.bias is not None
    nn.init.zeros_(offset_conv.weight)
    nn.init.zeros_(offset_conv.bias)


def predict_offsets(offset_conv: nn.Conv2d, feature: Tensor) -> Tensor:
    """Offsets in input pixels (and mask logits) in the precision of the weights, also under autocast.

    Between 8 and 16 px two neighbouring bfloat16 values are 1/16 px apart.

    Args:
        offset_conv: see `build_offset_conv`.
        feature: (N, C, H, W).

    Returns:
        (N, 2 * k * G or 3 * k * G, Ho, Wo), in the order of the head of this file.
    """
    with torch.autocast(feature.device.type, enabled=False):
        return offset_conv(feature.to(offset_conv.weight.dtype))


def deform_conv(conv: nn.Conv2d, feature: Tensor, predictions: Tensor, *, modulated: bool) -> Tensor:
    """`conv` with its samples moved (and weighed) by `predictions`.

    Computed in fp32 (float64 stays): torchvision's CPU operator knows no bfloat16, and the positions between which it
    interpolates need more than half precision. The result has the precision that a plain convolution would give.

    Args:
        conv: whose filters, bias, stride, padding, dilation and groups are used.
        feature: (N, C, H, W).
        predictions: see `predict_offsets`.
        modulated: whether `predictions` end with mask logits.

    Returns:
        (N, conv.out_channels, Ho, Wo); NaN where an offset is not finite, so that a diverged model is noticed.
    """
    device = feature.device.type
    output_dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else feature.dtype
    dtype = torch.promote_types(feature.dtype, torch.float32)
    with torch.autocast(device, enabled=False):
        offsets, mask = _split(predictions.to(dtype), modulated)
        # A trace shows the operator by its name.
        is_sampled = device == "cpu" and not torch.jit.is_tracing()
        output = (grid_deform_conv2d if is_sampled else deform_conv2d)(
            feature.to(dtype),
            # At a position that is no number torchvision's CPU operator reads wild memory.
            offsets.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0),
            conv.weight.to(dtype),
            None if conv.bias is None else conv.bias.to(dtype),
            stride=conv.stride,  # type: ignore[arg-type]
            padding=conv.padding,  # type: ignore[arg-type]
            dilation=conv.dilation,  # type: ignore[arg-type]
            mask=mask,
        )
        output.masked_fill_(~offsets.isfinite().all(dim=1, keepdim=True), math.nan)
    return output.to(output_dtype)


def _split(predictions: Tensor, modulated: bool) -> tuple[Tensor, Tensor | None]:
    """Offsets and, if `modulated`, masks in 0..1."""
    if not modulated:
        return predictions, None
    num_masks = predictions.shape[1] // 3
    offsets, mask_logits = predictions.split((2 * num_masks, num_masks), dim=1)
    return offsets, mask_logits.sigmoid()


class DeformConv(Conv2d):
    """Detectron2's convolution with a norm, deformed by predictions that somebody else makes.

    Parameters: `weight`, `bias`, `norm.*`, as those of the plain convolution, whose weights fit.
    """

    def __init__(self, *args: Any, modulated: bool = False, **kwargs: Any) -> None:
        """
        Args:
            args, kwargs: of `detectron2.layers.Conv2d`.
            modulated: version 2 instead of version 1.
        """
        super().__init__(*args, **kwargs)
        self.modulated = modulated

    def forward(self, feature: Tensor, predictions: Tensor) -> Tensor:
        """(N, C, H, W) and the predictions of a convolution by `build_offset_conv` -> (N, out, Ho, Wo)."""
        output = deform_conv(self, feature, predictions, modulated=self.modulated)
        return output if self.norm is None else self.norm(output)


class ModulatedDeformConv(nn.Conv2d):
    """Deformable convolution, version 2, that predicts its own offsets and masks.

    Parameters: `weight` and `bias`, initialised as those of nn.Conv2d, and the child convolution `offset` (27 channels
    for a 3x3 and one group), all 0 at first.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        offset_groups: int = 1,
    ) -> None:
        """
        Args:
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: as those of nn.Conv2d.
            offset_groups: G, parts of the input channels with offsets and masks of their own.
        """
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            bias=bias,
        )
        self.offset = build_offset_conv(self, modulated=True, groups=offset_groups)

    def forward(self, feature: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, out_channels, Ho, Wo)."""
        return deform_conv(self, feature, predict_offsets(self.offset, feature), modulated=True)
