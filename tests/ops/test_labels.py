"""Label down-sampling and one-hot labels against slow loops."""

import math
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from regseg_d2.ops.labels import downsample_labels, majority_labels, one_hot_labels
from tests.references.labels import labels_at_cells


@pytest.mark.parametrize("size", [(3, 5), (7, 9), (1, 1), (13, 20), (4, 10)])
def test_downsampling_to_cell_corners(size):
    labels = torch.randint(0, 256, (2, 13, 20))
    result = downsample_labels(labels, size, "corner")
    assert torch.equal(result, labels_at_cells(labels, size, "corner", void=None))
    interpolated = F.interpolate(labels[:, None].double(), size=size, mode="nearest")[:, 0].long()
    assert torch.equal(result, interpolated)


@pytest.mark.parametrize("size", [(3, 5), (7, 9), (1, 1), (13, 20), (4, 10), (6, 7), (16, 31)])
def test_downsampling_to_cell_centers(size):
    labels = torch.randint(0, 256, (2, 13, 20))
    result = downsample_labels(labels, size)
    assert torch.equal(result, labels_at_cells(labels, size, void=None))
    interpolated = F.interpolate(labels[:, None].double(), size=size, mode="nearest-exact")[:, 0].long()
    assert torch.equal(result, interpolated)


@pytest.mark.parametrize(("many", "few"), [(127, 16), (513, 65), (769, 97), (511, 64), (1024, 32), (1, 1)])
def test_rows_of_cell_centers_are_exact(many, few):
    rows = torch.arange(many)[None, :, None]
    expected = [math.floor((i + Fraction(1, 2)) * many / few) for i in range(few)]
    assert downsample_labels(rows, (few, 1)).flatten().tolist() == expected
    assert downsample_labels(rows.transpose(1, 2), (1, few)).flatten().tolist() == expected


@pytest.mark.parametrize("size", [(3, 5), (7, 9), (1, 1), (13, 20), (4, 10), (6, 7), (16, 31)])
@pytest.mark.parametrize("purity", ["0", "0.35", "0.55", "1"])
def test_majority(size, purity):
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(-1, 5, (2, 5, 7), generator=generator)
    labels = blocks.repeat_interleave(3, 1).repeat_interleave(3, 2)[:, :13, :20]
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = 255
    result = majority_labels(labels, size, 4, float(purity))
    # -1, 4 and 255 are no classes.
    expected = labels_at_cells(labels, size, "majority", 255, 4, Fraction(purity))
    assert torch.equal(result, expected)


def test_majority_of_a_few_pixels():
    labels = torch.tensor([[[0, 0, 1, 255], [0, 2, 255, 255], [2, 1, 255, 255], [1, 2, 255, 9]]])
    # 3 of 4; 1 of 4, the others are void; 2 of 4, as another class; none.
    assert majority_labels(labels, (2, 2), 3).tolist() == [[[0, 1], [1, -1]]]
    assert majority_labels(labels, (2, 2), 3, purity=0.25).tolist() == [[[0, 1], [1, -1]]]
    assert majority_labels(labels, (2, 2), 3, purity=0.5).tolist() == [[[0, -1], [1, -1]]]
    assert majority_labels(labels, (2, 2), 3, purity=0.75).tolist() == [[[0, -1], [-1, -1]]]
    assert majority_labels(labels, (2, 2), 3, purity=0.8).tolist() == [[[-1, -1], [-1, -1]]]
    # Rows 0 and 1 of three, then 1 and 2: the one in the middle is of both cells.
    assert majority_labels(torch.tensor([[[0], [1], [1]]]), (2, 1), 2, purity=0.6).tolist() == [[[-1], [1]]]


def test_a_share_that_is_the_purity_is_enough():
    labels = torch.zeros(1, 4, 5, dtype=torch.long)
    for count in range(1, 21):
        labels.fill_(255).view(-1)[:count] = 0
        assert majority_labels(labels, (1, 1), 2, purity=float(f"{count / 20:.2f}")).item() == 0


def test_majority_takes_no_memory_per_class_and_pixel():
    """150 classes at 512 x 512: one number for each would be 157 MB."""
    labels = torch.randint(0, 150, (1, 512, 512))
    largest = []
    for count in (lambda: majority_labels(labels, (64, 64), 150), lambda: F.one_hot(labels, 150)):
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiled:
            count()
        largest.append(max(event.self_cpu_memory_usage for event in profiled.events()))
    assert largest[0] < 10e6 < 150e6 < largest[1]


def test_same_size_is_not_copied():
    labels = torch.zeros(1, 4, 4, dtype=torch.long)
    assert downsample_labels(labels, (4, 4)) is labels


def test_one_hot_has_no_one_for_void():
    result = one_hot_labels(torch.tensor([[0, 2, 255, -1]]), 3, torch.float32)
    assert result.tolist() == [[[1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]]
