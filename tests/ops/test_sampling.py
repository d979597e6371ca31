"""Drawing from groups against loops over items."""

import pytest
import torch

from regseg_d2.ops.sampling import compact, group_order, largest, mix_bits

MASK = 2**32 - 1


def unmix(value):
    """The inverse of ``mix_bits``, step by step backwards, in Python's integers."""
    value ^= value >> 16
    value = value * pow(0x846CA68B, -1, 2**32) & MASK
    value ^= value >> 15 ^ value >> 30
    value = value * pow(0x7FEB352D, -1, 2**32) & MASK
    value ^= value >> 16
    return (value - 0x9E3779B9) & MASK


def test_mix_bits_can_be_undone():
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 2**32, (3000,), generator=generator)
    values = torch.cat([values, torch.tensor([0, 1, 2**31, 2**32 - 1])])
    mixed = mix_bits(values)
    assert 0 <= mixed.min() <= mixed.max() < 2**32
    assert [unmix(value) for value in mixed.tolist()] == values.tolist()


def test_mix_bits_hits_no_number_twice_and_takes_the_lowest_32_bits():
    values = torch.arange(2**19)
    assert len(mix_bits(values).unique()) == len(values)
    assert torch.equal(mix_bits(values + 2**32), mix_bits(values))
    assert torch.equal(mix_bits(values - 2**32), mix_bits(values))
    assert mix_bits(values.view(2, -1)).shape == (2, 2**18)


def test_mix_bits_of_neighbours_looks_uniform():
    mixed = mix_bits(torch.arange(2**18))
    for shift in range(0, 32, 4):
        # 16 equally likely values in each 4 bits; 15 degrees of freedom, 99.99 % are below 44.
        counts = ((mixed >> shift) & 15).bincount(minlength=16).double()
        expected = len(mixed) / 16
        assert ((counts - expected).square() / expected).sum() < 44
    bits = (mixed.unsqueeze(1) >> torch.arange(32)) & 1
    flips = (bits[1:] ^ bits[:-1]).double().mean(0)
    assert (flips - 0.5).abs().max() < 0.005
    pairs = torch.corrcoef(torch.stack([mixed[:-1].double(), mixed[1:].double()]))
    assert pairs[0, 1].abs() < 0.01


CASES = {
    "several": ([2, 0, 5, 2, -1, 0, 2, 7, 2, 100, 5], 6),
    "empty groups": ([4, 4, 4], 9),
    "no group": ([-1, 9, -3], 2),
    "one": ([0], 1),
    "no items": ([], 3),
    "no groups at all": ([0, 3, -1], 0),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("random", [False, True])
def test_order_counts_and_ranks(case, random):
    groups, num_groups = CASES[case]
    bits = torch.tensor([(37 * i * i + 11) % 64 for i in range(len(groups))], dtype=torch.long)
    order = group_order(torch.tensor(groups, dtype=torch.long), num_groups, bits if random else None)
    members = {
        g: sorted(
            (i for i, group in enumerate(groups) if group == g),
            key=lambda i: (bits[i].item(), i) if random else i,
        )
        for g in range(num_groups)
    }
    assert order.counts.tolist() == [len(members[g]) for g in range(num_groups)]
    assert sorted(order.items.tolist()) == list(range(len(groups)))
    ranks = order.rank_in_group()
    assert ranks.shape == (len(groups),)
    for g in range(num_groups):
        start = order.starts[g]
        assert order.items[start : start + order.counts[g]].tolist() == members[g]
        assert [ranks[i].item() for i in members[g]] == list(range(len(members[g])))
    outside = [i for i, group in enumerate(groups) if not 0 <= group < num_groups]
    assert sorted(order.items[len(groups) - len(outside) :].tolist()) == sorted(outside)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("num_samples", [1, 2, 5])
@pytest.mark.parametrize("replacement", [False, True])
def test_draw(case, num_samples, replacement):
    groups, num_groups = CASES[case]
    generator = torch.Generator().manual_seed(3)
    bits = torch.randint(0, 2**32, (len(groups),), generator=generator)
    order = group_order(torch.tensor(groups, dtype=torch.long), num_groups, bits)
    repeats = torch.randint(0, 2**32, (num_groups, num_samples), generator=generator)
    items, valid = order.draw(num_samples, repeats if replacement else None)
    assert items.shape == valid.shape == (num_groups, num_samples)
    for g in range(num_groups):
        start, count = order.starts[g].item(), order.counts[g].item()
        members = order.items[start : start + count].tolist()
        drawn = items[g][valid[g]].tolist()
        if count >= num_samples:
            assert drawn == members[:num_samples]
        elif replacement and count:
            assert drawn == [members[int(r / 2**32 * count)] for r in repeats[g].tolist()]
        else:
            assert drawn == members
            assert valid[g].tolist() == [slot < count for slot in range(num_samples)]


def draw_many(groups, num_groups, num_samples, steps):
    positions = torch.arange(len(groups))
    for step in range(steps):
        bits = mix_bits(mix_bits(torch.tensor(step)) + mix_bits(positions))
        repeats = mix_bits(step * 1000 + 10**6 + torch.arange(num_groups * num_samples))
        order = group_order(groups, num_groups, bits)
        yield order.draw(num_samples, repeats.view(num_groups, -1))


def test_draws_are_even_and_without_repeats_where_there_are_enough():
    # Group 0 has 10 members, group 1 has 2, group 2 none.
    groups = torch.tensor([0, 1, 0, 0, 0, -1, 0, 0, 1, 0, 0, 0, 0])
    steps, num_samples = 2000, 4
    counts = torch.zeros(len(groups))
    for items, valid in draw_many(groups, 3, num_samples, steps):
        assert len(items[0].unique()) == num_samples
        assert valid.any(1).tolist() == [True, True, False]
        counts += items[valid].bincount(minlength=len(groups))
    assert counts[5] == 0
    # Five standard deviations of the binomials with p = 4 / 10 (one trial a step) and 1 / 2 (four).
    assert (counts[groups == 0] - 0.4 * steps).abs().max() < 5 * (steps * 0.4 * 0.6) ** 0.5
    assert (counts[groups == 1] - 2 * steps).abs().max() < 5 * (steps * 4 * 0.25) ** 0.5


def test_the_largest_bits_stay_within_a_group():
    order = group_order(torch.tensor([0, 0, 0, 1]), 2, torch.tensor([0, 2**32 - 1, 5, 2**32 - 1]))
    items, valid = order.draw(5, torch.full((2, 5), 2**32 - 1))
    assert items.tolist() == [[1] * 5, [3] * 5]
    assert valid.all()


@pytest.mark.parametrize("mask", [[], [True], [False, False], [False, True, True, False, True]])
def test_compact(mask):
    items, held = compact(torch.tensor(mask, dtype=torch.bool))
    assert items.tolist() == [i for i, value in enumerate(mask) if value]
    assert held.tolist() == [True] * sum(mask)


def test_compact_elsewhere_has_a_size_that_does_not_depend_on_the_mask():
    mask = torch.tensor([False, True, True, False, True], device="meta")
    items, held = compact(mask)
    assert items.shape == held.shape == (5,)


def test_largest():
    values = torch.tensor([3, 9, 0])
    assert largest(values, 20) == 9
    assert largest(values, 5) == 5
    assert largest(values[:0], 5) == 0
    assert largest(values.to("meta"), 20) == 20
