"""Label down-sampling and one-hot labels against slow loops."""

import pytest
import torch
import torch.nn.functional as F

from regseg_d2.ops.labels import downsample_labels, one_hot_labels


@pytest.mark.parametrize("size", [(3, 5), (7, 9), (1, 1), (13, 20), (4, 10)])
def test_downsampling_is_nearest(size):
    labels = torch.randint(0, 256, (2, 13, 20))
    result = downsample_labels(labels, size)
    for n in range(2):
        for i in range(size[0]):
            for j in range(size[1]):
                assert result[n, i, j] == labels[n, i * 13 // size[0], j * 20 // size[1]]
    interpolated = F.interpolate(labels[:, None].double(), size=size, mode="nearest")[:, 0].long()
    assert torch.equal(result, interpolated)


def test_same_size_is_not_copied():
    labels = torch.zeros(1, 4, 4, dtype=torch.long)
    assert downsample_labels(labels, (4, 4)) is labels


def test_one_hot_has_no_one_for_void():
    result = one_hot_labels(torch.tensor([[0, 2, 255, -1]]), 3, torch.float32)
    assert result.tolist() == [[[1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]]
