"""Pictures of images: labels, predictions and errors of each run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from regseg_d2.drawing.figures.style import (
    BLUE,
    ORANGE,
    WIDTH,
    legend_above,
    legend_height,
    new_figure,
    note,
    styled,
    title,
)
from regseg_d2.drawing.figures.texts import inline, letters_in, wrapped
from regseg_d2.drawing.pictures import VOID_COLOR, color_label

MOST_LISTED = 24  # classes of a legend
_NUMBER = 0.055  # inches around a number that lies in a region of its class
_LEGEND = 6.5  # points
_BOTH = "#333333"


@dataclass(frozen=True)
class ShownImage:
    """An image with its label and what each run makes of it.

    Attributes:
        name: of the image.
        pixels: (H, W, 3) uint8, RGB.
        label: (H, W) class ids; others are void.
        predicted: (H, W) class ids of each run.
        scores: a score of the image in each run, in percent; runs without one have none shown.
    """

    name: str
    pixels: np.ndarray
    label: np.ndarray
    predicted: Mapping[str, np.ndarray]
    scores: Mapping[str, float] = field(default_factory=dict)


@styled
def prediction_maps(
    images: Sequence[ShownImage], names: Sequence[str], colors: np.ndarray, score: str = "mIoU"
) -> Figure:
    """Draws a row an image: the image, its label, the prediction of each run.

    Numbers in the regions are those of the legend, so that no one has to tell colours apart. The legend
    lists the 24 classes with the most pixels in labels and predictions; regions of others have no number, and
    a note says how many there are.

    Args:
        images: one at least, with the same runs each.
        names: K class names.
        colors: (K, 3) uint8, RGB.
        score: name of the images' scores.

    Raises:
        ValueError: there is no image, runs differ, or sizes do.
    """
    runs = _checked(images)
    listed, others = _largest(images, len(names))
    numbers = {k: number for number, k in enumerate(listed, start=1)}
    meanings = [(f"{number} {inline(names[k], 18)}", colors[k] / 255) for k, number in numbers.items()]
    if any(_void(image.label, len(names)).any() for image in images):
        meanings.append(("no label", np.asarray(VOID_COLOR) / 255))
    sizes = [image.label.shape for image in images]
    figure, grid = image_grid(sizes, ["image", "label", *runs], legend=meanings)
    for line, image in zip(grid, images, strict=True):
        show_image(line[0], image.pixels)
        name_row(line[0], image.name)
        show_label(line[1], image.label, colors, numbers)
        for axes, run in zip(line[2:], runs, strict=True):
            show_label(axes, image.predicted[run], colors, numbers)
            if run in image.scores:
                _write_score(axes, f"{score} {image.scores[run]:.1f}")
    if others:
        note(figure, f"{others} classes with fewer pixels are not in the legend and have no number.")
    return figure


@styled
def error_maps(images: Sequence[ShownImage], num_classes: int) -> Figure:
    """Draws a row an image: the image, and the wrong pixels of each run over its greys.

    The first run's errors are dark. In the other runs those are dark that they share with it, orange the
    ones that are theirs alone, and blue the pixels that were wrong in the first and are right in them. A
    number is the share of wrong pixels among those with a label.

    Args:
        images: one at least, with the same runs each.
        num_classes: K.

    Raises:
        ValueError: there is no image, runs differ, or sizes do.
    """
    runs = _checked(images)
    meanings: list[tuple[str, Any]] = [("wrong" if len(runs) == 1 else f"wrong, in {runs[0]} too", _BOTH)]
    if len(runs) > 1:
        meanings += [("wrong here alone", ORANGE), (f"right here, wrong in {runs[0]}", BLUE)]
    if any(_void(image.label, num_classes).any() for image in images):
        meanings.append(("no label", "white"))
    figure, grid = image_grid([image.label.shape for image in images], ["image", *runs], legend=meanings)
    for line, image in zip(grid, images, strict=True):
        show_image(line[0], image.pixels)
        name_row(line[0], image.name)
        void = _void(image.label, num_classes)
        first = ~void & (image.predicted[runs[0]] != image.label)
        for axes, run in zip(line[1:], runs, strict=True):
            wrong = ~void & (image.predicted[run] != image.label)
            show_image(axes, error_picture(image.pixels, first, wrong, void), exact=True)
            share = 100 * wrong.sum() / max(1, (~void).sum())
            _write_score(axes, f"{share:.1f} % wrong")
    return figure


def error_picture(pixels: np.ndarray, first: np.ndarray, wrong: np.ndarray, void: np.ndarray) -> np.ndarray:
    """Paints errors over the light greys of an image.

    Args:
        pixels: (H, W, 3) uint8, RGB.
        first: (H, W) bool, wrong in the first run.
        wrong: (H, W) bool, wrong in the run that is shown.
        void: (H, W) bool, without a label; they become white.

    Returns:
        (H, W, 3) uint8, RGB.
    """
    picture = np.repeat(light_greys(pixels)[:, :, None], 3, axis=2)
    for where, color in (
        (first & wrong, _BOTH),
        (wrong & ~first, ORANGE),
        (first & ~wrong, BLUE),
        (void, "#FFFFFF"),
    ):
        picture[where] = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return picture


def light_greys(pixels: np.ndarray) -> np.ndarray:
    """Returns the luminance of an image between a mid grey and a light one: (H, W) uint8."""
    luminance = np.asarray(pixels, dtype=np.float64) @ [0.299, 0.587, 0.114]
    return (130 + luminance * (95 / 255) + 0.5).astype(np.uint8)


def image_grid(
    sizes: Sequence[tuple[int, ...]],
    titles: Sequence[str],
    *,
    legend: Sequence[tuple[str, Any]] = (),
    bar: float = 0,
) -> tuple[Figure, np.ndarray]:
    """Returns a figure with a row an image and a column a title, as high as the images ask for.

    Args:
        sizes: height and width of the image of each row.
        titles: one a column.
        legend: names and colours of its entries.
        bar: inches of the width that are kept for a colour bar.
    """
    width = max(WIDTH if len(titles) > 2 else 4.8, 0.95 * len(titles))
    panel = (width - 0.25 - bar) / len(titles) - 0.04
    heights = [panel * height / breadth for height, breadth in ((s[0], s[1]) for s in sizes)]
    texts = [text for text, _ in legend]
    room = legend_height(texts, width, _LEGEND) if legend else 0
    lines = max(len(wrapped(text, letters_in(panel, 7.5)).split("\n")) for text in titles)
    figure = new_figure(width, sum(heights) + 0.05 * len(heights) + 0.2 + 0.12 * lines + room, "compressed")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.03, wspace=0, hspace=0)  # type: ignore[union-attr, call-arg]
    grid = figure.subplots(len(sizes), len(titles), squeeze=False, height_ratios=heights)
    for axes in grid.flat:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.grid(False)
        for spine in axes.spines.values():
            spine.set_visible(False)
    for axes, text in zip(grid[0], titles, strict=True):
        title(axes, text, panel, 7.5)
    if legend:
        handles = [Patch(facecolor=color, edgecolor="black", linewidth=0.4) for _, color in legend]
        legend_above(
            figure, handles, texts, fontsize=_LEGEND, handlelength=1.2, columnspacing=1.0, borderaxespad=0.8
        )
    return figure, grid


def show_image(axes: Axes, pixels: np.ndarray, *, exact: bool = False) -> None:
    """Shows (H, W, 3) uint8 pixels; exact ones are not mixed with their neighbours where they get smaller."""
    axes.imshow(pixels, interpolation="nearest" if exact else "antialiased")


def show_label(axes: Axes, label: np.ndarray, colors: np.ndarray, numbers: Mapping[int, int]) -> None:
    """Shows (H, W) class ids in their colours, and classes' numbers where regions have room for them."""
    show_image(axes, color_label(label, colors), exact=True)
    room = _NUMBER * label.shape[1] / _inches(axes)
    for k, number in numbers.items():
        place = roomiest(label == k, room)
        if place is not None:
            red, green, blue = (int(c) for c in colors[k])
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 128
            color = "white" if dark else "black"
            axes.text(place[1], place[0], str(number), color=color, fontsize=5, ha="center", va="center")


def _inches(axes: Axes) -> float:
    """Width of a panel of an image grid before it is laid out, in inches."""
    spec = axes.get_subplotspec()
    figure = axes.get_figure()
    assert spec is not None and figure is not None
    return figure.bbox.width / figure.dpi / spec.get_gridspec().ncols - 0.1


def roomiest(mask: np.ndarray, room: float) -> tuple[int, int] | None:
    """Returns row and column of the place farthest inside a mask; None if it has less room, in pixels."""
    if not mask.any():
        return None
    distance = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    row, column = divmod(int(distance.argmax()), distance.shape[1])
    return (row - 1, column - 1) if distance[row, column] >= room else None


def name_row(axes: Axes, name: str) -> None:
    """Writes a name along the left side of the first panel of a row."""
    top, bottom = sorted(axes.get_ylim())
    left, right = sorted(axes.get_xlim())
    inches = _inches(axes) * (bottom - top) / (right - left)
    axes.set_ylabel(wrapped(name, letters_in(inches, 6)), fontsize=6)


def _write_score(axes: Axes, text: str) -> None:
    box = {"boxstyle": "square,pad=0.2", "facecolor": "white", "alpha": 0.85, "linewidth": 0}
    axes.text(
        0.02, 0.03, text, transform=axes.transAxes, fontsize=5.5, va="bottom", ha="left", bbox=box, zorder=5
    )


def _void(label: np.ndarray, num_classes: int) -> np.ndarray:
    return (label < 0) | (label >= num_classes)


def _checked(images: Sequence[ShownImage]) -> list[str]:
    """The runs of all images."""
    if not images or not images[0].predicted:
        raise ValueError("maps are drawn of one image and one run at least")
    runs = list(images[0].predicted)
    for image in images:
        if list(image.predicted) != runs:
            raise ValueError(f"{image.name!r} has the runs {list(image.predicted)}; expected are {runs}")
        shapes = {"pixels": image.pixels.shape[:2]} | {run: p.shape for run, p in image.predicted.items()}
        for what, shape in shapes.items():
            if shape != image.label.shape:
                raise ValueError(
                    f"{what} of {image.name!r}: the size is {shape}; its label's is {image.label.shape}"
                )
    return runs


def _largest(images: Sequence[ShownImage], num_classes: int) -> tuple[list[int], int]:
    """The classes of a legend, the largest first, and how many others there are."""
    counts = np.zeros(num_classes, dtype=np.int64)
    for image in images:
        for shown in (image.label, *image.predicted.values()):
            counts += np.bincount(shown[~_void(shown, num_classes)], minlength=num_classes)
    order = [int(k) for k in np.argsort(-counts, kind="stable") if counts[k]]
    return order[:MOST_LISTED], max(0, len(order) - MOST_LISTED)
