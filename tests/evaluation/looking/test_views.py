"""Views of images: cells, labels and predictions at their centers, and what is refused."""

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

from regseg_d2.common.errors import ConfigError, DatasetError
from regseg_d2.evaluation.looking.views import View
from tests.evaluation.looking.small_views import make_view


def exact_center(cell, side):
    """The pixel at a cell's center, in fractions."""
    return math.floor((Fraction(cell) + Fraction(1, 2)) * side)


@pytest.mark.parametrize(
    ("size", "cells", "padded"),
    [
        ((12, 16), (3, 4), (12, 16)),  # strides without a remainder
        ((11, 13), (3, 4), (12, 16)),  # padding whose cells have centers in the image
        ((9, 9), (3, 4), (12, 16)),  # and others that have not
        ((14, 9), (4, 7), (14, 9)),  # strides that are no integers
        ((5, 4), (10, 8), (5, 4)),  # cells smaller than pixels
        ((683, 7), (86, 3), (683, 7)),
    ],
)
def test_labels_and_predictions_at_the_centers_of_cells(size, cells, padded):
    sides = [Fraction(whole, count) for whole, count in zip(padded, cells, strict=True)]
    view = make_view(size, cells, tuple(map(float, sides)))
    predicted = view.scores.numpy().argmax(axis=0)
    assert np.array_equal(view.predicted.numpy(), predicted)
    for i in range(cells[0]):
        for j in range(cells[1]):
            y, x = exact_center(i, sides[0]), exact_center(j, sides[1])
            inside = y < size[0] and x < size[1]
            assert int(view.cell_labels[i, j]) == (int(view.label[y, x]) if inside else -1)
            assert int(view.cell_predictions[i, j]) == (int(predicted[y, x]) if inside else -1)


def test_cells_of_pixels():
    sides = (Fraction(12, 5), Fraction(5, 3))
    view = make_view((12, 14), (5, 9), tuple(map(float, sides)))
    ys, xs = (grid.ravel() for grid in np.mgrid[:12, :14])
    rows, columns = view.cell_of(ys, xs)
    for y, x, row, column in zip(ys.tolist(), xs.tolist(), rows.tolist(), columns.tolist(), strict=True):
        exact = [(Fraction(place) + Fraction(1, 2)) / side for place, side in zip((y, x), sides, strict=True)]
        assert (row, column) == tuple(map(math.floor, exact))
        assert view.cell_of(y, x) == (row, column)


def test_the_last_pixel_is_in_the_last_cell():
    # Cells that end in the middle of it.
    view = make_view((8, 8), (5, 5), (1.5, 1.5))
    assert view.cell_of(7, 7) == (4, 4)
    rows, columns = view.cell_of(np.array([7]), np.array([0]))
    assert (rows.tolist(), columns.tolist()) == ([4], [0])


def test_what_does_not_fit_is_refused():
    view = make_view((6, 8), (3, 4), (2.0, 2.0), num_classes=3)
    wrong = [
        ({"label": view.label.int()}, DatasetError, r"label is int32 \(6, 8\); expected int64"),
        ({"label": view.label[:0]}, DatasetError, r"label is int64 \(0, 8\)"),
        (
            {"pixels": view.pixels[:5]},
            DatasetError,
            r"pixels are uint8 \(5, 8, 3\); expected uint8 \(6, 8, 3\)",
        ),
        ({"pixels": view.pixels / 255}, DatasetError, "pixels are float64"),
        (
            {"label": view.label + 1},
            DatasetError,
            "from 0 to 3, and the network has 3 classes; expected 0 to 2",
        ),
        ({"label": view.label - 1}, DatasetError, "from -2 to 1"),
        (
            {"scores": view.scores[:, :3]},
            ConfigError,
            r"scores are float32 \(3, 3, 8\); expected float32 \(K, 6, 8\)",
        ),
        ({"scores": view.scores.double()}, ConfigError, "scores are float64"),
        (
            {"feature": view.feature.clone().requires_grad_()},
            ConfigError,
            r"have a gradient.*torch.no_grad\(\)",
        ),
        ({"feature": view.feature[None]}, ConfigError, r"feature is float32 \(1, 4, 3, 4\)"),
        (
            {"cell_size": (2.0, 1.8)},
            ConfigError,
            "3 x 4 cells of 2 x 1.8 pixels do not cover an image of 6 x 8",
        ),
        ({"cell_size": (math.nan, 2.0)}, ConfigError, "do not cover"),
    ]
    for change, error, message in wrong:
        with pytest.raises(error, match="^Image 'a/b.png'.*" + message):
            replace(view, **change)


def test_names_cannot_steer_the_terminal():
    view = make_view((6, 8), (3, 4), (2.0, 2.0))
    with pytest.raises(ConfigError, match=r"'\\x1b\[31m'"):
        replace(view, name="\x1b[31m", cell_size=(1.0, 1.0))


def test_the_first_of_several_largest_scores():
    scores = torch.zeros(4, 2, 2)
    view = View(
        "", np.zeros((2, 2, 3), np.uint8), torch.zeros(2, 2).long(), scores, torch.ones(1, 1, 1), (2, 2)
    )
    assert view.predicted.tolist() == [[0, 0], [0, 0]]
    assert view.predicted.dtype == torch.int64
