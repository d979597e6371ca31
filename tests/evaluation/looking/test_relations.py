"""Relations of classes and pixels, against loops over pairs."""

import math

import numpy as np
import pytest
import torch

from regseg_d2.evaluation.looking.relations import (
    calibration_maps,
    cosine_matrix,
    dependency_map,
    intra_inter_ratios,
    mean_cosines,
    relation_map,
)


def cosine(a, b):
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def test_class_dependency_and_cosines():
    centers = np.random.default_rng(0).normal(size=(4, 3))
    centers[2] = math.nan
    for name, matrix, product in (
        ("dots", dependency_map(centers), lambda a, b: float(a @ b)),
        ("cosines", cosine_matrix(centers), cosine),
    ):
        for i in range(4):
            for j in range(4):
                if 2 in (i, j):
                    assert math.isnan(matrix[i, j]), name
                else:
                    assert matrix[i, j] == pytest.approx(product(centers[i], centers[j]), rel=1e-12), name
    assert cosine_matrix(np.array([[0.0, 0.0], [3.0, 0.0]])).tolist() == [[0.0, 0.0], [0.0, 1.0]]


def test_mean_cosines_of_all_pairs():
    rng = np.random.default_rng(0)
    pixels = [rng.normal(size=(size, 3)) for size in (5, 2, 0, 1)]
    sums = np.array([sum((x / math.sqrt(x @ x) for x in own), np.zeros(3)) for own in pixels])
    found = mean_cosines(sums, np.array([len(own) for own in pixels]))
    for i, first in enumerate(pixels):
        for j, second in enumerate(pixels):
            pairs = [cosine(a, b) for a in first for b in second]
            if pairs:
                assert found[i, j] == pytest.approx(sum(pairs) / len(pairs), rel=1e-12)
            else:
                assert math.isnan(found[i, j])


@pytest.mark.parametrize("normalized", [True, False])
def test_relation_maps(normalized):
    feature = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    feature[:, 3, 4] = 0.0
    found = relation_map(torch.from_numpy(feature).requires_grad_(), (2, 1), normalized)
    assert found.shape == (4, 5) and found[3, 4] == 0.0
    chosen = feature[:, 2, 1].astype(float)
    for i in range(4):
        for j in range(5):
            if (i, j) != (3, 4):
                other = feature[:, i, j].astype(float)
                expected = cosine(chosen, other) if normalized else chosen @ other
                assert found[i, j] == pytest.approx(expected, rel=1e-5, abs=1e-6)


def reference_calibration(feature, labels, predicted):
    """RCH's Eq. 6 and 7 with loops over the pixels of one image."""
    pixels = np.moveaxis(feature, 0, -1)
    cells = [(i, j) for i in range(labels.shape[0]) for j in range(labels.shape[1])]
    phi, psi = np.full(labels.shape, math.nan), np.full(labels.shape, math.nan)
    for cell in cells:
        k = labels[cell]
        if k < 0:
            continue
        missed = [c for c in cells if labels[c] == k and predicted[c] != k]
        taken = [c for c in cells if labels[c] not in (k, -1) and predicted[c] == k]
        own = pixels[cell]
        phi[cell] = 1 - np.mean([cosine(own, pixels[c]) for c in missed]) if missed else 0.0
        psi[cell] = 1 + np.mean([cosine(own, pixels[c]) for c in taken]) if taken else 0.0
    return phi, psi


def test_calibration_maps():
    rng = np.random.default_rng(0)
    feature = rng.normal(size=(3, 4, 6))
    labels = rng.choice([-1, 0, 1, 4], size=(4, 6))
    predicted = np.where(rng.random((4, 6)) < 0.5, labels, rng.choice([0, 1, 2], size=(4, 6)))
    predicted[labels == 4] = 4  # no FN
    predicted[0, 0], labels[0, 0] = 1, -1  # a void pixel is nobody's FP
    found = calibration_maps(*map(torch.from_numpy, (feature, labels, predicted)))
    expected = reference_calibration(feature, labels, predicted)
    for mine, reference in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, reference, rtol=1e-10)
        assert 0 < np.nanmax(mine) <= 2
    assert (found[0][labels == 4] == 0).all()


def test_calibration_maps_without_errors_or_labels():
    feature, labels = torch.randn(3, 2, 2), torch.tensor([[0, 1], [1, -1]])
    for values in calibration_maps(feature, labels, labels.clamp(min=0)):
        assert np.array_equal(values, [[0.0, 0.0], [0.0, math.nan]], equal_nan=True)
    for values in calibration_maps(feature, torch.full((2, 2), -1), labels):
        assert np.isnan(values).all()


def test_intra_inter_ratios():
    rng = np.random.default_rng(0)
    pixels = [rng.normal(size=(size, 3)) + shift for size, shift in ((6, 0), (4, 5), (0, 0), (3, -9))]
    counts = np.array([len(own) for own in pixels], dtype=float)
    sums = np.array([own.sum(axis=0) for own in pixels])
    squares = np.array([(own**2).sum() for own in pixels])
    found = intra_inter_ratios(counts, sums, squares)
    means = {k: own.mean(axis=0) for k, own in enumerate(pixels) if len(own)}
    for k, own in enumerate(pixels):
        if not len(own):
            assert math.isnan(found[k])
            continue
        intra = math.sqrt(np.mean([np.sum((x - means[k]) ** 2) for x in own]))
        inter = np.mean([np.linalg.norm(means[k] - other) for j, other in means.items() if j != k])
        assert found[k] == pytest.approx(intra / inter, rel=1e-10)
    np.testing.assert_allclose(intra_inter_ratios(counts, 10 * sums, 100 * squares), found, rtol=1e-10)
    alone = intra_inter_ratios(counts * [1, 0, 0, 0], sums, squares)
    assert np.isnan(alone).all()
