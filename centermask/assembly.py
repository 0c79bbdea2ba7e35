"""Local shape times global saliency (section 3.4): losses on the stride-4 map, masks at output size.

One convention everywhere: cell (i, j) of a map of stride 4 has its centre at (j + 0.5, i + 0.5) in map units (px / 4),
and a shape's S x S cells cover its box, so that a place of the box is a place in the shape with half a cell beside
the outermost centres (align_corners=False), where the border's value holds.

Shape shorthand: N images, M ground truths, P objects (some may share a ground truth), D detections, Cs saliency
channels, S side of a shape, H, W size of the stride-4 map, Q pairs of an object and a cell in its box.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from centermask.maps import MAP_STRIDE
from segzoo.geometry.box_cells import box_pixels, box_ranges
from segzoo.geometry.fallback import survives_out_of_memory
from segzoo.geometry.rle import RLEMasks
from segzoo.geometry.runs import bounded_blocks
from segzoo.geometry.tiles import Tiles, masks_from_tiles, neighbors, resample

# Pairs of an object and a cell that the mask loss looks at together, at some 100 bytes each. Where a batch has more,
# the blocks are computed a second time for the gradient instead of being kept.
MAX_PAIRS = 2_000_000
# Held for a pixel while masks are assembled.
BYTES_PER_PIXEL = 32
# A box without width or height, as map units.
MIN_SIDE = 1e-4


def sample_shapes(shapes: Tensor, boxes: Tensor, owner: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Shapes stretched over their boxes, bilinearly between cell centres, at the centres of map cells.

    Args:
        shapes: (P, S, S) logits.
        boxes: (P, 4) xyxy in map units.
        owner, y, x: (Q,) as `box_pixels` gives them.

    Returns:
        (Q,) logits.
    """
    side, own_boxes = shapes.shape[-1], boxes[owner]
    left, right, share_x = neighbors(_place_in_shape(x + 0.5, own_boxes[:, 0::2], side), side)
    top, bottom, share_y = neighbors(_place_in_shape(y + 0.5, own_boxes[:, 1::2], side), side)
    values = shapes.flatten()
    top, bottom = (owner * side + top) * side, (owner * side + bottom) * side
    upper = torch.lerp(values[top + left], values[top + right], share_x)
    lower = torch.lerp(values[bottom + left], values[bottom + right], share_x)
    return torch.lerp(upper, lower, share_y)


def _place_in_shape(places: Tensor, sides: Tensor, count: int) -> Tensor:
    """Places on one axis of the map in cells of a shape, from its first cell's border.

    Args:
        places: (Q,) or (T, n).
        sides: (Q, 2) or (T, 2, 1) where the box begins and ends.
        count: S.
    """
    start, end = sides.unbind(dim=1)
    return (places - start) * (count / (end - start).clamp(min=MIN_SIDE))


def product_log_probs(shape_logits: Tensor | None, saliency_logits: Tensor | None) -> tuple[Tensor, Tensor]:
    """Logarithms of M = sigmoid(L) * sigmoid(G) (Eq. 4) and of 1 - M, in fp32, for logits of any size.

    1 - M = sigmoid(-L) + sigmoid(L) * sigmoid(-G): a sum of positive terms, so that neither rounding nor a clamp costs
    a gradient where log(1 - exp(log M)) would. Without one of the maps M is the sigmoid of the other.

    Raises:
        ValueError: both are None.
    """
    if shape_logits is None or saliency_logits is None:
        logits = saliency_logits if shape_logits is None else shape_logits
        if logits is None:
            raise ValueError("neither a shape nor a saliency is given")
        return functional.logsigmoid(logits.float()), functional.logsigmoid(-logits.float())
    shape, saliency = shape_logits.float(), saliency_logits.float()
    log_shape = functional.logsigmoid(shape)
    log_rest = torch.logaddexp(functional.logsigmoid(-shape), log_shape + functional.logsigmoid(-saliency))
    return log_shape + functional.logsigmoid(saliency), log_rest


def mask_loss(
    shapes: Tensor | None,
    saliency: Tensor | None,
    images: Tensor,
    channels: Tensor,
    boxes: Tensor,
    masks: Tensor,
    owners: Tensor | None = None,
    *,
    max_pairs: int = MAX_PAIRS,
) -> Tensor:
    """Binary cross entropy of each object's assembled mask, a mean over the cells of its box (Eq. 5).

    Args:
        shapes: (P, S, S) logits, or None: the saliency alone.
        saliency: (N, Cs, H, W) logits, or None: the shapes alone.
        images, channels: (P,) int64 numbers of the objects' image and saliency channel.
        boxes: (P, 4) xyxy in map units.
        masks: (M, H, W) soft masks at stride 4.
        owners: (P,) int64, which of the masks is an object's; None: M = P, in the same order.
        max_pairs: pairs of object and cell held at once; the result does not depend on it.

    Returns:
        (P,) float32.
    """
    if owners is None:
        owners = torch.arange(len(boxes), device=boxes.device)
    counts = box_ranges(boxes, (masks.shape[1], masks.shape[2]))[1].prod(dim=1)
    blocks = bounded_blocks(counts, max_pairs)
    if len(blocks) <= 1:
        return _block_loss(shapes, saliency, images, channels, boxes, masks, owners)
    losses = []
    for block in blocks:
        own = None if shapes is None else shapes[block]
        columns = (images[block], channels[block], boxes[block], masks, owners[block])
        losses.append(checkpoint(_block_loss, own, saliency, *columns, use_reentrant=False))
    return torch.cat(losses)


def _block_loss(
    shapes: Tensor | None,
    saliency: Tensor | None,
    images: Tensor,
    channels: Tensor,
    boxes: Tensor,
    masks: Tensor,
    owners: Tensor,
) -> Tensor:
    """See `mask_loss`; all pairs at once."""
    height, width = masks.shape[1:]
    owner, y, x = box_pixels(boxes, (height, width))
    place = y * width + x
    shape_logits = None if shapes is None else sample_shapes(shapes, boxes, owner, y, x)
    saliency_logits = None
    if saliency is not None:
        plane = images * saliency.shape[1] + channels
        saliency_logits = saliency.flatten()[plane[owner] * (height * width) + place]
    log_mask, log_rest = product_log_probs(shape_logits, saliency_logits)
    target = masks.flatten()[owners[owner] * (height * width) + place]
    entropy = -(target * log_mask + (1 - target) * log_rest)
    total = entropy.new_zeros(len(boxes)).index_add(0, owner, entropy)
    return total / torch.bincount(owner, minlength=len(boxes))


def saliency_loss(saliency: Tensor, unions: Tensor) -> Tensor:
    """Direct supervision of the saliency (table 1f): binary cross entropy, summed over all cells and channels.

    To be divided by the foreground, `unions.sum()`, over all ranks (at least 1), as a focal loss is by its positives.

    Args:
        saliency: (N, Cs, H, W) logits.
        unions: (N, Cs, H, W), see `union_masks`.
    """
    return functional.binary_cross_entropy_with_logits(saliency.float(), unions, reduction="sum")


@survives_out_of_memory
def assemble_masks(
    shapes: Tensor | None,
    saliency: Tensor | None,
    boxes_px: Tensor,
    channels: Tensor,
    *,
    input_size: tuple[int, int],
    output_size: tuple[int, int],
    threshold: float,
    budget_mb: float,
) -> RLEMasks:
    """Masks of detections at output size: the pixels of a box whose product of shape and saliency is large enough.

    Both are interpolated at the output's pixels, where the paper enlarges their product on the stride-4 map: no mask
    is coarser than the finer of the two. Made in blocks of columns, so that memory stays within the budget.

    Args:
        shapes: (D, S, S) logits, or None.
        saliency: (Cs, H, W) logits of one image, or None.
        boxes_px: (D, 4) xyxy in pixels of the network's input, finite.
        channels: (D,) int64 saliency channel of each detection.
        input_size: (height, width) of the image in the network's input, without the padding at its right and bottom.
        output_size: (height, width) of the masks.
        threshold: pixels at or above it belong to the mask.
        budget_mb: MiB held at once; one column of the output is always allowed.

    Raises:
        ValueError: neither shapes nor saliency are given.
    """
    if shapes is None and saliency is None:
        raise ValueError("neither shapes nor saliency are given")
    step_px = boxes_px.new_tensor([inner / max(outer, 1) for inner, outer in zip(input_size[::-1], output_size[::-1])])
    boxes = boxes_px / step_px.repeat(2)
    # Transposed, as run lengths go down the columns.
    shapes = None if shapes is None else shapes.float().transpose(1, 2)
    saliency = None if saliency is None else saliency.float().transpose(1, 2)
    map_size = max(((maps.shape[1], maps.shape[2]) for maps in (shapes, saliency) if maps is not None), key=math.prod)

    def is_inside(tiles: Tiles, *pixels: Tensor) -> Tensor:
        own_boxes, probability = boxes[tiles.owner], boxes.new_ones(())
        if shapes is not None:
            side = shapes.shape[-1]
            places = [_place_in_shape(x, own_boxes[:, axis::2, None], side) for axis, x in enumerate(pixels)]
            probability = resample(shapes[tiles.owner], *places).sigmoid_()
        if saliency is not None:
            places = [x * (step_px[axis] / MAP_STRIDE) for axis, x in enumerate(pixels)]
            probability = probability * resample(saliency[channels[tiles.owner]], *places).sigmoid_()
        return probability >= threshold

    max_pixels = int(budget_mb * 2**20) // BYTES_PER_PIXEL
    return masks_from_tiles(
        *box_ranges(boxes, output_size), output_size, is_inside, max_pixels=max_pixels, map_size=map_size
    )
