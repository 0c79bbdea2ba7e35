"""What a reduced precision must not touch."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def predict_in_fp32(prediction: nn.Module, feature: Tensor) -> Tensor:
    """The last convolution of a branch in fp32 also under autocast: sizes, and offsets of fractions of a pixel, need
    more than the 8 or 11 bits of its types.

    Args:
        prediction: the convolution.
        feature: (N, C, H, W) in any precision.
    """
    with torch.autocast(feature.device.type, enabled=False):
        out: Tensor = prediction(feature.float())
    return out
