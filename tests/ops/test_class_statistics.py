"""Class sums and means against loops over pixels."""

import itertools

import pytest
import torch

from regseg_d2.ops.class_statistics import class_statistics, class_sums, divide_by_counts
from regseg_d2.ops.labels import one_hot_labels


def test_sums_counts_and_means():
    features = torch.randn(2, 3, 10, dtype=torch.float64)
    labels = torch.randint(0, 3, (2, 10))
    labels[:, 0] = 255
    sums, counts = class_sums(features, one_hot_labels(labels, 4, torch.float64))
    for n in range(2):
        for k in range(4):
            members = [features[n, :, p] for p in range(10) if labels[n, p] == k]
            expected = sum(members) if members else torch.zeros(3, dtype=torch.float64)
            torch.testing.assert_close(sums[n, k], expected)
            assert counts[n, k] == len(members)
            mean = divide_by_counts(sums, counts)[n, k]
            torch.testing.assert_close(mean, expected / max(len(members), 1))
    assert counts[:, 3].sum() == 0


@pytest.mark.parametrize("used", list(itertools.product([True, False], repeat=3)))
def test_statistics_and_their_gradients(used):
    """Whichever of features, squares and sums a loss uses: its gradient is autograd's own."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 5, 7, dtype=torch.float64, generator=generator).requires_grad_(True)
    labels = torch.randint(-1, 4, (2, 7), generator=generator)
    one_hot = one_hot_labels(labels, 4, torch.float64)
    statistics = class_statistics(features, one_hot)
    sums, counts = class_sums(features, one_hot)
    expected = (features, features.square().sum(dim=1), sums)
    torch.testing.assert_close((statistics.features, statistics.sums), (expected[0], expected[2]))
    assert not statistics.squares.any()  # there for its gradient
    assert torch.equal(statistics.counts, counts)
    weights = [torch.randn(part.shape, dtype=torch.float64, generator=generator) for part in expected]
    parts = [index for index in range(3) if used[index]]
    if not parts:
        return

    def gradient(values):
        powers = (2, 1, 2)
        terms = [(weights[i] * values[i] ** powers[i]).sum() for i in parts]
        return torch.autograd.grad(sum(terms), features)[0]

    torch.testing.assert_close(gradient(statistics), gradient(expected))
