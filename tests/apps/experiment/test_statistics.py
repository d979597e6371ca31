"""Intervals, tests and verdicts, against slow references and by simulation."""

from __future__ import annotations

import itertools
import math
import warnings
from statistics import NormalDist

import numpy as np
import pytest

from regseg_d2.apps.experiment.statistics import (
    ALPHA,
    GAIN,
    LOSS,
    NO_DIFFERENCE,
    TOO_FEW_SEEDS,
    bca_interval,
    compare_family,
    holm,
    judge,
    sign_flip_p,
    simultaneous_level,
    smallest_p,
)

SPREAD = 1.06  # of differences, as measured on CamVid at half resolution


def slow_sign_flip_p(differences):
    observed = math.fsum(differences)
    sums = [
        math.fsum(sign * value for sign, value in zip(signs, differences, strict=True))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    at_least = sum(each >= observed - 1e-9 for each in sums)
    at_most = sum(each <= observed + 1e-9 for each in sums)
    return min(1.0, 2 * min(at_least, at_most) / len(sums))


def slow_holm(p):
    order = sorted(range(len(p)), key=lambda i: p[i])
    corrected, highest = [0.0] * len(p), 0.0
    for step, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - step) * p[i]))
        corrected[i] = highest
    return corrected


def slow_bca(values, level, resamples=9999):
    """Efron and Tibshirani, "An Introduction to the Bootstrap", equations 14.9 to 14.15."""
    normal = NormalDist()
    n, mean = len(values), float(np.mean(values))
    generator = np.random.default_rng(0)
    means = np.sort([np.mean(generator.choice(values, n)) for _ in range(resamples)])
    bias = normal.inv_cdf((np.sum(means < mean) + np.sum(means <= mean)) / (2 * resamples))
    jackknife = [float(np.mean(np.delete(values, i))) for i in range(n)]
    center = np.mean(jackknife)
    third = sum((center - value) ** 3 for value in jackknife)
    second = sum((center - value) ** 2 for value in jackknife)
    acceleration = third / (6 * second**1.5)
    ends = []
    for tail in ((1 - level) / 2, (1 + level) / 2):
        z = bias + normal.inv_cdf(tail)
        ends.append(float(np.quantile(means, normal.cdf(bias + z / (1 - acceleration * z)))))
    return ends


@pytest.mark.parametrize("count", [1, 2, 3, 6, 9])
def test_the_sign_flip_test_counts_all_flips(count):
    values = np.random.default_rng(count).normal(0.5, 1, (3, count)).round(1)  # with ties
    expected = [slow_sign_flip_p(row) for row in values]
    np.testing.assert_allclose(sign_flip_p(values), expected, rtol=1e-12)


@pytest.mark.parametrize("count", range(1, 13))
def test_no_p_value_is_below_the_smallest(count):
    assert sign_flip_p(np.arange(1.0, count + 1)) == smallest_p(count) == min(1, 2 / 2**count)


def test_with_many_seeds_flips_are_drawn_always_the_same():
    values = np.arange(1.0, 21)
    assert sign_flip_p(values) == sign_flip_p(values) == smallest_p(20) < 2e-4
    borderline = np.random.default_rng(3).normal(0.45, 1, 15)
    assert sign_flip_p(borderline) == pytest.approx(slow_sign_flip_p(borderline), abs=0.01)


@pytest.mark.parametrize("methods", [1, 2, 8])
def test_holm_agrees_with_the_loop(methods):
    p = np.random.default_rng(0).uniform(0, 0.2, (50, methods)).round(2)  # with ties
    np.testing.assert_allclose(holm(p), [slow_holm(row) for row in p.tolist()], rtol=1e-12)


def test_holm_of_a_textbook_example():
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02])


@pytest.mark.parametrize("level", [0.95, 0.99375])
def test_the_interval_agrees_with_the_equations(level):
    values = np.random.default_rng(5).gamma(2.0, 1.0, 10)  # skewed: a plain bootstrap differs
    low, high = bca_interval(values, level)
    np.testing.assert_allclose([low, high], slow_bca(values, level), atol=0.06)
    means = np.random.default_rng(0).choice(values, (9999, 10)).mean(axis=1)
    assert high > np.quantile(means, (1 + level) / 2) + 0.1


def test_intervals_of_several_methods_are_those_of_each():
    values = np.random.default_rng(0).normal(0, 1, (4, 6))
    low, high = bca_interval(values, 0.95)
    for i, row in enumerate(values):
        np.testing.assert_allclose((low[i], high[i]), bca_interval(row, 0.95), atol=0.05)


def test_degenerate_differences_have_an_interval_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert bca_interval(np.full(5, 0.3), 0.95) == (0.3, 0.3)
        low, high = bca_interval(np.array([[0.0] * 4, [1.0, 2.0, 3.0, 4.0]]), 0.95)
        assert (low[0], high[0]) == (0, 0) and 1 < low[1] < 2.5 < high[1] < 4
        assert bca_interval(np.array([70.1 - 70.0, 60.1 - 60.0, 50.1 - 50.0]), 0.95)[0] == pytest.approx(0.1)
        for count in (0, 1, 2):
            assert np.isnan(bca_interval(np.arange(float(count)), 0.95)).all()


def test_a_verdict_needs_the_test_and_the_interval():
    p = np.array([0.01, 0.01, 0.06, 0.01, 0.01, 0.05])
    low = np.array([0.1, -0.2, 0.1, -0.1, np.nan, 0.1])
    high = np.array([0.2, -0.1, 0.2, 0.2, np.nan, 0.2])
    none = np.zeros(6, dtype=bool)
    words = [GAIN, LOSS, NO_DIFFERENCE, NO_DIFFERENCE, NO_DIFFERENCE, NO_DIFFERENCE]
    assert judge(p, low, high, none).tolist() == words
    words[:2] = [LOSS, GAIN]
    assert judge(p, low, high, none, lower_is_better=True).tolist() == words
    assert set(judge(p, low, high, ~none)) == {TOO_FEW_SEEDS}


@pytest.mark.parametrize(
    ("methods", "enough"),
    # 2 / 2^n times the number of methods has to be below 0.05.
    [(1, 6), (2, 7), (4, 8), (8, 9)],
)
def test_too_few_seeds_is_said_where_no_result_could_have_been_a_verdict(methods, enough):
    for count, words in ((enough - 1, {TOO_FEW_SEEDS}), (enough, {GAIN})):
        same_sign = [np.arange(1.0, count + 1)] * methods
        assert {each.verdict for each in compare_family(same_sign)} == words


def test_a_method_with_few_seeds_does_not_hide_behind_others():
    many, few, none = np.arange(1.0, 11), np.arange(1.0, 7), np.array([])
    # Holm's last step asks for p < 0.05 alone, which six seeds can give; its step before does not.
    assert [each.verdict for each in compare_family([many, few])] == [GAIN, GAIN]
    assert [each.verdict for each in compare_family([many, few, few])] == [GAIN, *[TOO_FEW_SEEDS] * 2]
    unknown = compare_family([many, none])[1]
    assert unknown.verdict == TOO_FEW_SEEDS and unknown.count == 0 and math.isnan(unknown.mean)


def test_a_comparison_has_the_numbers_of_its_differences():
    values = [0.5, -0.25, 1.0, 0.75, 0.5, 0.25, 1.25]
    one, other = compare_family([values, [0.0] * 7])
    assert one.mean == pytest.approx(4 / 7) and one.std == pytest.approx(np.std(values, ddof=1))
    assert one.p == slow_sign_flip_p(values) and one.holm == 2 * one.p
    assert one.simultaneous[0] < one.interval[0] < one.mean < one.interval[1] < one.simultaneous[1]
    assert one.simultaneous == tuple(map(float, bca_interval(np.array(values), 0.975)))
    assert (other.p, other.interval, other.verdict) == (1, (0, 0), NO_DIFFERENCE)


def family_verdicts(differences, resamples):
    """Verdicts of many experiments (experiments, methods, seeds) at once, and those of the interval alone."""
    methods = differences.shape[-2]
    low, high = bca_interval(differences, simultaneous_level(methods), resamples=resamples)
    no = np.zeros(low.shape, dtype=bool)
    p = holm(sign_flip_p(differences))
    return judge(p, low, high, no), judge(np.zeros(low.shape), low, high, no)


def simulate(generator, experiments, methods, effect, count=10):
    """Differences of arms that share their control, as those of an experiment do."""
    scores = generator.normal(0, SPREAD / math.sqrt(2), (experiments, methods + 1, count))
    scores[:, 1:] += effect
    return scores[:, 1:] - scores[:, :1]


def test_an_effect_of_one_point_is_found_with_ten_seeds():
    """docs/experiments.md says: about four times of five."""
    verdicts, _ = family_verdicts(simulate(np.random.default_rng(1), 400, 1, effect=1.0), resamples=999)
    rate = (verdicts == GAIN).mean()
    print(f"power, one method: {rate:.3f}")
    assert 0.72 < rate < 0.85
    assert not (verdicts == LOSS).any()


def test_nothing_is_found_where_nothing_is():
    """200 experiments with eight methods each: any false verdict counts."""
    verdicts, interval_alone = family_verdicts(
        simulate(np.random.default_rng(2), 200, 8, effect=0.0), resamples=999
    )
    gains, false = (verdicts == GAIN).any(axis=-1).mean(), (verdicts != NO_DIFFERENCE).any(axis=-1).mean()
    alone = (interval_alone == GAIN).any(axis=-1).mean()
    print(f"any false gain: {gains:.3f}, any false verdict: {false:.3f}, by the interval alone: {alone:.3f}")
    assert gains <= ALPHA and false <= ALPHA
    # Why the test is asked too: the interval is too narrow with ten seeds.
    assert alone > ALPHA


@pytest.mark.slow
def test_the_rates_hold_as_released():
    """As the report calls it, 200 experiments with eight methods, of which the first alone has an effect."""
    false_gains, false, found = [], [], []
    shift = np.zeros((8, 1))
    shift[0] = 1.0
    for differences in simulate(np.random.default_rng(7), 200, 8, effect=shift):
        words = [each.verdict for each in compare_family(list(differences))]
        found.append(words[0] == GAIN)
        false_gains.append(GAIN in words[1:])
        false.append(set(words[1:]) != {NO_DIFFERENCE})
    rates = [float(np.mean(each)) for each in (false_gains, false, found)]
    print("any false gain {:.3f}, any false verdict {:.3f}, first found {:.3f}".format(*rates))
    assert rates[0] <= ALPHA and rates[1] <= ALPHA + 0.02
    assert 0.25 < rates[2] < 0.45
