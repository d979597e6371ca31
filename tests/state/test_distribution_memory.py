"""The memory of MDRL: its start, its moves, what it does where a class shows nothing."""

import pytest
import torch
import torch.nn.functional as F

from regseg_d2.state.distribution_memory import DistributionMemory

K, N, Z = 3, 2, 5


def make_memory(momentum=0.9):
    return DistributionMemory(K, N, Z, momentum).double()


def class_sums(*classes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sums = torch.zeros(K, Z, dtype=torch.float64)
    for k in classes:
        sums[k] = 3 * torch.randn(Z, generator=generator, dtype=torch.float64)
    return sums


def assigned_sums(*places, seed=1):
    generator = torch.Generator().manual_seed(seed)
    sums = torch.zeros(K, N, Z, dtype=torch.float64)
    for k, n in places:
        sums[k, n] = 4 * torch.randn(Z, generator=generator, dtype=torch.float64)
    return sums


def test_new_classes_start_around_their_mean():
    memory = make_memory()
    sums = class_sums(1)
    started, active = memory.started(sums)
    assert active.tolist() == [False, True, False]
    for n in range(N):
        expected = sums[1] / sums[1].norm() + memory.directions[n]
        torch.testing.assert_close(started[1, n], expected / expected.norm())
    assert (started[[0, 2]] == 0).all()
    # Nothing has changed.
    assert not memory.seen.any()
    assert (memory.distributions == 0).all()


def test_first_pixels_replace_later_ones_move():
    memory = make_memory(momentum=0.9)
    started, _ = memory.started(class_sums(1))
    first = assigned_sums((1, 0))
    memory.update(started, first)
    assert memory.seen.tolist() == [False, True, False]
    assert memory.counts.tolist() == [[0, 0], [1, 0], [0, 0]]
    torch.testing.assert_close(memory.distributions[1, 0], F.normalize(first[1, 0], dim=0))
    # The one without a pixel keeps its start.
    torch.testing.assert_close(memory.distributions[1, 1], started[1, 1])

    before = memory.distributions.clone()
    again, active = memory.started(class_sums(1, 2, seed=3))
    torch.testing.assert_close(again[1], before[1], rtol=0, atol=0)
    assert active.tolist() == [False, True, True]
    second = assigned_sums((1, 0), (1, 1), (2, 1), seed=4)
    memory.update(again, second)
    moved = 0.9 * before[1, 0] + 0.1 * F.normalize(second[1, 0], dim=0)
    torch.testing.assert_close(memory.distributions[1, 0], F.normalize(moved, dim=0))
    # Its first pixels.
    torch.testing.assert_close(memory.distributions[1, 1], F.normalize(second[1, 1], dim=0))
    assert memory.counts.tolist() == [[0, 0], [2, 1], [0, 1]]
    lengths = memory.distributions.norm(dim=2)
    torch.testing.assert_close(lengths[1:], torch.ones(2, N, dtype=torch.float64))


def test_a_step_without_pixels_changes_nothing():
    memory = make_memory()
    started, _ = memory.started(class_sums(0))
    memory.update(started, assigned_sums((0, 0), (0, 1)))
    before = {key: value.clone() for key, value in memory.state_dict().items()}
    started, active = memory.started(class_sums())
    memory.update(started, assigned_sums())
    assert active.tolist() == [True, False, False]
    assert all(torch.equal(before[key], value) for key, value in memory.state_dict().items())


def test_features_that_cancel_wait_for_the_next_step():
    memory = make_memory()
    started, active = memory.started(class_sums())  # two opposite pixels of class 0
    assert not active.any()
    memory.update(started, assigned_sums((0, 0)))
    assert not memory.seen.any()
    assert (memory.distributions == 0).all()


def test_opposite_directions_keep_the_old_one():
    memory = make_memory(momentum=0.5)
    started, _ = memory.started(class_sums(0))
    memory.update(started, assigned_sums((0, 0), (0, 1)))
    before = memory.distributions.clone()
    opposite = torch.zeros(K, N, Z, dtype=torch.float64)
    opposite[0, 0] = -7 * before[0, 0]
    memory.update(memory.started(class_sums(0))[0], opposite)
    torch.testing.assert_close(memory.distributions, before)
    assert memory.counts[0].tolist() == [1, 1]


def test_momentum_one_keeps_the_first_value():
    memory = make_memory(momentum=1.0)
    memory.update(memory.started(class_sums(0))[0], assigned_sums((0, 0), (0, 1)))
    before = memory.distributions.clone()
    memory.update(memory.started(class_sums(0))[0], assigned_sums((0, 0), (0, 1), seed=9))
    torch.testing.assert_close(memory.distributions, before)


def test_state_dict_holds_distributions_and_counts_only():
    assert set(make_memory().state_dict()) == {"distributions", "counts"}
    other = make_memory()
    memory = make_memory()
    memory.update(memory.started(class_sums(0))[0], assigned_sums((0, 0)))
    other.load_state_dict(memory.state_dict(), strict=True)
    assert torch.equal(other.seen, memory.seen)


@pytest.mark.parametrize(("number", "momentum"), [(0, 0.9), (2, -0.1), (2, 1.1)])
def test_ranges(number, momentum):
    with pytest.raises(ValueError, match="expected"):
        DistributionMemory(K, number, Z, momentum)
