"""Which samples make a batch: a pure function of seed, epoch, step, world size and rank."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler


class SampleKey(NamedTuple):
    """Names one training sample; its augmentation and clicks are drawn from a generator of these numbers."""

    epoch: int
    position: int
    """Of the sample in the epoch's order, the same for every world size."""
    record: int
    """Index of the image."""


class Shard(NamedTuple):
    """A worker's place among all workers."""

    rank: int = 0
    world_size: int = 1


def epoch_order(num_records: int, samples: int, seed: int, epoch: int) -> list[int]:
    """Return the images of one epoch in order: each drawn once before any is drawn again."""
    rng = np.random.default_rng((seed, epoch))
    rounds = -(-samples // num_records)
    order = np.concatenate([rng.permutation(num_records) for _ in range(rounds)])
    return [int(index) for index in order[:samples]]


class ShardedBatches(Sampler[list[SampleKey]]):
    """The batches of one epoch that one worker reads.

    Every step's global batch holds the same samples whatever the number of workers; worker `rank` takes
    every `world_size`-th of them.

    Args:
        num_records: images in the training set.
        samples: in the epoch, over all workers.
        batch_size: of the global batch; a multiple of the world size, and a divisor of `samples`.
        seed: of the experiment.
        epoch: whose order is drawn.
        shard: this worker's place.
        first: the batch to begin with, to go on in the middle of an epoch.
    """

    def __init__(
        self,
        num_records: int,
        samples: int,
        batch_size: int,
        *,
        seed: int,
        epoch: int,
        shard: Shard,
        first: int = 0,
    ) -> None:
        if batch_size % shard.world_size:
            raise ValueError(f"batch_size {batch_size} is no multiple of the {shard.world_size} workers")
        self._order = epoch_order(num_records, samples, seed, epoch)
        self._batch_size, self._epoch, self._shard, self._first = batch_size, epoch, shard, first

    def __len__(self) -> int:
        return max(0, len(self._order) // self._batch_size - self._first)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for batch in range(self._first, self._first + len(self)):
            start = batch * self._batch_size
            mine = range(start + self._shard.rank, start + self._batch_size, self._shard.world_size)
            yield [SampleKey(self._epoch, position, self._order[position]) for position in mine]
