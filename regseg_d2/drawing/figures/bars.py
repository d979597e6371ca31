"""Scores of each class, with intervals over seeds."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from scipy import stats

from regseg_d2.drawing.figures.rows import checked_scores, class_rows, highest_first
from regseg_d2.drawing.figures.style import GREY, legend_above, look, styled


@styled
def class_scores(scores: Mapping[str, np.ndarray], names: Sequence[str], quantity: str = "IoU (%)") -> Figure:
    """Draws a score of each class as bars, a bar a run; the class that the first run does best is first.

    A bar is the mean over seeds. With two seeds and more it has Student's interval of 95 % for the mean, and
    dots are the seeds. The legend has each run's mean over the classes. From 41 classes on the rows stand in
    up to four columns.

    Args:
        scores: (S, K) of each run, S seeds; NaN for classes that are absent.
        names: K class names.
        quantity: what the scores are, with their unit.

    Raises:
        ValueError: there is no run, or the scores are not of K classes.
    """
    checked = checked_scores(scores, names, 2)
    means = {run: mean_and_interval(values)[0] for run, values in checked.items()}
    thickness = 0.8 / len(checked)
    row = max(0.12, 0.085 * len(checked)) if len(names) > 40 else max(0.15, 0.1 * len(checked) + 0.03)
    figure, columns = class_rows(
        names, highest_first(next(iter(means.values()))), row, quantity, len(checked)
    )
    handles, notes = [], []
    for number, values in enumerate(checked.values()):
        mean, half = mean_and_interval(values)
        color = _lighter(look(number)["color"])
        for axes, classes in columns:
            y = np.arange(len(classes)) - 0.4 + thickness * (number + 0.5)
            axes.barh(y, np.nan_to_num(mean[classes]), thickness, color=color, linewidth=0)
            if len(values) > 1:
                several = np.isfinite(half[classes])
                axes.errorbar(
                    mean[classes][several],
                    y[several],
                    xerr=half[classes][several],
                    fmt="none",
                    ecolor="black",
                    elinewidth=0.7,
                )
                seeds = values[:, classes]
                axes.plot(
                    seeds.ravel(),
                    np.tile(y, len(seeds)),
                    "o",
                    color="white",
                    markersize=1.8,
                    markeredgecolor="black",
                    markeredgewidth=0.3,
                )
            if number == 0:
                for place in np.flatnonzero(np.isnan([m[classes] for m in means.values()]).all(axis=0)):
                    axes.annotate("absent", (0, place), va="center", fontsize=5.5, color=GREY)
        handles.append(Patch(color=color, linewidth=0))
        seeds_text = f", {len(values)} seeds" if len(values) > 1 else ""
        notes.append(f"(mean {_mean(mean):.1f}{seeds_text})")
    legend_above(figure, handles, list(checked), notes)
    return figure


def mean_and_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over seeds and half the width of Student's interval of 95 % for it.

    Args:
        values: (S, K); NaN where a seed has no value.

    Returns:
        (K,) each: NaN without a value; the interval, too, with a single one.
    """
    count = np.isfinite(values).sum(axis=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of columns without a value
        mean, deviation = np.nanmean(values, axis=0), np.nanstd(values, axis=0, ddof=1)
        half = stats.t.ppf(0.975, count - 1) * deviation / np.sqrt(count)
    return mean, np.where(count > 1, half, np.nan)


def _lighter(color: str) -> str:
    red, green, blue = (0.25 + 0.75 * channel for channel in to_rgb(color))
    return to_hex((red, green, blue))


def _mean(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else float("nan")
