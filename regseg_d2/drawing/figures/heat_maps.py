"""Maps of numbers over images: relations of a pixel, and RCH's calibration terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from regseg_d2.drawing.figures.maps import error_picture, image_grid, name_row, show_image
from regseg_d2.drawing.figures.scales import Scale, color_bar, color_scale, shared_scale
from regseg_d2.drawing.figures.style import note, styled


@dataclass(frozen=True)
class PixelRelations:
    """How a chosen pixel of an image relates to all cells of a feature, in each run.

    Attributes:
        name: what stands beside the row, such as the image and the class of the pixel.
        pixels: (H, W, 3) uint8, RGB.
        label: (H, W) class ids, whose borders are drawn over the maps.
        point: row and column of the chosen pixel.
        maps: (h, w) of each run.
        cell_sizes: height and width of a cell of each run in pixels; cells may reach over the image's border.
    """

    name: str
    pixels: np.ndarray
    label: np.ndarray
    point: tuple[float, float]
    maps: Mapping[str, np.ndarray]
    cell_sizes: Mapping[str, tuple[float, float]]


@styled
def relation_maps(rows: Sequence[PixelRelations], quantity: str = "cosine to the marked pixel") -> Figure:
    """Draws a row a chosen pixel: the image with the pixel, and its relation to all others in each run.

    CAR's pixel relations (Figures 5 to 7) and RCH's cosines to misclassified pixels (Figure 1). All maps
    share the colour scale: from the lowest to the highest value, or, where values are negative, the same
    distance to both sides of a white zero. Lines are borders of the label.

    Args:
        rows: one at least, with the same runs each.
        quantity: what the numbers are.

    Raises:
        ValueError: there is no row, or runs differ.
    """
    if not rows or not rows[0].maps:
        raise ValueError("relation maps are drawn of one pixel and one run at least")
    runs = list(rows[0].maps)
    for row in rows:
        if list(row.maps) != runs or not set(runs) <= set(row.cell_sizes):
            raise ValueError(
                f"{row.name!r} has maps of {list(row.maps)}; expected are {runs}, with cell sizes"
            )
    scale = shared_scale(values for row in rows for values in row.maps.values())
    figure, grid = image_grid([row.label.shape for row in rows], ["image", *runs], bar=0.75)
    for line, row in zip(grid, rows, strict=True):
        show_image(line[0], row.pixels)
        name_row(line[0], row.name)
        for axes, run in zip(line[1:], runs, strict=True):
            show_cells(axes, row.maps[run], row.cell_sizes[run], row.label, scale)
        for axes in line:
            mark_point(axes, row.point)
    color_bar(figure, grid, scale, quantity)
    return figure


@styled
def calibration_maps(
    pixels: np.ndarray,
    label: np.ndarray,
    predicted: Mapping[str, np.ndarray],
    phi: Mapping[str, np.ndarray],
    psi: Mapping[str, np.ndarray],
    cell_sizes: Mapping[str, tuple[float, float]],
    num_classes: int,
) -> Figure:
    """Draws RCH's two calibration terms over an image, a row a run (RCH, Figure 5).

    On the left, the wrong pixels are dark; beside them, the FN compensation φ and the FP penalty ψ, on one
    colour scale from zero on. Lines are borders of the label.

    Args:
        pixels: (H, W, 3) uint8, RGB.
        label: (H, W) class ids; others are void.
        predicted: (H, W) class ids of each run.
        phi: (h, w) of each run; NaN where it is not defined.
        psi: likewise.
        cell_sizes: height and width of a cell of each run in pixels.
        num_classes: K.

    Raises:
        ValueError: there is no run, or the five do not have the same.
    """
    runs = list(predicted)
    for each in (phi, psi, cell_sizes):
        if not runs or set(each) != set(runs):
            raise ValueError(f"calibration maps of the runs {list(each)}; predictions are of {runs}")
    _, highest = shared_scale([*phi.values(), *psi.values()]).limits
    scale = color_scale("viridis", Normalize(0, highest))
    titles = ["wrong pixels (dark)", "φ, FN compensation", "ψ, FP penalty"]
    figure, grid = image_grid([label.shape] * len(runs), titles, bar=0.75)
    void = (label < 0) | (label >= num_classes)
    for line, run in zip(grid, runs, strict=True):
        wrong = ~void & (predicted[run] != label)
        show_image(line[0], error_picture(pixels, wrong, wrong, void), exact=True)
        name_row(line[0], run)
        show_cells(line[1], phi[run], cell_sizes[run], label, scale)
        show_cells(line[2], psi[run], cell_sizes[run], label, scale)
    color_bar(figure, grid, scale, "φ and ψ")
    remarks = ["White: pixels without a label."] if void.any() else []
    if any(np.isnan(values).any() for values in (*phi.values(), *psi.values())):
        remarks.append("Grey: cells where a term is not defined.")
    if remarks:
        note(figure, " ".join(remarks))
    return figure


def show_cells(
    axes: Axes,
    values: np.ndarray,
    cell_size: tuple[float, float],
    label: np.ndarray,
    scale: Scale,
) -> None:
    """Shows (h, w) numbers where their cells are in the image, with the borders of the label's classes."""
    height, width = label.shape
    extent = (-0.5, values.shape[1] * cell_size[1] - 0.5, values.shape[0] * cell_size[0] - 0.5, -0.5)
    axes.imshow(
        values, cmap=scale.colors, norm=scale.norm, extent=extent, interpolation="nearest", aspect="auto"
    )
    borders = np.zeros((height, width, 4))
    borders[..., :3] = 0 if scale.signed else 1
    borders[..., 3] = 0.75 * class_borders(label)
    axes.imshow(borders, interpolation="antialiased")
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))


def class_borders(label: np.ndarray) -> np.ndarray:
    """Returns where a pixel's class differs from that of its right or lower neighbour: (H, W) bool."""
    borders = np.zeros(label.shape, dtype=bool)
    borders[:, :-1] |= label[:, :-1] != label[:, 1:]
    borders[:-1] |= label[:-1] != label[1:]
    return borders


def mark_point(axes: Axes, point: tuple[float, float]) -> None:
    """Marks a pixel with a red cross that is seen on any colour."""
    for color, width, size in (("white", 2.4, 7.5), ("#E00000", 1.2, 6.5)):
        axes.plot([point[1]], [point[0]], "x", color=color, markersize=size, markeredgewidth=width, zorder=4)
