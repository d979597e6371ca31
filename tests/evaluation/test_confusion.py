"""Counts of pairs of classes, beside a loop over pixels."""

import numpy as np
import pytest
import torch

from regseg_d2.evaluation.confusion import confusion_counts


def loop(predicted, label, classes, ignore):
    counts = np.zeros((classes, classes), dtype=np.int64)
    for p, t in zip(predicted.ravel(), label.ravel(), strict=True):
        if t != ignore:
            counts[p, t] += 1
    return counts


@pytest.mark.parametrize("ignore", [255, -1, 0, 65535, 300])
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_equals_a_loop_over_pixels(ignore, dtype):
    if not np.iinfo(dtype).min <= ignore <= np.iinfo(dtype).max:
        pytest.skip("the type cannot hold it")
    rng = np.random.default_rng(0)
    classes = 150
    predicted = rng.integers(0, classes, (31, 23)).astype(np.uint8)
    label = rng.integers(0, classes, (31, 23)).astype(dtype)
    label[rng.random(label.shape) < 0.2] = ignore
    counts = confusion_counts(torch.from_numpy(predicted), torch.from_numpy(label), classes, ignore)
    expected = loop(predicted, label, classes, ignore)
    assert counts.dtype == torch.int64
    assert np.array_equal(counts.numpy(), expected)


@pytest.mark.parametrize("ignore", [255, -1, 65535])
@pytest.mark.parametrize("value", [19, 20, 21, 254, 256, -2, 65534, 1 << 20])
def test_a_single_unknown_value_is_noticed(ignore, value):
    label = torch.zeros(8, 9, dtype=torch.int32)
    label[0, 0] = ignore
    assert confusion_counts(torch.zeros(8, 9, dtype=torch.uint8), label, 19, ignore) is not None
    label[3, 4] = value
    assert confusion_counts(torch.zeros(8, 9, dtype=torch.uint8), label, 19, ignore) is None
