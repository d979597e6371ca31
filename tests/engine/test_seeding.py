"""Seeds of runs and of single passes."""

import random

import numpy as np
import torch

from regseg_d2.engine.seeding import resolve_seed, seed_everything, seed_pass


def draw() -> tuple:
    return float(torch.rand(())), float(np.random.rand()), random.random()


def test_same_pass_same_numbers_in_all_libraries():
    seed_pass(3, step=10, micro_step=1, rank=0)
    first = draw()
    draw()
    seed_pass(3, step=10, micro_step=1, rank=0)
    assert draw() == first


def test_seed_step_pass_and_rank_all_count():
    places = [
        (3, 10, 1, 0),
        (4, 10, 1, 0),
        (3, 11, 1, 0),
        (3, 10, 2, 0),
        (3, 10, 1, 1),
        (31, 0, 1, 0),
        (3, 1, 0, 10),
    ]
    numbers = set()
    for place in places:
        seed_pass(*place)
        numbers.update(draw())
    assert len(numbers) == 3 * len(places)


def test_resolve_seed_keeps_a_given_one_and_draws_for_a_negative_one():
    assert resolve_seed(0) == 0
    assert resolve_seed(42) == 42
    drawn = {resolve_seed(-1) for _ in range(5)}
    assert len(drawn) == 5
    assert all(0 <= seed < 2**31 for seed in drawn)


def test_any_size_of_seed():
    seed_everything(2**70)
    first = draw()
    seed_everything(2**70)
    assert draw() == first
