"""Projections of features into the plane, runs side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from regseg_d2.drawing.figures.style import (
    GREY,
    WIDTH,
    legend_above,
    legend_height,
    note,
    panel_grid,
    styled,
    title,
)
from regseg_d2.drawing.figures.texts import balanced, inline, letters_in

MOST_COLORED = 20
_LEGEND = 6.5  # points
_OTHERS = "#D0D0D0"
_DISC = 0.13  # inches: diameter of a class's number
_MOST_VECTORS = 2000  # points of a panel that an SVG holds as shapes; more are a picture in it


@styled
def projections(
    positions: Mapping[str, np.ndarray],
    labels: np.ndarray,
    names: Sequence[str],
    colors: np.ndarray,
    *,
    predicted: Mapping[str, np.ndarray] | None = None,
    method: str = "t-SNE",
    what: str = "pixels",
    most_classes: int = MOST_COLORED,
) -> Figure:
    """Draws projected features, a panel a run, on the same axes.

    It is Figure 3 of RegionContrast, Figures 5 and 6 of PNE, and Figure 1 of MDRL.

    A point has the colour of its label; a wrong one is a cross. The number of a class stands near its
    middle, and the legend says whose it is, so that no one has to tell colours apart. Of more than 20
    classes the ones with the most wrong points, or without predictions the most points, have colours; the
    others are grey, and a note says so.

    Args:
        positions: (P, 2) of each run.
        labels: (P,) classes, the same points in all runs.
        names: K class names.
        colors: (K, 3) uint8, RGB.
        predicted: (P,) predicted class of each run; None where points are no pixels, such as region centers.
        method: what made the projection.
        what: the points are.
        most_classes: with a colour of their own.

    Raises:
        ValueError: there is no run, or the points of a run are not those of the labels.
    """
    labels = np.asarray(labels)
    for run, points in positions.items():
        if np.shape(points) != (len(labels), 2):
            raise ValueError(f"the points of {run!r} are {np.shape(points)}; expected are {(len(labels), 2)}")
    if not positions:
        raise ValueError("projections are drawn of one run at least")
    wrong = {
        run: (predicted[run] != labels) if predicted else np.zeros(len(labels), bool) for run in positions
    }
    colored = _colored(labels, wrong, most_classes)
    width = 4.2 if len(positions) == 1 else WIDTH
    columns = 2 if len(positions) == 4 else min(3, len(positions))
    side = width / columns
    entries = _entries(names, colors, colored, bool(predicted))
    others = len(np.unique(labels)) - len(colored)
    above = legend_height(entries[1], width, _LEGEND)
    lines = max(balanced(run, letters_in(side - 0.3, 8)).count("\n") + 1 for run in positions)
    height = side + 0.1 + 0.13 * (lines + bool(predicted))
    margin = (0, above + (0.3 if others > 0 else 0.1))
    figure, panels = panel_grid(len(positions), columns, (side, height), margin, sharex=True, sharey=True)
    everything = np.concatenate([np.asarray(p, dtype=np.float64) for p in positions.values()])
    middle, reach = _square(everything)
    for axes, (run, points) in zip(panels, positions.items(), strict=True):
        axes.set(xlim=(middle[0] - reach, middle[0] + reach), ylim=(middle[1] - reach, middle[1] + reach))
        axes.set_box_aspect(1)
        axes.grid(False)
        for spine in axes.spines.values():
            spine.set(visible=True, color="#BFBFBF")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel(f"{method} 1", fontsize=7)
        below = f"{100 * wrong[run].mean():.1f} % wrong" if predicted and len(labels) else ""
        title(axes, run, side - 0.3, below=below)
        _draw_points(axes, np.asarray(points, dtype=np.float64), labels, wrong[run], colors, colored)
        _draw_numbers(axes, points, labels, colored, 2 * reach * _DISC / (side - 0.25))
    panels[0].set_ylabel(f"{method} 2", fontsize=7)
    legend_above(figure, *entries, fontsize=_LEGEND, handletextpad=0.2, columnspacing=1.0)
    if others > 0:
        most = f"most wrong {what}" if predicted else f"most {what}"
        note(figure, f"In colour: the {len(colored)} classes with the {most}. Grey: the other {others}.")
    return figure


def _colored(labels: np.ndarray, wrong: Mapping[str, np.ndarray], most: int) -> list[int]:
    """The classes with a colour, in their own order: those with the most errors of all runs, then points."""
    classes, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    errors = np.bincount(index, np.sum(list(wrong.values()), axis=0), minlength=len(classes))
    order = np.lexsort((classes, -counts, -errors))
    return sorted(int(k) for k in classes[order[:most]])


def _square(points: np.ndarray) -> tuple[np.ndarray, float]:
    """Middle and half the side of a square around all points, with a margin."""
    finite = points[np.isfinite(points).all(axis=1)]
    if not len(finite):
        return np.zeros(2), 1.0
    low, high = finite.min(axis=0), finite.max(axis=0)
    return (low + high) / 2, 0.54 * float((high - low).max()) or 1.0


def _draw_points(
    axes: Axes,
    points: np.ndarray,
    labels: np.ndarray,
    wrong: np.ndarray,
    colors: np.ndarray,
    colored: Sequence[int],
) -> None:
    """Grey ones first, then right ones in a drawn order, so that no class hides another, then wrong ones."""
    order = np.random.default_rng(0).permutation(len(labels))
    (x, y), labels, wrong = points[order].T, labels[order], wrong[order]
    own = np.isin(labels, colored)
    area = float(np.clip(9000 / max(1, len(labels)), 2.0, 14.0))
    raster = len(labels) > _MOST_VECTORS
    rgb = np.asarray(colors, dtype=np.float64) / 255
    common: dict[str, Any] = {"rasterized": raster}
    axes.scatter(x[~own & ~wrong], y[~own & ~wrong], s=0.6 * area, c=_OTHERS, linewidths=0, **common)
    axes.scatter(x[~own & wrong], y[~own & wrong], s=1.6 * area, c=GREY, marker="x", linewidths=0.4, **common)
    right = own & ~wrong
    face = rgb[labels[right]]
    axes.scatter(x[right], y[right], s=area, c=face, edgecolors=0.6 * face, linewidths=0.25, **common)
    face = rgb[labels[own & wrong]]
    axes.scatter(
        x[own & wrong],
        y[own & wrong],
        s=3 * area,
        c=face,
        marker="X",
        edgecolors="black",
        linewidths=0.4,
        **common,
    )


def _draw_numbers(
    axes: Axes, points: np.ndarray, labels: np.ndarray, colored: Sequence[int], diameter: float
) -> None:
    """Puts each class's number on its point nearest to the median, or beside it where another number is."""
    placed: list[np.ndarray] = []
    turns = np.arange(12) * (2 * np.pi / 12)
    circle = np.stack([np.cos(turns), np.sin(turns)], axis=1)
    for number, k in enumerate(colored, start=1):
        own = np.asarray(points, dtype=np.float64)[labels == k]
        own = own[np.isfinite(own).all(axis=1)]
        if not len(own):
            continue
        anchor = own[np.argmin(((own - np.median(own, axis=0)) ** 2).sum(axis=1))]
        candidates = np.concatenate([[anchor], *(anchor + r * diameter * circle for r in (1, 1.5, 2, 3, 4))])
        gaps = [min((np.hypot(*(c - p)) for p in placed), default=math.inf) for c in candidates]
        free = [c for c, gap in zip(candidates, gaps, strict=True) if gap >= diameter]
        place = free[0] if free else candidates[int(np.argmax(gaps))]
        placed.append(place)
        if not np.array_equal(place, anchor):
            axes.plot(*np.stack([anchor, place]).T, color="black", linewidth=0.5, zorder=3)
        disc = {"boxstyle": "circle,pad=0.15", "facecolor": "white", "edgecolor": "black", "linewidth": 0.4}
        axes.text(place[0], place[1], str(number), fontsize=5, ha="center", va="center", bbox=disc, zorder=4)


def _entries(
    names: Sequence[str], colors: np.ndarray, colored: Sequence[int], crosses: bool
) -> tuple[list[Line2D], list[str]]:
    """Handles and texts of the legend."""

    def mark(shape: str, color: tuple[float, ...], edge: str | tuple[float, ...]) -> Line2D:
        parts: dict[str, Any] = {
            "markerfacecolor": color,
            "markeredgecolor": edge,
            "markeredgewidth": 0.5,
            "markersize": 5,
        }
        return Line2D([], [], linestyle="", marker=shape, **parts)

    handles, texts = [], []
    for number, k in enumerate(colored, start=1):
        color = tuple(np.asarray(colors[k], dtype=np.float64) / 255)
        handles.append(mark("o", color, tuple(0.6 * c for c in color)))
        texts.append(f"{number} {inline(names[k], 18)}")
    if crosses:
        handles.append(mark("X", (1.0, 1.0, 1.0), "black"))
        texts.append("wrong")
    return handles, texts
