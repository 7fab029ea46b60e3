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
    """The micro-batches of one epoch that one worker reads, step by step.

    Every step's batch holds the same samples, cut into the same micro-batches, whatever the number of
    workers: worker `rank` takes every `world_size`-th of a step's micro-batches.

    Args:
        num_records: images in the training set.
        samples: in the epoch, over all workers.
        batch_size: of a step, over all workers; a divisor of `samples`.
        micro_batches: that a step is cut into; at least one for each worker, and a divisor of `batch_size`.
        seed: of the experiment.
        epoch: whose order is drawn.
        shard: this worker's place.
        first: the step to begin with, to go on in the middle of an epoch.

    Raises:
        ValueError: the numbers do not fit.
    """

    def __init__(
        self,
        num_records: int,
        samples: int,
        batch_size: int,
        *,
        micro_batches: int,
        seed: int,
        epoch: int,
        shard: Shard,
        first: int = 0,
    ) -> None:
        if batch_size % micro_batches:
            raise ValueError(f"batch_size {batch_size} is no multiple of the {micro_batches} micro-batches")
        if micro_batches < shard.world_size:
            raise ValueError(f"{micro_batches} micro-batches are too few for {shard.world_size} workers")
        self._order = epoch_order(num_records, samples, seed, epoch)
        self._batch_size, self._micro_batches, self._epoch = batch_size, micro_batches, epoch
        self._steps = range(first, samples // batch_size)
        self.mine = range(shard.rank, micro_batches, shard.world_size)
        """Which of a step's micro-batches this worker takes."""

    def __len__(self) -> int:
        return len(self._steps) * len(self.mine)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for step in self._steps:
            for number in self.mine:
                yield self.keys(step, number)

    def keys(self, step: int, number: int) -> list[SampleKey]:
        """Return the samples of a step's micro-batch."""
        places = range(step * self._batch_size + number, (step + 1) * self._batch_size, self._micro_batches)
        return [SampleKey(self._epoch, place, self._order[place]) for place in places]
