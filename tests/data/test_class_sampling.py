"""Class-aware orders: frequencies against the papers' formulas, and the sampler's contract."""

from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from regseg_d2.common.errors import ConfigError, DatasetError
from regseg_d2.data.class_sampling import (
    RareClassOrder,
    RepeatFactorOrder,
    build_sample_order,
    rare_class_probabilities,
    repeat_factors,
)
from regseg_d2.data.label_counts import FILE_NAME
from regseg_d2.data.loader import build_train_loader
from regseg_d2.data.sampler import ResumableTrainingSampler
from tests.data.data_helpers import registered, toy_cfg, toy_spec, write_toy

# Class 0 everywhere, 1 in a quarter of the images, 2 in one of 20, 3 nowhere.
COUNTS = np.zeros((40, 4), dtype=np.uint32)
COUNTS[:, 0] = 1000
COUNTS[:10, 1] = np.arange(10, 110, 10)
COUNTS[8:10, 2] = (5, 7)


def test_repeat_factors_against_a_slow_loop():
    for root in (True, False):
        factors = repeat_factors(COUNTS > 0, 0.5, root)
        for i, row in enumerate(COUNTS):
            of_classes = []
            for c in range(4):
                share = sum(bool(other[c]) for other in COUNTS) / len(COUNTS)
                if row[c]:
                    of_classes.append(max(1.0, (0.5 / share) ** (0.5 if root else 1)))
            assert factors[i] == pytest.approx(max(of_classes))
    assert repeat_factors(np.zeros((2, 3), dtype=bool), 0.5).tolist() == [1, 1]


def test_repeat_factors_are_those_of_detectron2():
    from detectron2.data.samplers import RepeatFactorTrainingSampler

    records = [{"annotations": [{"category_id": c} for c in np.flatnonzero(row)]} for row in COUNTS]
    expected = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(records, 0.3)
    np.testing.assert_allclose(repeat_factors(COUNTS > 0, 0.3), expected.numpy(), rtol=1e-6)


def test_epochs_hold_records_in_proportion():
    factors = repeat_factors(COUNTS > 0, 0.5)
    expected = factors * 40 / factors.sum()
    order, total = RepeatFactorOrder(factors, seed=3), np.zeros(40)
    for epoch in range(400):
        records = order.epoch(epoch)
        counts = np.bincount(records, minlength=40)
        assert len(records) == 40
        # Rounded up or down, never more.
        assert (np.abs(counts - expected) < 1).all()
        total += counts
    # Rounding by chance has a standard deviation of at most 1/2 an epoch: 5 of them over 400.
    assert np.abs(total / 400 - expected).max() < 5 * 0.5 / 20
    assert len({tuple(order.epoch(epoch)) for epoch in range(5)}) == 5


def test_equal_factors_are_epochs_of_permutations():
    assert sorted(RepeatFactorOrder(np.ones(30), seed=0).epoch(7)) == list(range(30))


def test_rare_class_probabilities_against_the_formula():
    pixels = COUNTS.sum(axis=0)
    share = pixels[:3] / pixels.sum()
    expected = np.exp((1 - share) / 0.3) / np.exp((1 - share) / 0.3).sum()
    np.testing.assert_allclose(rare_class_probabilities(pixels, 0.3), [*expected, 0])
    # A temperature so low that exp() alone would overflow.
    cold = rare_class_probabilities(pixels, 1e-4)
    assert np.isfinite(cold).all() and cold[2] > 0.99


def _rare(**changes):
    options = {"seed": 5, "temperature": 0.3, "min_pixels": 50, "min_crop_pixels": 20}
    return RareClassOrder(COUNTS, **{**options, **changes})


def test_rare_class_frequencies():
    order = _rare()
    drawn = [
        (order.wanted_class(40 * e + i).index, r) for e in range(100) for i, r in enumerate(order.epoch(e))
    ]
    classes, records = np.array(drawn).T
    shares = np.bincount(classes, minlength=4) / 4000
    probabilities = order.probabilities
    assert np.abs(shares - probabilities).max() < 5 * np.sqrt(0.25 / 4000)
    # Of class 1 only records with 50 pixels or more; of class 2, which never has as many, those with most.
    assert set(records[classes == 1]) == set(range(4, 10)) and set(records[classes == 2]) == {9}
    assert len(set(records[classes == 0])) > 20 and not (classes == 3).any()
    assert order.wanted_class(0).min_pixels == 20


def test_samples_depend_on_seed_and_number_alone():
    """In any order of asking, in another copy, with other numbers of processes and other starts."""
    first, second = _rare(), _rare()
    asked = {number: second.wanted_class(number).index for number in (95, 3, 41, 200, 40, 3)}
    assert all(first.wanted_class(number).index == index for number, index in asked.items())
    for order in (_rare(), RepeatFactorOrder(repeat_factors(COUNTS > 0, 0.5), seed=5)):
        whole = list(islice(ResumableTrainingSampler(40, seed=5, order=order, batch_size_per_process=4), 30))
        later = ResumableTrainingSampler(40, seed=5, order=order, batch_size_per_process=4, start=48)
        assert list(islice(later, 18)) == whole[12:]
        parts = [
            list(
                islice(
                    ResumableTrainingSampler(
                        40, seed=5, order=order, batch_size_per_process=2, rank=rank, world_size=2
                    ),
                    30,
                )
            )
            for rank in range(2)
        ]
        assert [sorted(a + b) for a, b in zip(*parts, strict=True)] == whole
    assert not np.array_equal(_rare().epoch(0), _rare(seed=6).epoch(0))


def test_labels_without_a_class():
    with pytest.raises(DatasetError, match="nothing to sample"):
        RareClassOrder(np.zeros((3, 2), np.uint32), seed=0, temperature=1, min_pixels=1, min_crop_pixels=1)


@pytest.fixture
def toy(tmp_path):
    """Ten images of class 0; one of them has a patch of class 2."""
    write_toy(tmp_path, count=10)
    for i in range(10):
        label = np.zeros((20, 30), dtype=np.uint8)
        if i == 6:
            label[10:, 18:] = 2
        Image.fromarray(label).save(tmp_path / "labels" / f"{i:03d}.png")
    with registered(toy_spec(tmp_path)):
        yield tmp_path


RARE = {
    "DATALOADER__SAMPLER_TRAIN": "RareClassTrainingSampler",
    "DATALOADER__RARE_CLASS__TEMPERATURE": 0.5,
    "DATALOADER__RARE_CLASS__MIN_PIXELS": 50,
    "DATALOADER__RARE_CLASS__MIN_CROP_PIXELS": 60,
    "INPUT__CROP__SINGLE_CATEGORY_MAX_AREA": 1.0,
    "INPUT__SCALE_RANGE": [1.0, 1.0],
}


def _batches(toy, count, workers=0, start=0, **changes):
    cfg = toy_cfg(OUTPUT_DIR=str(toy / "out"), DATALOADER__NUM_WORKERS=workers, **{**RARE, **changes})
    return list(islice(build_train_loader(cfg, seed=1, start_iter=start), count))


def test_training_shows_the_rare_class(toy):
    """P(2) is more than half, and its crops hold at least 60 pixels of it; 1 image in 10 has any."""
    samples = [sample for batch in _batches(toy, 20) for sample in batch]
    rare = [sample for sample in samples if sample["image_id"] == "006"]
    assert len(rare) > 40
    enough = [int((sample["sem_seg"] == 2).sum()) >= 60 for sample in rare]
    assert np.mean(enough) > 0.95
    plain = _batches(toy, 20, DATALOADER__SAMPLER_TRAIN="TrainingSampler")
    assert sum(sample["image_id"] == "006" for batch in plain for sample in batch) == 8


@pytest.mark.parametrize("sampler", ["RareClassTrainingSampler", "RepeatFactorTrainingSampler"])
def test_batches_do_not_depend_on_workers_or_the_start(toy, sampler):
    changes = {"DATALOADER__SAMPLER_TRAIN": sampler, "DATALOADER__REPEAT_THRESHOLD": 0.5}
    alone = _batches(toy, 6, **changes)
    assert (toy / "out" / FILE_NAME).is_file()
    for other in (_batches(toy, 6, workers=2, **changes), alone[:2] + _batches(toy, 4, start=2, **changes)):
        for expected, batch in zip(alone, other, strict=True):
            for a, b in zip(expected, batch, strict=True):
                assert torch.equal(a["image"], b["image"]) and torch.equal(a["sem_seg"], b["sem_seg"])


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"DATALOADER__SAMPLER_TRAIN": "Random"}, 'SAMPLER_TRAIN is "Random"'),
        ({"DATALOADER__SAMPLER_TRAIN": "RepeatFactorTrainingSampler"}, "REPEAT_THRESHOLD is 0.0"),
        ({**RARE, "DATALOADER__RARE_CLASS__TEMPERATURE": 0.0}, "RARE_CLASS is"),
        ({**RARE, "DATALOADER__RARE_CLASS__MIN_PIXELS": 0}, "RARE_CLASS is"),
    ],
)
def test_impossible_values_name_their_key(changes, words):
    with pytest.raises(ConfigError, match=words):
        build_sample_order(toy_cfg(**changes), 10, seed=0)
