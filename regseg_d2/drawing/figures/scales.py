"""Colour scales that runs share, and their bars."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize

from regseg_d2.drawing.figures.style import ABSENT, FigurePart


@dataclass(frozen=True)
class Scale:
    """A norm and the colours of its values."""

    norm: Normalize
    colors: Colormap

    @property
    def limits(self) -> tuple[float, float]:
        """The lowest and the highest value."""
        return float(self.norm.vmin), float(self.norm.vmax)  # type: ignore[arg-type]

    @property
    def signed(self) -> bool:
        """Whether values below zero are on it."""
        return self.limits[0] < 0


def shared_scale(arrays: Iterable[np.ndarray]) -> Scale:
    """Returns one colour scale for all finite numbers of all arrays.

    It goes from the lowest to the highest; where a number is negative, equally far to both sides of a white
    zero.
    """
    values = np.concatenate([np.asarray(each, dtype=np.float64).ravel() for each in arrays])
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    if low < 0:
        reach = max(high, -low)
        return color_scale("RdBu_r", Normalize(-reach, reach))
    return color_scale("viridis", Normalize(low, high))


def color_scale(colors: str, norm: Normalize) -> Scale:
    """Returns a scale of one of Matplotlib's colour maps; what is not a number is grey."""
    return Scale(norm, matplotlib.colormaps[colors].with_extremes(bad=ABSENT))


def color_bar(
    figure: FigurePart, panels: Any, scale: Scale, quantity: str, ticks: Sequence[float] = ()
) -> None:
    """Puts the bar of a scale beside the panels that share it."""
    bar = figure.colorbar(
        ScalarMappable(scale.norm, scale.colors), ax=panels, fraction=0.05, pad=0.02, aspect=30
    )
    bar.set_label(quantity, fontsize=8)
    bar.ax.tick_params(labelsize=7)
    bar.outline.set_visible(False)
    if ticks:
        bar.set_ticks(list(ticks))
