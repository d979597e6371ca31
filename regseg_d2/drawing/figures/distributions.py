"""Distributions: scores of right and wrong pixels, confidence, scores of images, compactness of classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from regseg_d2.drawing.figures.rows import checked_scores, class_rows, highest_first
from regseg_d2.drawing.figures.style import (
    BLUE,
    GREY,
    LIGHT,
    ORANGE,
    WIDTH,
    legend_above,
    look,
    new_figure,
    panel_grid,
    runs_legend,
    styled,
    title,
)
from regseg_d2.drawing.figures.texts import cut

# The rows of score counts: how each is drawn.
OUTCOMES = ("TP", "FP", "FN")
_OUTCOME_LOOKS: tuple[dict[str, Any], ...] = (
    {"color": BLUE, "ls": "-"},
    {"color": ORANGE, "ls": "--"},
    {"color": "black", "ls": ":"},
)
_FEW = 100  # pixels; a bin of a calibration diagram with fewer is drawn hollow


@styled
def score_distributions(
    histograms: Mapping[str, tuple[np.ndarray, np.ndarray]],
    names: Sequence[str],
    classes: Sequence[int] = (),
) -> Figure:
    """Draws how the scores of true positives, false positives and false negatives are spread (RCH, Figure 1).

    A column a run, all with the same axes; first the pixels of all classes together, below them those of
    chosen classes. Each curve has an area of one; the legends have the numbers of pixels. A mark on the
    axis is the median.

    Args:
        histograms: edges (B + 1,) of the bins and counts (3, K, B) of each run. Counts are those of TP, FP
            and FN of class k by its logit.
        names: K class names.
        classes: those with a row of their own.

    Raises:
        ValueError: there is no run, or counts are not (3, K, B).
    """
    if not histograms:
        raise ValueError("score distributions are drawn of one run at least")
    for run, (edges, counts) in histograms.items():
        if np.shape(counts) != (3, len(names), len(edges) - 1):
            expected = (3, len(names), len(edges) - 1)
            raise ValueError(f"the counts of {run!r} are {np.shape(counts)}; expected are {expected}")
    rows: list[int | None] = [None, *classes]
    width = min(WIDTH, 1.2 + 3.0 * len(histograms))
    figure = new_figure(width, 0.55 + 1.75 * len(rows))
    panels = figure.subplots(len(rows), len(histograms), sharex=True, sharey="row", squeeze=False)
    ends = []
    for line, chosen in zip(panels, rows, strict=True):
        for axes, (run, (edges, counts)) in zip(line, histograms.items(), strict=True):
            shown = counts.sum(axis=1) if chosen is None else counts[:, chosen]
            _draw_histogram(axes, np.asarray(edges, dtype=np.float64), shown)
            used = np.flatnonzero(shown.sum(axis=0))
            ends += [edges[used[0]], edges[used[-1] + 1]] if used.size else []
            if chosen is None:
                title(axes, run, width / len(histograms) - 0.6)
        line[0].set_ylim(bottom=0)
        line[0].set_ylabel("all classes" if chosen is None else cut(names[chosen], 20), fontsize=8)
    if ends:
        panels[0, 0].set_xlim(min(ends), max(ends))
    figure.supxlabel("logit of the class", fontsize=8)
    figure.supylabel("density", fontsize=8)
    handles = [Line2D([], [], linewidth=1.4, **parts) for parts in _OUTCOME_LOOKS]
    meanings = ["true positives (TP)", "false positives (FP)", "false negatives (FN)"]
    legend_above(figure, handles, meanings)
    return figure


def _draw_histogram(axes: Axes, edges: np.ndarray, counts: np.ndarray) -> None:
    handles, labels = [], []
    for outcome, values, parts in zip(OUTCOMES, counts, _OUTCOME_LOOKS, strict=True):
        total = values.sum()
        handles.append(Line2D([], [], linewidth=1.2, **parts))
        labels.append(f"{outcome} {_short(total)}")
        if total == 0:
            continue
        density = values / (total * np.diff(edges))
        axes.stairs(density, edges, linewidth=1.2, **parts)
        axes.stairs(density, edges, fill=True, color=parts["color"], alpha=0.12)
        axes.plot(
            [median_of(edges, values)],
            [0],
            marker="^",
            color=parts["color"],
            markersize=5,
            markeredgecolor="white",
            clip_on=False,
            zorder=5,
        )
    axes.tick_params(labelsize=6.5)
    axes.legend(handles, labels, fontsize=6, loc="best", handlelength=1.8, title="pixels", title_fontsize=6)


def median_of(edges: np.ndarray, counts: np.ndarray) -> float:
    """Returns the median of a histogram, taking a bin's values as evenly spread; NaN without any."""
    total = counts.sum()
    if total == 0:
        return float("nan")
    below = np.concatenate([[0.0], np.cumsum(counts)]) / total
    last = int(np.searchsorted(below, 0.5))
    share = (0.5 - below[last - 1]) / (below[last] - below[last - 1])
    return float(edges[last - 1] + share * (edges[last] - edges[last - 1]))


def _short(count: float) -> str:
    """A count of pixels in few letters: 950, 12 k, 3.4 M."""
    for limit, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if count >= limit:
            return f"{count / limit:.3g}{unit}"
    return f"{count:.0f}"


@styled
def calibration_diagram(calibrations: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Figure:
    """Draws how often pixels are right of which the network is so sure (Guo et al., ICML 2017).

    Above, the share of right pixels of each bin over its mean confidence; on the diagonal a network knows
    when it errs. Bins of fewer than 100 pixels are hollow. Below, the share of the pixels in each bin. The
    legend has the expected calibration error.

    Args:
        calibrations: of each run the number of pixels, the sum of their confidences, and how many of them are
            right, (B,) each; bins are evenly spaced between 0 and 1.

    Raises:
        ValueError: there is no run, or the three differ in length.
    """
    if not calibrations:
        raise ValueError("a calibration diagram is drawn of one run at least")
    figure = new_figure(3.5, 4.0 + 0.27 * len(calibrations))
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    above.plot([0, 100], [0, 100], color=LIGHT, linewidth=0.9, zorder=1)
    handles, notes = [], []
    for number, (run, values) in enumerate(calibrations.items()):
        pixels, confidence, right = (np.asarray(each, dtype=np.float64) for each in values)
        if not pixels.shape == confidence.shape == right.shape:
            shapes = (pixels.shape, confidence.shape, right.shape)
            raise ValueError(
                f"pixels, confidences and right ones of {run!r} are {shapes}; expected is one size"
            )
        parts = look(number)
        filled = pixels > 0
        x = 100 * confidence[filled] / pixels[filled]
        y = 100 * right[filled] / pixels[filled]
        above.plot(x, y, markersize=0, linewidth=1.2, **parts)
        for few, face in ((False, parts["color"]), (True, "white")):
            chosen = (pixels[filled] < _FEW) == few
            above.plot(
                x[chosen],
                y[chosen],
                **(parts | {"linestyle": ""}),
                markersize=4,
                markerfacecolor=face,
                markeredgewidth=0.8,
            )
        total = pixels.sum()
        edges = np.linspace(0, 100, len(pixels) + 1)
        shares = 100 * pixels / total if total else pixels
        below.stairs(shares, edges, color=parts["color"], ls=parts["linestyle"], linewidth=1.2)
        error = 100 * np.abs(right - confidence).sum() / total if total else float("nan")
        handles.append(Line2D([], [], markersize=4, **parts))
        notes.append(f"(ECE {error:.1f} %)")
    above.set(xlim=(0, 100), ylim=(0, 100), ylabel="accuracy (%)")
    below.set(xlabel="confidence (%)", ylabel="pixels (%)")
    below.set_ylim(bottom=0)
    for axes in (above, below):
        axes.tick_params(labelsize=7)
        axes.xaxis.label.set_size(8)
        axes.yaxis.label.set_size(8)
    legend_above(figure, handles, list(calibrations), notes)
    return figure


@styled
def intra_inter_ratios(
    ratios: Mapping[str, np.ndarray],
    names: Sequence[str],
    quantity: str = "intra-class / inter-class distance (lower is better)",
) -> Figure:
    """Draws how compact classes are, relative to how far they are apart: a row a class, a mark a run.

    The first run's least compact class is first; a line joins the marks of a class. From 41 classes on
    the rows stand in up to four columns.

    Args:
        ratios: (K,) of each run; NaN for classes that are absent.
        names: K class names.
        quantity: what the numbers are.

    Raises:
        ValueError: there is no run, or there are not K numbers.
    """
    checked = checked_scores(ratios, names, 1)
    order = highest_first(next(iter(checked.values())))
    figure, columns = class_rows(names, order, 0.12 if len(names) > 40 else 0.17, quantity, len(checked))
    values = np.stack(list(checked.values()))
    for axes, classes in columns:
        rows = np.arange(len(classes))
        present = np.isfinite(values[:, classes]).any(axis=0)
        low = np.min(np.where(np.isnan(values), np.inf, values)[:, classes], axis=0)
        high = np.max(np.where(np.isnan(values), -np.inf, values)[:, classes], axis=0)
        axes.hlines(rows[present], low[present], high[present], color=LIGHT, linewidth=0.8, zorder=1)
        for number, run in enumerate(values):
            parts = look(number) | {"linestyle": ""}
            axes.plot(run[classes], rows, markersize=3.5, markeredgewidth=0, **parts)
        for place in rows[~present]:
            axes.annotate("absent", (0, place), va="center", fontsize=5.5, color=GREY)
    columns[0][0].set_xlim(left=0)
    runs_legend(figure, list(checked))
    return figure


@styled
def image_scores(scores: Mapping[str, np.ndarray], quantity: str = "mIoU of an image (%)") -> Figure:
    """Draws the scores of all images of each run: how many of them have a score or less.

    A cumulative distribution shows every image: the left end is the worst ones. The legend has the medians.

    Args:
        scores: (N,) of each run; NaN for images without a pixel that counts.
        quantity: what the scores are, with their unit.

    Raises:
        ValueError: there is no run.
    """
    if not scores:
        raise ValueError("scores of images are drawn of one run at least")
    figure, (axes,) = panel_grid(1, 1, (3.5, 2.3), (0, 0.27 * len(scores)))
    handles, notes = [], []
    for number, values in enumerate(scores.values()):
        finite = np.sort(np.asarray(values, dtype=np.float64)[np.isfinite(values)])
        parts = look(number)
        parts.pop("marker")
        if finite.size:
            axes.ecdf(finite, linewidth=1.3, **parts)
        handles.append(Line2D([], [], **parts))
        median = np.median(finite) if finite.size else float("nan")
        notes.append(f"(median {median:.1f}, {finite.size} images)")
    axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.tick_params(labelsize=7)
    axes.set_xlabel(quantity, fontsize=8)
    axes.set_ylabel("images at or below", fontsize=8)
    legend_above(figure, handles, list(scores), notes)
    return figure
