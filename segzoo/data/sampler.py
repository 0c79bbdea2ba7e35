"""The endless, deterministic stream of training samples, and the fixed batches of evaluation.

Stream: epoch e is a permutation seeded by (seed, e). Consecutive images (of one orientation, if grouped) form
micro-batches 0, 1, 2, ... of `micro_batch_size`; of `world_size` ranks, rank r takes the micro-batches r,
r + world_size, r + 2 world_size, ... Every rank computes the same stream, so nothing is communicated, and the state of
a run is one integer: the number of micro-batches that a rank has consumed. With W ranks and A accumulated micro-batches
a step, optimiser step s uses the micro-batches s A W .. (s + 1) A W - 1, however they are spread over ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np

# First word after the seed of every generator, so that no two purposes share a stream of random numbers.
EPOCH_STREAM = 0
SAMPLE_STREAM = 1


class TrainingStream:
    """Micro-batches of one rank as (dataset index, position in the global sample stream).

    Args:
        num_images: size of the data set.
        micro_batch_size: images of one forward pass of one rank.
        seed: >= 0.
        groups: (num_images,) group of each image (0, 1, ...); a micro-batch holds one group only. None = one group.
        rank, world_size: of this process.
        start_position: micro-batches that this rank has already consumed.
    """

    def __init__(
        self,
        num_images: int,
        micro_batch_size: int,
        seed: int,
        groups: Sequence[int] | np.ndarray | None = None,
        rank: int = 0,
        world_size: int = 1,
        start_position: int = 0,
    ) -> None:
        self.num_images, self.micro_batch_size, self.seed = num_images, micro_batch_size, seed
        self.groups = [0] * num_images if groups is None else [int(group) for group in groups]
        self.rank, self.world_size, self.start_position = rank, world_size, start_position

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        first = self.rank + self.start_position * self.world_size
        # Skipping runs over indices only: a few million a second, no image is touched.
        for number, indices in islice(enumerate(self._micro_batches()), first, None, self.world_size):
            yield [(index, number * self.micro_batch_size + k) for k, index in enumerate(indices)]

    def _micro_batches(self) -> Iterator[list[int]]:
        waiting: list[list[int]] = [[] for _ in range(max(self.groups) + 1)]
        for index in self._indices():
            bucket = waiting[self.groups[index]]
            bucket.append(index)
            if len(bucket) == self.micro_batch_size:
                # What is left of an epoch waits for the next, so every image is seen equally often.
                yield bucket.copy()
                bucket.clear()

    def _indices(self) -> Iterator[int]:
        epoch = 0
        while True:
            yield from np.random.default_rng([self.seed, EPOCH_STREAM, epoch]).permutation(self.num_images).tolist()
            epoch += 1


def sample_generator(seed: int, position: int, attempt: int = 0) -> np.random.Generator:
    """The generator of the sample at a position of the stream; `attempt` counts substitutes of a bad image."""
    return np.random.default_rng([seed, SAMPLE_STREAM, position, attempt])


def share_of_rank(count: int, rank: int, world_size: int) -> range:
    """The contiguous share of `count` items that a rank evaluates; shares differ by at most one in length."""
    return range(count * rank // world_size, count * (rank + 1) // world_size)


def batches_of_equal_size(indices: Sequence[int], sizes: Sequence[tuple[int, int]], batch_size: int) -> list[list[int]]:
    """Groups indices whose (padded) sizes are equal into batches, in the order in which batches fill up.

    Args:
        indices: D dataset indices.
        sizes: D sizes (height, width).
        batch_size: the most images a batch may have.
    """
    batches: list[list[int]] = []
    waiting: dict[tuple[int, int], list[int]] = {}
    for index, size in zip(indices, sizes, strict=True):
        bucket = waiting.setdefault(size, [])
        bucket.append(index)
        if len(bucket) == batch_size:
            batches.append(waiting.pop(size))
    return batches + list(waiting.values())
