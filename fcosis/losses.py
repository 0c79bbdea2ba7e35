"""Losses of what FCOSIS adds to FCOS, in fp32.

Shape shorthand: N images, R locations, Q of them within objects (`inner_targets`), F on them, M objects, B maps, H, W
size of the stride-4 maps.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from fcosis.targets import InnerTargets
from segzoo.geometry.box_cells import box_pixels, box_ranges
from segzoo.geometry.runs import bounded_blocks

# Pairs of an object and a cell that the mask loss looks at together, at some 50 bytes each. Where a batch has more, the
# blocks are computed a second time for the gradient instead of being kept.
MAX_PAIRS = 4_000_000


def coarse_losses(coarse_logits: Tensor, inner: InnerTargets) -> tuple[Tensor, Tensor]:
    """Sums of the binary cross entropy of the coarse segmentation: within objects against their shares, in no box
    against 0. Locations in a box that belong to no object there have no loss.

    Args:
        coarse_logits: (N * R,).
        inner: of these locations.
    """
    logits = coarse_logits.float()
    within = functional.binary_cross_entropy_with_logits(logits[inner.places], inner.shares, reduction="sum")
    # That of a target of 0.
    outside = functional.softplus(logits) * inner.is_outside
    return within, outside.sum()


def center_loss(pred_offsets: Tensor, offsets: Tensor) -> Tensor:
    """Sum over F locations and both axes of the smooth L1 loss (beta 1) of ways to the centre, (F, 2) in strides."""
    return functional.smooth_l1_loss(pred_offsets.float(), offsets, beta=1.0, reduction="sum")


def mask_loss(
    logits: Tensor, channels: Tensor, boxes_cells: Tensor, masks: Tensor, *, max_pairs: int = MAX_PAIRS
) -> Tensor:
    """Binary cross entropy of each object's mask, a mean over the cells of its padded box.

    Args:
        logits: (B, H, W).
        channels: (M,) int64 which of the B maps holds an object's mask.
        boxes_cells: (M, 4) padded boxes in cells.
        masks: (M, H, W) soft masks.
        max_pairs: pairs of object and cell held at once; the result does not depend on it.

    Returns:
        (M,) float32.
    """
    counts = box_ranges(boxes_cells, (masks.shape[1], masks.shape[2]))[1].prod(dim=1)
    blocks = bounded_blocks(counts, max_pairs)
    if len(blocks) <= 1:
        return _block_loss(logits, channels, boxes_cells, masks)
    return torch.cat(
        [
            checkpoint(_block_loss, logits, channels[block], boxes_cells[block], masks[block], use_reentrant=False)
            for block in blocks
        ]
    )


def _block_loss(logits: Tensor, channels: Tensor, boxes_cells: Tensor, masks: Tensor) -> Tensor:
    """See `mask_loss`; all pairs at once."""
    height, width = masks.shape[1:]
    owner, y, x = box_pixels(boxes_cells, (height, width))
    place = y * width + x
    pred = logits.flatten()[channels[owner] * (height * width) + place].float()
    target = masks.flatten()[owner * (height * width) + place]
    entropy = functional.binary_cross_entropy_with_logits(pred, target, reduction="none")
    total = entropy.new_zeros(len(masks)).index_add(0, owner, entropy)
    return total / torch.bincount(owner, minlength=len(masks))
