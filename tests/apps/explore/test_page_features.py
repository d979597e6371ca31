"""Features of the page against float64 loops over cells."""

import base64
import math
import zlib

import numpy as np
import pytest

from regseg_d2.apps.explore.page.features import (
    CHECKED_CELLS,
    LEVELS,
    Moments,
    QuantizedRun,
    directions_within,
    quantized,
    unit_features,
)


def cosine(a, b):
    """Of two lists of numbers; 0 where one of them is zero."""
    dot = sum(float(x) * float(y) for x, y in zip(a, b, strict=True))
    lengths = math.sqrt(sum(float(x) ** 2 for x in a)) * math.sqrt(sum(float(y) ** 2 for y in b))
    return dot / lengths if lengths else 0.0


def cosines_of(feature):
    cells = [feature[:, row, column] for row in range(feature.shape[1]) for column in range(feature.shape[2])]
    return np.array([[cosine(a, b) for b in cells] for a in cells])


def features_of(count, channels=12, size=(4, 6), rank=None, seed=0):
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(channels, rank or channels)) * 0.6 ** np.arange(rank or channels)
    return [
        np.einsum("cr,rhw->chw", mixing, rng.normal(size=(rank or channels, *size))).astype(np.float32)
        for _ in range(count)
    ]


def directions_of(features):
    moments = Moments()
    for feature in features:
        moments.add(feature)
    return moments.directions()


def quantized_run(features):
    run = QuantizedRun(*directions_of(features))
    for feature in features:
        run.add(feature)
    return run


def coordinates_of(packed):
    """The int8 that the page has the differences of."""
    data = zlib.decompress(base64.b64decode(packed["data"]), -zlib.MAX_WBITS)
    values, last = [], 0
    for difference in data:
        last = (last + difference) % 256
        values.append(last)
    return np.array(values, np.uint8).astype(np.int8)


def page_cosines(run, image, directions, cells):
    """What the page's script computes: dot products of the int8 in steps of 1 / 127, at most 1."""
    packed = run.packed(image, directions)
    assert packed["type"] == "i1"
    steps = coordinates_of(packed).reshape(directions, cells).astype(float) / LEVELS
    return np.clip(steps.T @ steps, -1, 1)


def test_cosines_of_all_directions_are_those_of_float64_but_for_rounding():
    features = features_of(3)
    run = quantized_run(features)
    D = len(run.shares)
    assert D == 12
    # Coordinates are off by half a step at most, and sum up to sqrt(D) at most in a vector of length one.
    bound = 2 * math.sqrt(D) * 0.5 / LEVELS + D * (0.5 / LEVELS) ** 2
    for i, feature in enumerate(features):
        off = np.abs(page_cosines(run, i, D, 24) - cosines_of(feature))
        assert 0 < off.max() < bound
    assert run.share_kept(D) == pytest.approx(1)


def test_the_error_that_is_told_is_the_one_that_is_there():
    features = features_of(3)
    assert features[0][0].size <= CHECKED_CELLS  # all pairs are checked
    run = quantized_run(features)
    for D in (1, 5, 12):
        off = [page_cosines(run, i, D, 24) - cosines_of(feature) for i, feature in enumerate(features)]
        assert run.error(D) == pytest.approx(np.sqrt(np.mean(np.square(off))))
    assert run.error(1) > 4 * run.error(12)
    assert math.isnan(run.error(0))


def test_the_share_that_is_told_is_that_of_the_squared_lengths():
    features = features_of(2)
    directions, shares = directions_of(features)
    np.testing.assert_allclose(directions @ directions.T, np.eye(12), atol=1e-12)
    cells = np.concatenate([unit_features(feature) for feature in features], axis=1)
    np.testing.assert_allclose(np.linalg.norm(cells, axis=0), 1)
    for D in (1, 4, 12):
        lengths = [sum(float(c) ** 2 for c in directions[:D] @ cell) for cell in cells.T]
        assert shares[:D].sum() == pytest.approx(np.mean(lengths))


def test_no_other_directions_keep_the_cosines_better():
    features = features_of(2)
    directions, _ = directions_of(features)
    cells = np.concatenate([unit_features(feature) for feature in features], axis=1)
    true = cells.T @ cells

    def error(onto):
        return np.square(cells.T @ onto.T @ onto @ cells - true).sum()

    rng = np.random.default_rng(1)
    for D in (1, 3, 6):
        others = [np.linalg.qr(rng.normal(size=(12, D)))[0].T for _ in range(20)]
        near = [np.linalg.qr((directions[:D] + 0.05 * rng.normal(size=(D, 12))).T)[0].T for _ in range(20)]
        assert error(directions[:D]) < min(error(other) for other in others + near)


def test_fewer_directions_are_the_first_of_more():
    features = features_of(1)
    run = quantized_run(features)
    moments = Moments()
    moments.add(features[0])
    coordinates = quantized(features[0], moments.directions()[0])
    for D in (1, 7, 12):
        np.testing.assert_array_equal(coordinates_of(run.packed(0, D)), coordinates[:D].ravel())
    assert coordinates_of(run.packed(0, 0)).size == 0


def test_features_of_length_zero_are_like_nothing():
    feature = features_of(1)[0]
    feature[:, 0, 0] = 0
    run = quantized_run([feature, np.zeros_like(feature)])
    np.testing.assert_array_equal(page_cosines(run, 0, 12, 24)[0], 0)
    np.testing.assert_array_equal(page_cosines(run, 1, 12, 24), 0)
    assert run.share_kept(12) == pytest.approx(1)
    assert quantized_run([np.zeros((3, 2, 2), np.float32)]).share_kept(1) == 0


def test_runs_get_directions_in_turn_as_long_as_there_is_room():
    wide, narrow = quantized_run(features_of(2)), quantized_run(features_of(2, channels=5, rank=2, seed=3))
    total = sum(run.length_of(d) for run in (wide, narrow) for d in range(len(run.shares)))
    assert directions_within([wide, narrow], total) == [12, 5]
    assert directions_within([wide, narrow], 0) == [0, 0]
    for budget in range(0, total, 97):
        kept = directions_within([wide, narrow], budget)
        used = sum(run.length_of(d) for run, D in zip((wide, narrow), kept, strict=True) for d in range(D))
        assert used <= budget
        # Each was the poorest when it got its last direction.
        for run, other, D, E in ((wide, narrow, kept[0], kept[1]), (narrow, wide, kept[1], kept[0])):
            if D and len(other.shares) > E:
                assert run.share_kept(D - 1) <= other.share_kept(E)
