"""Boundary IoU of pairs of masks, by the rule of the engine that measures boundary AP.

Shape shorthand: M objects of an image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pycocotools import mask as coco_mask

from segzoo.evaluation.metrics import BOUNDARY_SHARE


def boundaries_of(rles: Sequence[dict]) -> list[dict]:
    """Run lengths of what lies in each of M masks at most BOUNDARY_SHARE of the image's diagonal from its edge."""
    # Here, because only AP needs the engine.
    from faster_coco_eval.core.mask import rleToBoundary

    return [rleToBoundary(rle, BOUNDARY_SHARE) for rle in rles]


def boundary_ious(rles: Sequence[dict], true_boundaries: Sequence[dict], ious: np.ndarray) -> np.ndarray:
    """(M,) the smaller one of mask IoU and boundary IoU, as `coco_metrics` compares "boundary".

    Args:
        rles: M masks.
        true_boundaries: M boundaries of the objects, see `boundaries_of`.
        ious: (M,) mask IoU.
    """
    pairs = zip(boundaries_of(rles), true_boundaries, strict=True)
    own = [float(coco_mask.iou([found], [true], [0])[0, 0]) for found, true in pairs]
    return np.minimum(ious, own)
