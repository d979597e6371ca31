"""Matrices of classes: dependency, cosines and confusions, of one or several runs on one colour scale."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from regseg_d2.drawing.figures.scales import Scale, color_bar, color_scale, shared_scale
from regseg_d2.drawing.figures.style import (
    WIDTH,
    FigurePart,
    inches_wide,
    look,
    new_figure,
    note,
    runs_legend,
    styled,
    title,
)
from regseg_d2.drawing.figures.texts import balanced, cut, inline, letters_in

# With more classes the axes have numbers, and a panel below names the pairs that stand out.
MOST_NAMED = 30
MOST_WITH_NUMBERS = 15  # classes of a confusion matrix whose cells have their percentage written in them
NUM_PAIRS = 15
_NAME = 20  # letters of a class on an axis


@styled
def similarity_matrices(
    matrices: Mapping[str, np.ndarray], names: Sequence[str], quantity: str, *, diagonal: bool = True
) -> Figure:
    """Draws how similar classes are to each other, a panel a run.

    CAR's class dependency maps (Figure 4: dot products of class centers) and RCH's cosine matrices (Figure
    6). All runs share the colour scale: from the lowest to the highest value, or, where values are
    negative, the same distance to both sides of a white zero. With more than 30 classes the axes have
    numbers, and the 15 pairs of classes that are most similar in any run are named below.

    Args:
        matrices: (K, K) of each run, symmetric; NaN in rows and columns of absent classes.
        names: K class names.
        quantity: what the numbers are.
        diagonal: whether to show how similar a class is to itself; the scale is that of the others otherwise.

    Raises:
        ValueError: there is no run, or a matrix has another size.
    """
    shown = _checked(matrices, names)
    if not diagonal:
        for matrix in shown.values():
            np.fill_diagonal(matrix, np.nan)
    scale = shared_scale(shown.values())
    figure, above, below = _parts(len(shown), names)
    remark = "" if diagonal else "The diagonal, a class with itself, is left out."
    _draw_matrices(above, shown, names, scale, quantity, ("", ""), remark)
    if below is not None:
        pairs = np.triu(np.ones((len(names), len(names)), dtype=bool), 1)
        values = {run: np.where(pairs, matrix, np.nan) for run, matrix in shown.items()}
        _draw_pairs(below, values, names, "–", quantity, "pairs of classes that are most similar")
    return figure


@styled
def confusion_matrices(confusions: Mapping[str, np.ndarray], names: Sequence[str]) -> Figure:
    """Draws what the pixels of each class are taken for, a panel a run.

    Rows add up to 100 %. The colour scale is that of square roots, as its bar shows, so that a confusion of
    a percent is visible beside a diagonal near a hundred. Up to 15 classes, cells of 1 % and more have
    their number written in them. With more than 30 classes the axes have numbers, and the 15 confusions
    that are most frequent in any run are named below.

    Args:
        confusions: (K, K) counts of pixels of each run, [true, predicted].
        names: K class names.

    Raises:
        ValueError: there is no run, or a matrix has another size.
    """
    quantity = "share of the true class's pixels (%)"
    shown = {run: _percentages(matrix) for run, matrix in _checked(confusions, names).items()}
    scale = color_scale("Blues", PowerNorm(0.5, 0, 100))
    figure, above, below = _parts(len(shown), names)
    axis_names = ("true class", "predicted class")
    panels = _draw_matrices(above, shown, names, scale, quantity, axis_names)
    if len(names) <= MOST_WITH_NUMBERS:
        for axes, matrix in zip(panels, shown.values(), strict=True):
            _write_numbers(axes, matrix, scale)
    if below is not None:
        wrong = ~np.eye(len(names), dtype=bool)
        values = {run: np.where(wrong, matrix, np.nan) for run, matrix in shown.items()}
        _draw_pairs(
            below,
            values,
            names,
            "→",
            quantity,
            "confusions (true → predicted) that are most frequent",
        )
    return figure


def _checked(matrices: Mapping[str, np.ndarray], names: Sequence[str]) -> dict[str, np.ndarray]:
    size = (len(names), len(names))
    if not matrices or not names:
        raise ValueError("a matrix is drawn of one run and one class at least")
    for run, matrix in matrices.items():
        if np.shape(matrix) != size:
            raise ValueError(
                f"the matrix of {run!r} is {np.shape(matrix)}; {len(names)} names ask for {size}"
            )
    return {run: np.array(matrix, dtype=np.float64) for run, matrix in matrices.items()}


def _percentages(counts: np.ndarray) -> np.ndarray:
    totals = counts.sum(axis=1, keepdims=True)
    return 100 * np.divide(counts, totals, out=np.full_like(counts, np.nan), where=totals > 0)


def _grid(runs: int, classes: int) -> tuple[int, int]:
    columns = min(runs, 3 if classes <= 12 else 2)
    return math.ceil(runs / columns), columns


def _parts(runs: int, names: Sequence[str]) -> tuple[Figure, FigurePart, FigurePart | None]:
    """The figure, its part for matrices, and the one for pairs if there is one."""
    rows, columns = _grid(runs, len(names))
    named = len(names) <= MOST_NAMED
    width = WIDTH if columns > 1 else 4.6
    room = 0.35 + 0.058 * min(_NAME, max(len(name) for name in names)) if named else 0.45
    panel = (width - room - 0.6) / columns
    height = rows * (panel + 0.3) + room
    if named:
        figure = new_figure(width, height, "compressed")
        return figure, figure, None
    figure = new_figure(width, height + 0.75 + 0.14 * NUM_PAIRS)
    parts: Any = figure.subfigures(2, 1, height_ratios=[height, 0.75 + 0.14 * NUM_PAIRS])
    return figure, parts[0], parts[1]


def _draw_matrices(
    figure: FigurePart,
    matrices: Mapping[str, np.ndarray],
    names: Sequence[str],
    scale: Scale,
    quantity: str,
    axis_names: tuple[str, str],
    remark: str = "",
) -> list[Axes]:
    rows, columns = _grid(len(matrices), len(names))
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    panels = list(grid.flat)
    for axes in panels[len(matrices) :]:
        axes.remove()
    panels = panels[: len(matrices)]
    inches = inches_wide(figure) / columns - 0.5
    for number, (axes, (run, matrix)) in enumerate(zip(panels, matrices.items(), strict=True)):
        axes.imshow(matrix, cmap=scale.colors, norm=scale.norm, interpolation="nearest")
        axes.grid(False)
        title(axes, run, inches)
        last = number + columns >= len(matrices)
        _label_axes(axes, names, inches, axis_names, left=number % columns == 0, bottom=last)
    roots = isinstance(scale.norm, PowerNorm)
    color_bar(figure, panels, scale, quantity, [0, 1, 5, 10, 25, 50, 75, 100] if roots else ())
    absent = any(np.isnan(np.diag(matrix)).any() for matrix in matrices.values()) and not remark
    if absent or any(np.isnan(matrix).all(axis=1).any() for matrix in matrices.values()):
        remark = f"Grey: classes without a pixel. {remark}"
    if remark:
        note(figure, remark)
    return panels


def _label_axes(
    axes: Axes,
    names: Sequence[str],
    inches: float,
    axis_names: tuple[str, str],
    *,
    left: bool,
    bottom: bool,
) -> None:
    for spine in axes.spines.values():
        spine.set_visible(False)
    if len(names) <= MOST_NAMED:
        points = min(7.0, max(4.5, 0.8 * 72 * inches / len(names)))
        labels = [cut(name, _NAME) for name in names]
        axes.set_xticks(range(len(names)), labels, rotation=90, fontsize=points)
        axes.set_yticks(range(len(names)), labels, fontsize=points)
        axes.tick_params(length=0, pad=2, labelbottom=bottom, labelleft=left)
    else:
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(8, integer=True))
        axes.tick_params(length=2, labelsize=6.5, labelbottom=bottom, labelleft=left)
        axis_names = tuple(f"{name or 'class'} (number)" for name in axis_names)  # type: ignore[assignment]
    axes.set_ylabel(axis_names[0] if left else "", fontsize=8)
    axes.set_xlabel(axis_names[1] if bottom else "", fontsize=8)


def _write_numbers(axes: Axes, matrix: np.ndarray, scale: Scale) -> None:
    """Writes percentages into cells, black or white, as can be read better."""
    points = 6.0 if len(matrix) <= 12 else 4.5
    for row, column in zip(*np.nonzero(matrix >= 1), strict=True):
        value = matrix[row, column]
        red, green, blue, _ = scale.colors(scale.norm(value))
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
        axes.text(
            column,
            row,
            f"{value:.0f}",
            ha="center",
            va="center",
            fontsize=points,
            color="white" if dark else "black",
        )


def _draw_pairs(
    figure: FigurePart,
    values: Mapping[str, np.ndarray],
    names: Sequence[str],
    joined: str,
    quantity: str,
    meaning: str,
) -> None:
    """A row a pair of classes, the highest first, and in it the value of each run."""
    highest = np.max([np.where(np.isnan(v), -np.inf, v) for v in values.values()], axis=0)
    order = np.argsort(-highest, axis=None, kind="stable")[:NUM_PAIRS]
    pairs = [divmod(int(index), len(names)) for index in order if np.isfinite(highest.flat[index])]
    axes = figure.subplots()
    for number, matrix in enumerate(values.values()):
        parts = look(number) | {"linestyle": ""}
        axes.plot(
            [matrix[pair] for pair in pairs], range(len(pairs)), markersize=4.5, markeredgewidth=0, **parts
        )
    most = min(24, letters_in(0.45 * inches_wide(figure), 6.5) // 2 - 7)
    labels = [f"{inline(names[a], most)} ({a}) {joined} {inline(names[b], most)} ({b})" for a, b in pairs]
    axes.set_yticks(range(len(pairs)), labels, fontsize=6.5)
    axes.set_ylim(len(pairs) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=7)
    axes.set_xlabel(quantity, fontsize=8)
    where = " in any run" if len(values) > 1 else ""
    heading = balanced(f"The {len(pairs)} {meaning}{where}", letters_in(inches_wide(figure) - 0.1, 8))
    if len(values) > 1:
        runs_legend(figure, list(values), title=heading, title_fontsize=8)
    else:
        figure.suptitle(heading, fontsize=8)
