"""Projections: what they keep, that networks can be compared, and that they come out the same again."""

import sys

import numpy as np
import pytest

from regseg_d2.common.errors import ConfigError, UserError
from regseg_d2.evaluation.looking.projections import project

AVAILABLE = ["tsne", "pca"]


def clusters(channels=8, each=12, seed=0):
    """Three classes far from each other."""
    rng = np.random.default_rng(seed)
    centers = 20 * np.eye(3, channels)
    features = np.concatenate([center + rng.normal(size=(each, channels)) for center in centers])
    return features.astype(np.float32), np.repeat(np.arange(3), each)


def turned(features, channels, seed=1):
    """The same points in a space of more dimensions, turned and moved."""
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(channels, channels)))[0]
    return features.astype(float) @ basis[: features.shape[1]] + 3.0


def test_principal_components():
    features, _ = clusters()
    (positions,) = project([features], "pca")
    centered = features.astype(float) - features.astype(float).mean(axis=0)
    values, vectors = np.linalg.eigh(centered.T @ centered)
    for axis in range(2):
        expected = centered @ vectors[:, np.argsort(-values)[axis]]
        sign = np.sign(expected @ positions[:, axis])
        np.testing.assert_allclose(sign * positions[:, axis], expected, atol=1e-9 * np.abs(expected).max())


def test_a_network_that_differs_by_a_turn_looks_the_same():
    features, _ = clusters()
    first, second = project([features, turned(features, 11)], "pca")
    np.testing.assert_allclose(second, first, atol=1e-6)


@pytest.mark.parametrize("method", AVAILABLE)
def test_classes_stay_apart_and_networks_are_turned_onto_the_first(method):
    features, classes = clusters()
    rng = np.random.default_rng(5)
    other = turned(features + rng.normal(size=features.shape), 11)
    first, second = project([features, other], method)
    for positions in (first, second):
        assert positions.shape == (36, 2) and positions.dtype == np.float64
        np.testing.assert_allclose(positions.mean(axis=0), 0, atol=1e-9 * np.abs(positions).max())
        distances = np.linalg.norm(positions[:, None] - positions, axis=2)
        np.fill_diagonal(distances, np.inf)
        assert np.array_equal(classes[distances.argmin(axis=1)], classes)
    # No turn, with or without a mirror, brings the second nearer to the first.
    least = np.sum((first - second) ** 2)
    for angle in np.linspace(0, 2 * np.pi, 73):
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        for mirror in (1, -1):
            assert np.sum((first - second @ turn * [1, mirror]) ** 2) >= least * (1 - 1e-9)


@pytest.mark.parametrize("method", AVAILABLE)
def test_the_same_again(method):
    features, _ = clusters()
    runs = [features, turned(features, 11)]
    before = [run.copy() for run in runs]
    again = [project(runs, method, seed=3) for _ in range(2)]
    for one, other in zip(*again, strict=True):
        assert one.tobytes() == other.tobytes()
    assert all(np.array_equal(one, other) for one, other in zip(runs, before, strict=True))


@pytest.mark.parametrize("method", AVAILABLE)
@pytest.mark.parametrize(
    "features",
    [
        np.ones((5, 1)),
        np.zeros((9, 4)),
        np.arange(12.0)[:, None],
        np.random.default_rng(0).normal(size=(6, 700)),
    ],
)
def test_few_points_and_flat_features(method, features):
    (positions,) = project([features.astype(np.float32)], method)
    assert positions.shape == (len(features), 2) and np.isfinite(positions).all()


def test_umap():
    pytest.importorskip("umap")
    features, classes = clusters(each=20)
    runs = [features, turned(features, 11)]
    first, second = project(runs, "umap", seed=3)
    for positions in (first, second):
        distances = np.linalg.norm(positions[:, None] - positions, axis=2)
        np.fill_diagonal(distances, np.inf)
        assert np.array_equal(classes[distances.argmin(axis=1)], classes)
    again = project(runs, "umap", seed=3)
    assert again[1].tobytes() == second.tobytes()


@pytest.mark.parametrize(
    ("sizes", "method", "message"),
    [
        ([6], "lda", "'lda'; expected one of tsne, pca, umap"),
        ([4, 4], "pca", "4 points to project.* 5 or more"),
        ([6, 7], "tsne", "6 and 7 points to project; expected the same number"),
        ([], "tsne", "no points"),
    ],
)
def test_what_cannot_be_projected(sizes, method, message):
    with pytest.raises(ConfigError, match=message):
        project([np.ones((size, 3)) for size in sizes], method)


@pytest.mark.parametrize(
    ("module", "method", "cure"),
    [
        ("umap", "umap", "pip install umap-learn"),
        ("sklearn.manifold", "tsne", r"pip install 'regseg_d2\[explore\]'"),
    ],
)
def test_packages_that_are_missing_are_named(monkeypatch, module, method, cure):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=cure):
        project([clusters()[0]], method)
