"""Sinkhorn-Knopp for all classes at once against slow loops, class by class."""

import pytest
import torch

from regseg_d2.ops.labels import one_hot_labels
from regseg_d2.ops.sinkhorn import sinkhorn_assignment
from tests.references.mdrl import sinkhorn

K = 4


def make_case(num_distributions, num_pixels=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    similarities = 2 * torch.rand(2, num_distributions, num_pixels, generator=generator) - 1
    labels = torch.randint(-1, K - 1, (2, num_pixels), generator=generator)  # class 3 is absent
    return similarities.double(), labels


@pytest.mark.parametrize("num_distributions", [1, 2, 9])
@pytest.mark.parametrize("smoothness", [0.01, 0.05, 0.5])
@pytest.mark.parametrize("iterations", [1, 3])
def test_like_loops(num_distributions, smoothness, iterations):
    similarities, labels = make_case(num_distributions)
    shares = sinkhorn_assignment(
        similarities, one_hot_labels(labels, K, torch.float64), smoothness, iterations
    )
    rows = shares.transpose(1, 2)
    for k in range(K):
        members = labels == k
        if members.any():
            table = similarities.transpose(1, 2)[members].tolist()
            expected = torch.tensor(sinkhorn(table, smoothness, iterations), dtype=torch.float64)
            torch.testing.assert_close(rows[members], expected, rtol=1e-9, atol=1e-12)
    assert (rows[labels < 0] == 0).all()
    torch.testing.assert_close(rows[labels >= 0].sum(1), torch.ones((labels >= 0).sum(), dtype=torch.float64))


def test_many_iterations_use_the_centers_equally():
    similarities, labels = make_case(3, num_pixels=300)
    shares = sinkhorn_assignment(similarities, one_hot_labels(labels, K, torch.float64), 0.5, 100)
    for k in range(K - 1):
        used = shares.transpose(1, 2)[labels == k].sum(0)
        torch.testing.assert_close(used, torch.full((3,), (labels == k).sum() / 3, dtype=torch.float64))


def test_extreme_cosines_stay_finite_in_single_precision():
    similarities = torch.tensor([[[-1.0, 1.0, -1.0], [-1.0, -1.0, 1.0]]])
    one_hot = one_hot_labels(torch.tensor([[0, 0, 1]]), 2, torch.float32)
    shares = sinkhorn_assignment(similarities, one_hot, 0.005, 3)
    assert torch.isfinite(shares).all()
    torch.testing.assert_close(shares.sum(1), torch.ones(1, 3, dtype=torch.float64))
    # The second pixel is much nearer to the first center: the pixel that does not care takes the other one.
    assert shares.argmax(1)[0, :2].tolist() == [1, 0]


def test_without_a_pixel_there_are_no_shares():
    one_hot = one_hot_labels(torch.full((1, 5), -1), 2, torch.float32)
    assert (sinkhorn_assignment(torch.zeros(1, 3, 5), one_hot, 0.05, 3) == 0).all()


@pytest.mark.parametrize(("smoothness", "iterations"), [(0.004, 3), (0.05, 0)])
def test_ranges(smoothness, iterations):
    with pytest.raises(ValueError, match="expected at least"):
        sinkhorn_assignment(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), smoothness, iterations)
