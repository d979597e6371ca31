"""Order of the training samples: endless, shuffled by epoch, and continued at any sample."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from regseg_d2.common.errors import ConfigError, check_key
from regseg_d2.data.transforms import WantedClass

# First words of the seeds of the kinds of randomness, so that they never share a stream.
PERMUTATION_STREAM = 0
AUGMENTATION_STREAM = 1
CLASS_STREAM = 2
LIST_STREAM = 3


def sample_generator(seed: int, sample_number: int) -> np.random.Generator:
    """Source of all randomness of one sample's augmentation.

    It depends on the run's seed and the sample's number over all processes alone: not on workers, processes
    or where a run resumed.
    """
    return np.random.default_rng((AUGMENTATION_STREAM, seed, sample_number))


class SampleOrder(ABC):
    """Which records an epoch holds, in which order, and which class each is for."""

    @abstractmethod
    def epoch(self, epoch: int) -> np.ndarray:
        """Record indices of an epoch, counted from 0 on, as many as there are records."""

    def wanted_class(self, sample_number: int) -> WantedClass | None:
        """The class that the crop of a sample should show, if any."""
        return None


class RandomOrder(SampleOrder):
    """Every record once an epoch."""

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.seed = seed

    def epoch(self, epoch: int) -> np.ndarray:
        """Returns a permutation of the record indices."""
        return np.random.default_rng((PERMUTATION_STREAM, self.seed, epoch)).permutation(self.size)


class ResumableTrainingSampler(Sampler[list[tuple[int, int]]]):
    """Batches of ``(sample number, record index)`` for one process, without end.

    The samples of a run are numbered 0, 1, 2, ... over all processes. Sample ``n`` is number ``n % size`` in
    the order of epoch ``n // size``. Process ``r`` of ``W`` takes the numbers with
    ``n % W == r``, so the samples of a step are the same for every number of processes and for every
    place at which a run was resumed.

    Args:
        size: number of records.
        seed: seed of the run, 0 or more, the same in all processes.
        order: what an epoch holds; by default every record once.
        rank: number of this process.
        world_size: number of processes.
        batch_size_per_process: samples in a batch.
        start: sample number (over all processes) to start at; a multiple of ``world_size``.

    Raises:
        ConfigError: a number is out of its range.
    """

    def __init__(
        self,
        size: int,
        *,
        seed: int,
        order: SampleOrder | None = None,
        rank: int = 0,
        world_size: int = 1,
        batch_size_per_process: int = 1,
        start: int = 0,
    ) -> None:
        if size < 1:
            raise ConfigError("The training data sets hold no record.")
        check_key("The data loader's seed", seed, seed >= 0, "0 or more")
        if not 0 <= rank < world_size or batch_size_per_process < 1:
            raise ConfigError(
                f"Cannot sample for process {rank} of {world_size} in batches of {batch_size_per_process}."
            )
        if start < 0 or start % world_size:
            raise ConfigError(
                f"Cannot start at sample {start} with {world_size} processes; expected a multiple."
            )
        self.size = size
        self.order = RandomOrder(size, seed) if order is None else order
        self.rank = rank
        self.world_size = world_size
        self.batch_size_per_process = batch_size_per_process
        self.start = start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yields batches from ``start`` on, without end."""
        epoch, records = -1, np.zeros(0, dtype=np.int64)
        number = self.start + self.rank
        while True:
            batch = []
            for _ in range(self.batch_size_per_process):
                if number // self.size != epoch:
                    epoch = number // self.size
                    records = self.order.epoch(epoch)
                batch.append((number, int(records[number % self.size])))
                number += self.world_size
            yield batch
