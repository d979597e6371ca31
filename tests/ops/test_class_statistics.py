"""Class sums and means against loops over pixels."""

import torch

from regseg_d2.ops.class_statistics import class_sums, divide_by_counts
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
