"""The order of training samples: epochs, processes, resuming."""

from itertools import islice

import numpy as np
import pytest

from regseg_d2.common.errors import ConfigError
from regseg_d2.data.sampler import RandomOrder, ResumableTrainingSampler, sample_generator


def _take(count, size=7, **options):
    return list(islice(ResumableTrainingSampler(size, seed=3, **options), count))


def test_each_epoch_holds_every_record_once():
    flat = [pair for batch in _take(7, size=6, batch_size_per_process=4) for pair in batch]
    assert [number for number, _ in flat] == list(range(28))
    for epoch in range(4):
        assert sorted(index for _, index in flat[6 * epoch : 6 * epoch + 6]) == list(range(6))
    epochs = {tuple(index for _, index in flat[6 * e : 6 * e + 6]) for e in range(4)}
    assert len(epochs) == 4


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_share_the_samples_of_a_step(world_size):
    single = _take(9, batch_size_per_process=8)
    parts = [
        _take(9, batch_size_per_process=8 // world_size, world_size=world_size, rank=rank)
        for rank in range(world_size)
    ]
    for step, batch in enumerate(single):
        assert sorted(sum((part[step] for part in parts), [])) == batch
        for rank, part in enumerate(parts):
            assert all(number % world_size == rank for number, _ in part[step])


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_accumulation_cuts_a_step_into_stretches(steps):
    whole = _take(3, batch_size_per_process=8)
    cut = _take(3 * steps, batch_size_per_process=8 // steps)
    for step in range(3):
        assert sum(cut[step * steps : (step + 1) * steps], []) == whole[step]


@pytest.mark.parametrize("start", [0, 1, 5, 40])
@pytest.mark.parametrize("world_size", [1, 2])
def test_start_equals_skipping(start, world_size):
    options = {"batch_size_per_process": 3, "world_size": world_size, "rank": world_size - 1}
    skipped = _take(start + 6, **options)[start:]
    assert _take(6, **options, start=start * 3 * world_size) == skipped


def test_seeds_differ_and_repeat():
    assert _take(5) == _take(5)
    other = list(islice(ResumableTrainingSampler(7, seed=4), 5))
    assert _take(5) != other


def test_iterating_again_starts_again():
    sampler = ResumableTrainingSampler(5, seed=0, start=3)
    assert list(islice(sampler, 4)) == list(islice(sampler, 4))


def test_global_random_state_is_neither_read_nor_changed():
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    first = RandomOrder(50, 1).epoch(2)
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    np.random.seed(1)
    np.testing.assert_array_equal(RandomOrder(50, 1).epoch(2), first)


def test_permutation_and_augmentation_have_streams_of_their_own():
    assert sample_generator(1, 2).random() != sample_generator(2, 1).random()
    assert sample_generator(1, 2).random() == sample_generator(1, 2).random()
    assert not np.array_equal(RandomOrder(50, 1).epoch(2), sample_generator(1, 2).permutation(50))


@pytest.mark.parametrize(
    "size, options",
    [
        (0, {}),
        (5, {"seed": -1}),
        (5, {"rank": 2, "world_size": 2}),
        (5, {"batch_size_per_process": 0}),
        (5, {"start": -2}),
        (5, {"start": 3, "world_size": 2}),
    ],
)
def test_impossible_arguments(size, options):
    with pytest.raises(ConfigError):
        ResumableTrainingSampler(size, **{"seed": 0, **options})
