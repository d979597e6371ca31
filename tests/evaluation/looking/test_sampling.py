"""Keys of pixels, the items of the lowest keys, even subsets, and mean features of regions."""

import numpy as np
import pytest
import torch

from regseg_d2.evaluation.looking.sampling import (
    ClassSample,
    even_subset,
    pixel_keys,
    region_features,
    region_keys,
)
from tests.evaluation.looking.small_views import make_view


def test_keys_are_the_same_on_every_machine():
    keys = pixel_keys(3, "a/b.png", (2, 3))
    assert keys.dtype == np.uint64 and keys.shape == (2, 3)
    assert keys.ravel()[:2].tolist() == [2137956222323135749, 1075866628768416942]
    assert np.array_equal(pixel_keys(3, "a/b.png", (3, 2)).ravel(), keys.ravel())
    others = [pixel_keys(4, "a/b.png", (2, 3)), pixel_keys(3, "a/c.png", (2, 3))]
    others.append(region_keys(3, "a/b.png", 6).reshape(2, 3))
    assert not any(np.isin(keys, other).any() for other in others)


def test_any_name_and_seed_have_keys():
    names = ["", "b\udcff.png", "\ud800", "写真.png"]
    drawn = {name: pixel_keys(-1, name, (1, 2)).tobytes() for name in names}
    assert len(set(drawn.values())) == len(names)
    assert drawn[""] == pixel_keys(0, "", (1, 2)).tobytes()


def test_keys_are_uniform():
    keys = pixel_keys(0, "a", (300, 300)).ravel() / 2.0**64
    counts = np.histogram(keys, bins=10, range=(0, 1))[0]
    assert np.abs(counts - 9000).max() < 5 * np.sqrt(9000)


@pytest.mark.parametrize("most", [1, 4])
def test_the_lowest_keys_of_each_class_are_kept_whatever_the_order(most):
    rng = np.random.default_rng(0)
    batches = []
    for number in range(12):
        size = int(rng.integers(0, 30))
        # Class 2 is never there, class 3 in one batch alone.
        classes = rng.choice([0, 1, 3] if number == 5 else [0, 1], size=size)
        batches.append((classes, rng.integers(0, 2**63, size).astype(np.uint64), rng.normal(size=(size, 2))))
    lowest = {}
    for classes, keys, values in batches:
        for k, key, value in zip(classes.tolist(), keys.tolist(), values.tolist(), strict=True):
            lowest[k] = sorted([*lowest.get(k, []), (key, value)])[:most]
    expected = [(k, value) for k in sorted(lowest) for _, value in lowest[k]]
    for order in (range(12), reversed(range(12)), rng.permutation(12)):
        sample = ClassSample(4, most)
        for number in order:
            classes, keys, values = batches[number]
            chosen, slots = sample.choose(classes, keys)
            assert len(np.unique(slots)) == len(slots) == len(chosen)
            sample.store(slots, values=values[chosen], classes=classes[chosen])
        classes, columns = sample.kept()
        assert classes.tolist() == columns["classes"].tolist() == [k for k, _ in expected]
        assert columns["values"].tolist() == [value for _, value in expected]


def test_items_that_come_too_late_are_not_asked_for():
    sample = ClassSample(1, 2)
    chosen, slots = sample.choose(np.array([0, 0, 0]), np.array([5, 1, 3], dtype=np.uint64))
    assert sorted(chosen.tolist()) == [1, 2]
    sample.store(slots, value=np.array([10, 11, 12])[chosen])
    assert len(sample.choose(np.array([0, 0]), np.array([4, 3], dtype=np.uint64))[0]) == 0
    chosen, slots = sample.choose(np.array([0]), np.array([2], dtype=np.uint64))
    sample.store(slots, value=np.array([13])[chosen])
    assert sample.kept()[1]["value"].tolist() == [11, 13]


def test_even_subsets():
    rng = np.random.default_rng(0)
    classes = rng.choice([0, 2, 3, 7], p=[0.6, 0.05, 0.05, 0.3], size=60)
    for most in (0, 1, 3, 4, 7, 8, 30, 59, 60, 100):
        chosen = even_subset(classes, most).tolist()
        assert chosen == sorted(set(chosen)) and len(chosen) <= most
        # One more of each class would be too many; or all are chosen.
        each = max((chosen_of(classes, chosen, k) for k in range(8)), default=0)
        for k in set(classes.tolist()):
            own = np.flatnonzero(classes == k).tolist()
            assert [i for i in chosen if classes[i] == k] == own[:each]
        more = sum(min((classes == k).sum(), each + 1) for k in range(8))
        assert more > most or len(chosen) == 60
    assert even_subset(np.array([], dtype=np.int64), 5).tolist() == []


def chosen_of(classes, chosen, k):
    return sum(classes[i] == k for i in chosen)


@pytest.mark.parametrize(
    ("size", "cells", "cell"), [((9, 13), (5, 4), (2.0, 3.5)), ((4, 6), (8, 12), (0.5, 0.5))]
)
def test_mean_features_of_regions(size, cells, cell):
    view = make_view(size, cells, cell, channels=3, absent=(2,))
    label, feature = view.label.numpy(), view.feature.numpy()
    classes = np.array([4, 0, 1])
    found = region_features(view, label, feature, classes)
    assert found.dtype == np.float32
    for row, k in zip(found, classes, strict=True):
        members = []
        for y in range(size[0]):
            for x in range(size[1]):
                if label[y, x] == k:
                    members.append(
                        feature[:, int((y + 0.5) // cell[0]), int((x + 0.5) // cell[1])].astype(float)
                    )
        np.testing.assert_allclose(row, np.mean(members, axis=0), rtol=1e-6)
    assert region_features(view, label, feature, classes[:0]).shape == (0, 3)
    assert torch.equal(view.feature, torch.from_numpy(feature))
