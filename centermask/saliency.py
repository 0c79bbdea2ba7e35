"""The global saliency of CenterMask-FCOS, from several levels of a pyramid.

Shape shorthand: N images, C channels of the features, Cs channels of the saliency, Hi, Wi size of a level, H, W of the
stride-4 map.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from segzoo.modeling.fcos.head import build_tower


class SaliencyBranch(nn.Module):
    """Levels summed at the finest one's size, 3x3 convolutions, and a map enlarged to stride 4."""

    def __init__(
        self, *, channels: int, num_convs: int, norm: str, num_outputs: int, prior_prob: float, enlargement: int
    ) -> None:
        """
        Args:
            channels: C.
            num_convs: 3x3 convolutions, each with norm and ReLU.
            norm: "GN", "" or another norm of Detectron2.
            num_outputs: Cs.
            prior_prob: saliency everywhere at first.
            enlargement: stride of the finest level / 4.
        """
        super().__init__()
        self.tower = build_tower(channels, num_convs, norm)
        self.pred = nn.Conv2d(channels, num_outputs, 1)
        self.enlargement = enlargement
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        assert self.pred.bias is not None
        nn.init.constant_(self.pred.bias, math.log(prior_prob / (1 - prior_prob)))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """(N, C, Hi, Wi), finest first -> (N, Cs, H, W) logits in fp32."""
        total = features[-1]
        for finer in reversed(features[:-1]):
            total = finer + _resize(total, finer.shape[-2:])
        logits = self.pred(self.tower(total)).float()
        # A 1x1 convolution of an enlarged feature is the enlarged 1x1 convolution, of fewer channels.
        return _resize(logits, [side * self.enlargement for side in logits.shape[-2:]])


def _resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    return functional.interpolate(maps, size=list(size), mode="bilinear", align_corners=False)
