"""Curves over a training: losses, diagnostics, scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from regseg_d2.drawing.figures.style import look, note, panel_grid, runs_legend, styled, title

SMOOTHED = 0.05  # share of a curve's points that a point of its mean is made of
_FEW_POINTS = 30  # a curve of fewer is not smoothed, and its points are marked


def curve_groups(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, list[str]]:
    """Sorts what training recorded: ``losses``, and what has a slash in its name by the part before it.

    Args:
        runs: rows of ``metrics.json`` of each run.

    Returns:
        Keys by group, in the order in which they were recorded; without what is neither (times, learning
        rate) and without scores, whose names may have slashes of class names.
    """
    groups: dict[str, list[str]] = {}
    for key in dict.fromkeys(key for rows in runs.values() for row in rows for key in row):
        if key == "total_loss" or key.startswith("loss_"):
            groups.setdefault("losses", []).append(key)
        elif "/" in key and "sem_seg/" not in key:
            groups.setdefault(key.rsplit("/", 1)[0], []).append(key)
    return groups


def curve_of(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns iterations and values of a key, (P,) each; rows without a number for it are left out.

    A resumed run records iterations again: the last row of an iteration counts.
    """
    points = {
        int(row["iteration"]): float(row[key])
        for row in rows
        if "iteration" in row and isinstance(row.get(key), (int, float))
    }
    iterations = np.array(sorted(points), dtype=np.int64)
    return iterations, np.array([points[i] for i in iterations.tolist()], dtype=np.float64)


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Returns the mean of the values at most ``window // 2`` away, fewer at the ends; NaN are left out."""
    half = window // 2
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    places = np.arange(len(values))
    last, first = np.minimum(places + half + 1, len(values)), np.maximum(places - half, 0)
    number = counts[last] - counts[first]
    return np.divide(sums[last] - sums[first], number, out=np.full(len(values), np.nan), where=number > 0)


@styled
def learning_curves(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], keys: Sequence[str], *, log: bool = False
) -> Figure:
    """Draws what training recorded, a panel a key, a line a run.

    Thin lines are the recorded values, thick ones their running mean over 5 % of the points; values that
    are not finite are gaps. Runs without a key have no line in its panel.

    Args:
        runs: rows of ``metrics.json`` of each run.
        keys: what to draw, such as one group of :func:`curve_groups`.
        log: whether the values' axes are logarithmic.

    Raises:
        ValueError: there is no run or no key.
    """
    if not runs or not keys:
        raise ValueError("learning curves are drawn of one run and one key at least")
    figure, panels = panel_grid(len(keys), 3, (2.3, 1.6), (0.3, 0.6), sharex=True)
    smooth = False
    for place, (axes, key) in enumerate(zip(panels, keys, strict=True)):
        for number, rows in enumerate(runs.values()):
            iterations, values = curve_of(rows, key)
            values = np.where(np.isfinite(values), values, np.nan)
            color, line = look(number)["color"], look(number)["linestyle"]
            if len(values) < _FEW_POINTS:
                axes.plot(iterations, values, line, color=color, linewidth=1.2, marker="o", markersize=2.5)
                continue
            smooth = True
            window = max(3, int(SMOOTHED * len(values)))
            axes.plot(iterations, values, color=color, linewidth=0.4, alpha=0.3)
            axes.plot(iterations, running_mean(values, window), line, color=color, linewidth=1.3)
        if log:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.tick_params(labelsize=6.5, labelbottom=place + 3 >= len(keys))
        if place + 3 >= len(keys):
            axes.set_xlabel("iteration", fontsize=7.5)
        title(axes, key, 2.1, 7.5)
    runs_legend(figure, list(runs), lines=True)
    if smooth:
        note(
            figure,
            f"Thin: recorded values. Thick: their running mean over {100 * SMOOTHED:.0f} % of the points.",
        )
    return figure
