"""The report's plots: the same results give the same bytes, as SVG and as PNG."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from regseg_d2.apps.experiment.report_input import Results
from regseg_d2.apps.experiment.scores import Pairs, Quantity
from regseg_d2.apps.experiment.statistics import GAIN, LOSS
from regseg_d2.apps.experiment.tables import Compared, number
from regseg_d2.drawing.figures.style import (
    BLUE,
    GREY,
    KINDS,
    LIGHT,
    ORANGE,
    drawing_style,
    figure_bytes,
    new_figure,
    panel_grid,
)
from regseg_d2.drawing.figures.texts import wrapped

DPI = 150


def draw_all(
    results: Results,
    primary: Quantity,
    digits: int,
    compared: Compared,
    others: Mapping[tuple[str, str], Compared],
) -> dict[str, bytes]:
    """Draws all plots: ``{file name: content}``; one without data is left out.

    ``others`` has the primary metric's comparisons by (condition, data set), the primary ones among them.
    """
    figures = {}
    with drawing_style():
        if any(pairs.seeds for pairs, _ in compared.values()):
            figures["differences"] = _differences(primary, compared)
            figures["pairs"] = _pairs(primary, digits, compared)
        shown = {key: each for key, each in others.items() if any(pairs.seeds for pairs, _ in each.values())}
        if len(shown) > 1:
            figures["conditions"] = _conditions(primary, shown)
        curves = _curves(results, primary)
        if curves is not None:
            figures["curves"] = curves
    return {
        f"{name}.{kind}": figure_bytes(figure, kind, DPI)
        for name, figure in figures.items()
        for kind in KINDS
    }


def _differences(primary: Quantity, compared: Compared) -> Figure:
    """A forest plot: mean, intervals and verdict of each arm, and below them the differences of its seeds."""
    labels = [_arm_label(arm, pairs) for arm, (pairs, _) in compared.items()]
    figure = new_figure(7.2, 1.1 + len(labels) * _row_height(labels, 0.46))
    axes = figure.add_subplot()
    for row, (pairs, result) in enumerate(compared.values()):
        color = _color(result.mean, primary)
        heights = row + 0.27 + 0.05 * (np.arange(len(pairs.seeds)) % 3 - 1)  # equal ones stay apart
        axes.plot(pairs.differences, heights, "o", color=LIGHT, markersize=2.8, markeredgewidth=0)
        if not math.isnan(result.simultaneous[0]):
            axes.plot(result.simultaneous, [row, row], color=color, linewidth=1.1, marker="|", markersize=6)
            axes.plot(result.interval, [row, row], color=color, linewidth=3.6, solid_capstyle="butt")
        axes.plot([result.mean], [row], "D", color=color, markersize=5.5, markeredgecolor="white")
        clear = result.verdict in (GAIN, LOSS)
        axes.annotate(
            result.verdict,
            (1.01, row),
            xycoords=axes.get_yaxis_transform(),
            va="center",
            fontweight="bold" if clear else "normal",
            color="black" if clear else GREY,
        )
    axes.axvline(0, color="black", linewidth=0.9, zorder=0)
    _rows(axes, labels)
    axes.set_xlabel(f"{_name(primary)}: difference to the control")
    figure.legend(
        handles=[
            Line2D([], [], marker="D", linestyle="", color=GREY, markeredgecolor="white", label="mean"),
            Line2D([], [], color=GREY, linewidth=3.6, label="95 % interval"),
            Line2D([], [], color=GREY, linewidth=1.1, label="simultaneous interval"),
            Line2D([], [], marker="o", linestyle="", color=LIGHT, markersize=2.8, label="a seed"),
        ],
        loc="outside upper center",
        ncols=4,
        fontsize=8,
    )
    return figure


def _pairs(primary: Quantity, digits: int, compared: Compared) -> Figure:
    """One panel an arm: its runs beside those of its control, joined by seed."""
    shown = {arm: each for arm, each in compared.items() if each[0].seeds}
    figure, panels = panel_grid(len(shown), 4, (1.95, 2.3), (1.0, 0.6), sharey=True)
    for axes, (arm, (pairs, result)) in zip(panels, shown.items(), strict=True):
        for before, after in zip(pairs.control_values, pairs.arm_values, strict=True):
            color = _color(after - before, primary)
            axes.plot([0, 1], [before, after], color=color, linewidth=1, alpha=0.75)
            axes.plot([0], [before], "o", color=GREY, markersize=4)
            axes.plot(
                [1],
                [after],
                "^" if after > before else "v" if after < before else "o",
                color=color,
                markersize=4.5,
            )
        axes.set_xlim(-0.35, 1.35)
        axes.set_xticks([0, 1], [wrapped(pairs.control, 16), "arm"], fontsize=7.5)
        axes.grid(axis="x", visible=False)
        axes.yaxis.set_major_locator(MaxNLocator(6))
        better = sum(d < 0 if primary.lower_is_better else d > 0 for d in pairs.differences)
        mean = number(result.mean, digits, sign=True).replace("-", "\u2212")
        axes.set_title(f"{wrapped(arm, 28)}\n{mean}, {better} of {len(pairs.seeds)} better", fontsize=8)
    figure.supylabel(_name(primary), fontsize=9)
    return figure


def _conditions(primary: Quantity, shown: Mapping[tuple[str, str], Compared]) -> Figure:
    """The primary metric's differences in every condition and on every data set."""
    arms = list(dict.fromkeys(arm for compared in shown.values() for arm in compared))
    columns = min(3, len(shown))
    rows = math.ceil(len(shown) / columns)
    labels = [wrapped(arm, 26) for arm in arms]
    height = rows * (0.75 + len(arms) * _row_height(labels, 0.27)) + 0.3
    figure = new_figure(1.9 + 2.3 * columns, height)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
    for axes, ((condition, dataset), compared) in zip(grid, shown.items(), strict=False):
        for row, arm in enumerate(arms):
            if arm not in compared or math.isnan(compared[arm][1].mean):
                continue
            result = compared[arm][1]
            color = _color(result.mean, primary)
            if not math.isnan(result.interval[0]):
                axes.plot(result.interval, [row, row], color=color, linewidth=2.2)
            axes.plot([result.mean], [row], "D", color=color, markersize=4.5, markeredgecolor="white")
        axes.axvline(0, color="black", linewidth=0.9, zorder=0)
        axes.set_title(f"{wrapped(condition, 30)}\n{wrapped(dataset, 30)}", fontsize=8)
    for axes in list(figure.axes)[len(shown) :]:
        axes.remove()
    for axes in figure.axes:
        _rows(axes, labels)
        axes.tick_params(axis="x", labelbottom=True)
    figure.supxlabel(f"{primary.name}: difference to the control, 95 % interval", fontsize=9)
    return figure


def _curves(results: Results, primary: Quantity) -> Figure | None:
    """One panel an arm: mIoU while training, mean and range over seeds, on top of the control's."""
    condition = results.primary.condition
    curves = {arm: _curve(results, condition, arm, primary.dataset) for arm in results.arms_of(condition)}
    curves = {arm: curve for arm, curve in curves.items() if len(curve)}
    if not curves:
        return None
    figure, panels = panel_grid(len(curves), 4, (1.95, 1.95), (1.0, 0.6), sharey=True)
    for axes, (arm, curve) in zip(panels, curves.items(), strict=True):
        control = results.arms[arm]
        if control in curves:
            _band(axes, curves[control], GREY, "--")
        _band(axes, curve, BLUE if control else GREY, "-" if control else "--")
        axes.set_title(wrapped(arm, 28), fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    figure.supxlabel("iterations", fontsize=9)
    figure.supylabel(f"mIoU on {wrapped(primary.dataset, 40)}", fontsize=9)
    figure.legend(
        handles=[
            Line2D([], [], color=BLUE, label="arm"),
            Line2D([], [], color=GREY, linestyle="--", label="its control"),
        ],
        loc="outside upper center",
        ncols=2,
        fontsize=8,
        title="mean over seeds; band: lowest to highest",
        title_fontsize=8,
    )
    return figure


def _curve(results: Results, condition: str, arm: str, dataset: str) -> np.ndarray:
    """(points, 4): iteration, mean, lowest, highest. Points that all curves of the arm have."""
    runs = results.runs(condition, arm).values()
    points = [{int(p["iteration"]): p[dataset] for p in run.curve if dataset in p} for run in runs]
    points = [each for each in points if each]
    if not points:
        return np.zeros((0, 4))
    common = sorted(set.intersection(*(set(each) for each in points)))
    values = [[each[i] for each in points] for i in common]
    return np.array([[i, np.mean(v), min(v), max(v)] for i, v in zip(common, values, strict=True)]).reshape(
        -1, 4
    )


def _band(axes: Axes, curve: np.ndarray, color: str, line: str) -> None:
    iterations, mean, low, high = curve.T
    axes.fill_between(iterations, low, high, color=color, alpha=0.2, linewidth=0)
    marker = "o" if len(curve) < 2 else None
    axes.plot(iterations, mean, line, color=color, linewidth=1.5, marker=marker)


def _rows(axes: Axes, labels: list[str]) -> None:
    """One row an arm, from the top down."""
    axes.set_yticks(range(len(labels)), labels, fontsize=7.5)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)


def _row_height(labels: list[str], least: float) -> float:
    """Inches that keep the labels apart."""
    return max(least, 0.05 + 0.135 * max(label.count("\n") + 1 for label in labels))


def _color(difference: float, quantity: Quantity) -> str:
    if not difference:
        return GREY
    return BLUE if (difference < 0) == quantity.lower_is_better else ORANGE


def _arm_label(arm: str, pairs: Pairs) -> str:
    return f"{wrapped(arm, 28)}\n" + wrapped(f"\u2212 {pairs.control}, n = {len(pairs.seeds)}", 34)


def _name(quantity: Quantity) -> str:
    return f"{quantity.name} on {wrapped(quantity.dataset, 40)}"
