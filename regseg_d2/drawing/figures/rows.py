"""A row a class, in as many columns as keep 150 names legible."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from regseg_d2.drawing.figures.style import WIDTH, new_figure
from regseg_d2.drawing.figures.texts import cut

MOST_ROWS = 40  # of a column; with more than four columns' worth of classes the columns grow
_MOST_COLUMNS = 4


def class_rows(
    names: Sequence[str], order: np.ndarray, row: float, quantity: str, runs: int
) -> tuple[Figure, list[tuple[Axes, np.ndarray]]]:
    """Returns a figure with a row a class from the top down, and the columns that it is split into.

    Args:
        names: K class names.
        order: of the classes, (K,) integers.
        row: height of a row in inches.
        quantity: what the horizontal axis of all columns shows.
        runs: lines that the legend has at most.

    Returns:
        The figure; and for each column its panel and the classes in it: the n-th is at ``y = n``.
    """
    columns = min(_MOST_COLUMNS, math.ceil(len(order) / MOST_ROWS))
    most = math.ceil(len(order) / columns)
    figure = new_figure({1: 4.4, 2: 6.4}.get(columns, WIDTH), 0.6 + 0.15 * runs + most * row)
    panels = list(figure.subplots(1, columns, sharex=True, squeeze=False).flat)
    points = min(7.0, 72 * row * 0.8)
    split = [order[start : start + most] for start in range(0, len(order), most)]
    for axes, classes in zip(panels, split, strict=True):
        axes.set_yticks(range(len(classes)), [cut(names[k], 18) for k in classes], fontsize=points)
        axes.set_ylim(most - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0, pad=2)
        axes.tick_params(axis="x", labelsize=6.5)
        axes.spines["left"].set_visible(False)
    if columns == 1:
        panels[0].set_xlabel(quantity, fontsize=8)
    else:
        figure.supxlabel(quantity, fontsize=8)
    return figure, list(zip(panels, split, strict=True))


def checked_scores(
    values: Mapping[str, np.ndarray], names: Sequence[str], dimensions: int
) -> dict[str, np.ndarray]:
    """Returns each run's numbers as float64.

    Raises:
        ValueError: there is no run or no class, or the last of so many dimensions is not that of the classes.
    """
    if not values or not names:
        raise ValueError("classes are drawn of one run and one class at least")
    for run, array in values.items():
        if np.ndim(array) != dimensions or np.shape(array)[-1] != len(names):
            raise ValueError(f"the numbers of {run!r} are {np.shape(array)}; there are {len(names)} classes")
    return {run: np.asarray(array, dtype=np.float64) for run, array in values.items()}


def highest_first(values: np.ndarray) -> np.ndarray:
    """Returns the order of classes by their value, (K,); those without a value (NaN) are last."""
    return np.argsort(np.where(np.isnan(values), np.inf, -values), kind="stable")
