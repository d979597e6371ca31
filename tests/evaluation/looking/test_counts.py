"""Boundary IoU, distributions of scores and the images of pairs of classes, against loops."""

import numpy as np
import pytest

from regseg_d2.evaluation.looking.boundaries import BoundaryCounts, near_contour
from regseg_d2.evaluation.looking.pair_images import PairImages
from regseg_d2.evaluation.looking.score_histogram import ScoreHistogram


def eroded(mask):
    """Pixels all of whose eight neighbours are in the mask; outside of the image nothing is."""
    height, width = mask.shape
    result = np.zeros_like(mask)
    for y in range(height):
        for x in range(width):
            result[y, x] = all(
                0 <= y + dy < height and 0 <= x + dx < width and mask[y + dy, x + dx]
                for dy in (-1, 0, 1)
                for dx in (-1, 0, 1)
            )
    return result


def boundary(mask, width):
    inner = mask
    for _ in range(width):
        inner = eroded(inner)
    return mask & ~inner


def blocks(rng, size, values, side=4):
    rows, columns = (-(-n // side) for n in size)
    coarse = rng.choice(values, size=(rows, columns))
    return coarse.repeat(side, axis=0).repeat(side, axis=1)[: size[0], : size[1]]


@pytest.mark.parametrize(
    ("size", "ratio", "width"), [((15, 18), 0.1, 2), ((12, 9), 0.01, 1), ((7, 20), 0.5, 11)]
)
def test_boundaries_of_all_classes(size, ratio, width):
    rng = np.random.default_rng(0)
    counts = BoundaryCounts(300, ratio)
    intersections, unions = np.zeros(300), np.zeros(300)
    for values in ([-1, 0, 1, 2], [0, 299, 5], [-1]):
        label, predicted = blocks(rng, size, values), blocks(rng, size, [0, 1, 2, 299])
        counts.add(label, predicted)
        valid = label >= 0
        for k in set(label[valid].tolist()) | set(predicted.ravel().tolist()):
            of_label, of_prediction = (boundary((m == k) & valid, width) for m in (label, predicted))
            intersections[k] += (of_label & of_prediction).sum()
            unions[k] += (of_label | of_prediction).sum()
    assert np.array_equal(counts.intersections, intersections)
    assert np.array_equal(counts.unions, unions)
    assert unions[[0, 1, 2, 5, 299]].all()


def test_near_contour_by_hand():
    classes = np.zeros((7, 9), dtype=np.int64)
    classes[:, 8] = -1
    near = near_contour(classes, 2)
    expected = np.ones((7, 9), dtype=bool)
    expected[2:5, 2:6] = False  # two pixels from the border, and from void
    expected[:, 8] = False  # void is in no mask
    assert np.array_equal(near, expected)


def add_scores(histogram, images, order):
    for number in order:
        histogram.add(*images[number])


def test_scores_are_counted_exactly_in_any_order():
    rng = np.random.default_rng(0)
    images = []
    for scale in (1e-6, 0.3, 40.0, 2.0):  # the range grows, and does not shrink again
        label, predicted = rng.integers(0, 3, 50), rng.integers(0, 3, 50)
        own, largest = (scale * rng.normal(size=50).astype(np.float32) for _ in range(2))
        images.append((label, predicted, own.astype(np.float32), largest.astype(np.float32)))
    images.append(tuple(array[:0] for array in images[0]))
    found = []
    for order in ([0, 1, 2, 3, 4], [2, 4, 3, 1, 0]):
        histogram = ScoreHistogram(3, 16)
        add_scores(histogram, images, order)
        found.append((histogram.edges, histogram.counts))
    (edges, counts), (other_edges, other_counts) = found
    assert np.array_equal(edges, other_edges) and np.array_equal(counts, other_counts)
    expected = np.zeros((3, 3, 16), dtype=int)
    for label, predicted, own, largest in images:
        for y, p, s, m in zip(label, predicted, own, largest, strict=True):

            def place(score):
                return next(b for b in range(16) if edges[b] <= score < edges[b + 1])

            if y == p:
                expected[0, y, place(s)] += 1
            else:
                expected[1, p, place(m)] += 1
                expected[2, y, place(s)] += 1
    assert np.array_equal(counts, expected)
    # The narrowest bins that hold all scores.
    every = np.concatenate([np.concatenate(image[2:]) for image in images])
    assert edges[0] <= every.min() and every.max() < edges[-1]
    assert not (edges[0] / 2 <= every.min() and every.max() < edges[-1] / 2)


def test_a_score_on_a_border_is_in_the_bin_above():
    histogram = ScoreHistogram(1, 8)
    zeros = np.zeros(3, dtype=np.int64)
    scores = np.array([-2.0, 0.0, 1.0], dtype=np.float32)
    histogram.add(zeros, zeros, scores, scores)
    assert histogram.edges.tolist() == [-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0]
    assert histogram.counts[0, 0].tolist() == [1, 0, 0, 0, 1, 0, 1, 0]
    scores = np.array([2.0], dtype=np.float32)
    histogram.add(zeros[:1], zeros[:1], scores, scores)
    assert histogram.edges[-1] == 4.0
    assert histogram.counts[0, 0].tolist() == [0, 0, 1, 0, 1, 1, 1, 0]


def test_images_of_pairs():
    rng = np.random.default_rng(0)
    pairs = PairImages(4, 3)
    confusions = [rng.poisson(1.0, (4, 4)) for _ in range(20)]
    for number, confusion in enumerate(confusions):
        pairs.add(confusion, number)
    for a in range(4):
        for b in range(4):
            ranked = sorted((-int(c[a, b]), n) for n, c in enumerate(confusions) if c[a, b])[:3]
            assert pairs.images[a, b].tolist() == [n for _, n in ranked]
            assert pairs.counts[a, b].tolist() == [-c for c, _ in ranked]
    few = PairImages(2, 3)
    few.add(np.array([[5, 0], [2, 0]]), 7)
    assert few.images.tolist() == [[[7, -1, -1], [-1] * 3], [[7, -1, -1], [-1] * 3]]
    assert few.counts[1].tolist() == [[2, 0, 0], [0, 0, 0]]
