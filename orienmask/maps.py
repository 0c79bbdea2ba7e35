"""What OrienMask's network gives.

Shape shorthand: N images, K classes, A anchors a level.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class OrienMaps(NamedTuple):
    """Raw outputs.

    boxes: for the strides 8, 16 and 32, in this order, (N, A * (5 + K), Hi, Wi); an anchor's channels are tx, ty, tw,
    th, objectness and K class logits. orientations: (N, 2 * 3A, H / 4, W / 4); channels 2k and 2k + 1 are x and y of
    anchor k, where anchors count as in MODEL.ORIENMASK.ANCHORS, smallest first. (The authors' network has those of
    stride 32 first; the converter reorders its last layer.)
    """

    boxes: list[Tensor]
    orientations: Tensor
