"""Random numbers that follow from (seed, step, stream, image, position)."""

import itertools

import pytest
import torch

from regseg_d2.state.random_stream import RandomStream


def at_rank(monkeypatch, rank):
    monkeypatch.setattr("regseg_d2.state.random_stream.rank", lambda: rank)


@pytest.mark.parametrize(("ranks", "images"), [(2, 3), (3, 2), (6, 1)])
def test_an_image_gets_the_same_numbers_however_the_batch_is_split(ranks, images, monkeypatch):
    whole = RandomStream(5).bits(1, 6, 40)
    parts = []
    for rank in range(ranks):
        at_rank(monkeypatch, rank)
        parts.append(RandomStream(5).bits(1, images, 40))
    assert torch.equal(torch.cat(parts), whole)
    assert len(whole.unique(dim=0)) == 6


def test_shared_bits_are_the_same_on_all_processes(monkeypatch):
    shared = RandomStream(5).shared_bits(2, 40)
    at_rank(monkeypatch, 3)
    assert torch.equal(RandomStream(5).shared_bits(2, 40), shared)
    assert shared.shape == (40,)


def test_more_numbers_start_with_the_same_ones():
    stream = RandomStream(0)
    assert torch.equal(stream.bits(0, 2, 100)[:, :30], stream.bits(0, 2, 30))


def test_numbers_are_uniform():
    bits = RandomStream(1).bits(0, 8, 2**15)
    assert bits.dtype == torch.long
    assert 0 <= bits.min() <= bits.max() < 2**32
    # 64 equally likely bins an image; 63 degrees of freedom, 99.99 % are below 110.
    for row in bits:
        counts = (row >> 26).bincount(minlength=64).double()
        assert ((counts - 512).square() / 512).sum() < 110
    assert (bits.double().mean() / 2**32 - 0.5).abs() < 0.005


def variants():
    """Numbers of neighbouring seeds, steps, streams and images."""
    rows = {}
    for seed, step, stream in itertools.product(range(3), range(3), range(3)):
        random = RandomStream(seed)
        for _ in range(step):
            random.advance()
        for image, row in enumerate(random.bits(stream, 3, 4096)):
            rows[seed, step, stream, image] = row
    return rows


def test_seeds_steps_streams_and_images_are_independent():
    rows = torch.stack(list(variants().values()))
    assert len(rows) == 81
    correlations = torch.corrcoef(rows.double()) - torch.eye(81, dtype=torch.double)
    # 3240 pairs, deviation 1 / sqrt(4096): 5.5 of them.
    assert correlations.abs().max() < 5.5 / 64


def test_no_row_repeats_a_run_of_another_one():
    """Two rows of 4096 of 2**32 numbers share 0.004 of them on average; a shifted copy would share most."""
    rows = list(variants().values())
    values = torch.stack(rows).flatten().sort().values
    repeats = (values[1:] == values[:-1]).sum().item()
    expected = len(values) ** 2 / 2 / 2**32
    assert repeats < expected + 6 * expected**0.5 + 1
    assert all(len(row.unique()) == len(row) for row in rows)


def test_a_seed_does_not_continue_the_streams_of_its_neighbour():
    assert not torch.equal(RandomStream(0).bits(1, 1, 10), RandomStream(1).bits(0, 1, 10))


def test_a_resumed_stream_goes_on_where_it_was():
    stream = RandomStream(9)
    for _ in range(4):
        stream.advance()
    resumed = RandomStream(1)
    resumed.load_state_dict(stream.state_dict())
    assert resumed.step.item() == 4
    assert torch.equal(resumed.bits(0, 2, 20), stream.bits(0, 2, 20))
    stream.advance()
    assert not torch.equal(resumed.bits(0, 2, 20), stream.bits(0, 2, 20))
    assert set(stream.state_dict()) == {"seed", "step"}


def test_what_was_drawn_before_does_not_matter():
    stream = RandomStream(2)
    before = stream.bits(0, 1, 10)
    stream.bits(1, 5, 100)
    torch.manual_seed(3)
    assert torch.equal(stream.bits(0, 1, 10), before)


@pytest.mark.parametrize(("seed", "same_as"), [(-1, 0), (-7, 0), (2**32 + 4, 4)])
def test_any_integer_is_a_seed(seed, same_as):
    assert torch.equal(RandomStream(seed).bits(0, 1, 10), RandomStream(same_as).bits(0, 1, 10))
