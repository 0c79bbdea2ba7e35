"""Masks as horizontal runs of pixels: the form that everything on many masks at once starts from.

A mask is cut into its runs once; what follows grows with their number (about the height of the objects), not with the
pixels.

Shape shorthand: M masks, T runs, H, W.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# Pixels of masks that are looked at together; the work on them holds some three bytes a pixel more.
MAX_PIXELS = 32_000_000
# Pixels in an int64, and such words in a block.
WORD = 8
BLOCK = 16


class Runs(NamedTuple):
    """Horizontal runs of set pixels, ordered by mask, row, column; all (T,) int64.

    A run covers the pixels x0 <= x < x1 of one row of one mask; runs of a row do not touch.
    """

    mask: Tensor
    row: Tensor
    x0: Tensor
    x1: Tensor

    def select(self, index: Tensor) -> Runs:
        """The runs of an index or boolean tensor."""
        if index.dtype == torch.bool:
            index = index.nonzero().squeeze(1)
        return Runs(*(column.index_select(0, index) for column in self))


def find_runs(masks: Tensor, *, max_pixels: int = MAX_PIXELS) -> Runs:
    """The horizontal runs of (M, H, W) boolean masks.

    Args:
        masks: M masks; the only pass over their pixels.
        max_pixels: pixels looked at together; the result does not depend on it.
    """
    step = max(1, max_pixels // max(1, masks.shape[1] * masks.shape[2]))
    return join_runs([_find_runs(block) for block in masks.split(step)], [step] * -(-len(masks) // step))


def _find_runs(masks: Tensor) -> Runs:
    """Only in blocks of a row that hold a set pixel: a run starts or ends where a pixel differs from the one before."""
    height, width = masks.shape[1:]
    if masks.numel() == 0:
        none = torch.zeros(0, dtype=torch.int64, device=masks.device)
        return Runs(none, none, none, none)
    num_blocks = -(-width // (WORD * BLOCK))
    if width % (WORD * BLOCK):
        masks = torch.nn.functional.pad(masks, (0, num_blocks * WORD * BLOCK - width))
    blocks = masks.contiguous().view(torch.int64).view(-1, BLOCK)
    # Pixels are bytes of 0 and 1, so that the sum of a block's words is 0 for a clear block only.
    block = blocks.sum(dim=1).nonzero().squeeze(1)
    changes = _changes(blocks.index_select(0, block), block, num_blocks).flatten()
    changed = changes.nonzero().squeeze(1)
    word, pixel = changes.index_select(0, changed).view(torch.uint8).view(-1, WORD).nonzero().unbind(dim=1)
    place = changed.index_select(0, word) * WORD + pixel
    # From places among the changes, where a block has one word more, to places in the padded masks.
    shift = block * (WORD * BLOCK) - torch.arange(len(block), device=block.device) * (WORD * (BLOCK + 1))
    place += shift.index_select(0, place // (WORD * (BLOCK + 1)))
    # Starts and ends alternate, so that two neighbouring changes bound a run.
    start, end = place[::2], place[1::2]
    line = start // (num_blocks * WORD * BLOCK)
    left, mask = line * (num_blocks * WORD * BLOCK), line // height
    return Runs(mask, line - mask * height, start - left, end - left)


def _changes(words: Tensor, block: Tensor, num_blocks: int) -> Tensor:
    """(Q, BLOCK + 1) int64 words of bytes that say which pixels of (Q, BLOCK) words differ from the one before.

    The last word is for a run that ends with its block, where the next block of the row is clear.
    """
    pixels = words.view(torch.uint8)
    changes = words.new_zeros(len(words), BLOCK + 1)
    is_change = changes.view(torch.uint8)
    torch.bitwise_xor(pixels[:, 1:], pixels[:, :-1], out=is_change[:, 1 : WORD * BLOCK])
    last_pixel = pixels[:, -1]
    follows = (block[1:] == block[:-1] + 1) & (block[1:] % num_blocks != 0)
    carried = last_pixel[:-1] * follows
    is_change[:, 0] = pixels[:, 0]
    is_change[1:, 0] ^= carried
    is_change[:, WORD * BLOCK] = last_pixel
    is_change[:-1, WORD * BLOCK] ^= carried
    return changes


def join_runs(runs: Sequence[Runs], num_masks: Sequence[int]) -> Runs:
    """The runs of several sets of masks (at least one) as those of one set.

    Args:
        runs: one for each set, whose images may differ in size.
        num_masks: masks in each set.
    """
    if len(runs) == 1:
        return runs[0]
    first = [0, *itertools.accumulate(num_masks)]
    return Runs(
        torch.cat([part.mask + start for part, start in zip(runs, first)]),
        *(torch.cat(columns) for columns in list(zip(*runs, strict=True))[1:]),
    )


def paint_runs(runs: Runs, size: tuple[int, int, int]) -> Tensor:
    """The (M, H, W) = `size` boolean masks that consist of the given runs."""
    num_masks, height, width = size
    steps = torch.zeros((num_masks, height, width + 1), dtype=torch.int8, device=runs.x0.device)
    steps[runs.mask, runs.row, runs.x0] = 1
    steps[runs.mask, runs.row, runs.x1] = -1
    return steps.cumsum(dim=2, dtype=torch.int8)[..., :width] > 0


class Contacts(NamedTuple):
    """Pairs of touching runs of neighbouring rows of a mask, ordered by `upper` and by `lower` at once.

    Runs of a row follow each other without crossing, so that neither index ever falls.

    upper, lower: (Q,) indices of the runs. num_below: (T,) pairs of every run as the upper one.
    """

    upper: Tensor
    lower: Tensor
    num_below: Tensor

    def select(self, is_kept: Tensor) -> Contacts:
        """The contacts among the runs of a (T,) boolean tensor that keeps parts as a whole."""
        pair = is_kept.index_select(0, self.upper).nonzero().squeeze(1)
        position = is_kept.cumsum(0) - 1
        upper, lower = (position.index_select(0, ends.index_select(0, pair)) for ends in (self.upper, self.lower))
        return Contacts(upper, lower, self.num_below.index_select(0, is_kept.nonzero().squeeze(1)))


def touching_runs(runs: Runs, *, diagonal: bool) -> Contacts:
    """The pairs of touching runs.

    Args:
        runs: T runs in order.
        diagonal: whether a common corner is enough.
    """
    if len(runs.row) == 0:
        return Contacts(runs.row, runs.row, runs.row)
    # Keys that leave a line empty between two masks, so that no run reaches into the next mask.
    width, height = runs.x1.max() + 2, runs.row.max() + 2
    line = (runs.mask * height + runs.row) * width
    starts, ends = line + runs.x0, line + runs.x1
    # Runs [c, d) of the next row touch [a, b) when c < b and d > a; at a corner also when c == b or d == a.
    first = torch.searchsorted(ends, starts + width, right=not diagonal)
    counts = (torch.searchsorted(starts, ends + width, right=diagonal) - first).clamp(min=0)
    upper, lower = expand_ranges(first, counts)
    return Contacts(upper, lower, counts)


def expand(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Ragged pairs: every index i repeated counts[i] times, and the position 0 .. counts[i] - 1 of each repetition."""
    owner = torch.repeat_interleave(counts)
    first = (counts.cumsum(0) - counts).index_select(0, owner)
    return owner, torch.arange(len(owner), device=counts.device) - first


def expand_ranges(first: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Ragged ranges: every index i repeated counts[i] times, and first[i] .. first[i] + counts[i] - 1."""
    owner = torch.repeat_interleave(counts)
    shift = (first - counts.cumsum(0) + counts).index_select(0, owner)
    return owner, torch.arange(len(owner), device=counts.device) + shift


def bounded_blocks(counts: Tensor, limit: int) -> list[slice]:
    """Consecutive ranges of the entries of `counts` that add up to at most `limit` (or hold one entry) each."""
    total = counts.cumsum(0)
    if len(counts) == 0:
        return []
    if int(total[-1]) <= limit:
        return [slice(0, len(counts))]
    bounds, blocks, start = total.tolist(), [], 0
    while start < len(bounds):
        used = bounds[start - 1] if start else 0
        stop = max(start + 1, bisect.bisect_right(bounds, used + limit))
        blocks.append(slice(start, stop))
        start = stop
    return blocks


def toggle(line: Tensor, start: Tensor, end: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The symmetric difference of integer intervals [start, end) on lines, as maximal intervals in order.

    An interval's ends switch its line on and off; two ends at one place cancel.
    """
    span = end.max() + 1 if len(end) else 1
    keys = torch.cat((line * span + start, line * span + end)).sort().values
    is_pair = keys[1:] == keys[:-1]
    is_single = torch.ones_like(keys, dtype=torch.bool)
    is_single[1:] &= ~is_pair
    is_single[:-1] &= ~is_pair
    keys = keys.index_select(0, is_single.nonzero().squeeze(1))
    return keys[::2] // span, keys[::2] % span, keys[1::2] % span


def nonzero(values: Tensor) -> Tensor:
    """(Q,) int64 indices of the entries of (T,) values that are not 0; on a CPU numpy finds them five times faster."""
    if values.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(values.numpy()))
    return values.nonzero().squeeze(1)
