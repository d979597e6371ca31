"""What the page shows: plain arrays, of any network."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from regseg_d2.common.errors import UserError, printable

# Images of one pair of classes that a run names.
PAIR_IMAGES = 5


@dataclass(frozen=True, eq=False)
class PageRun:
    """One run, over the whole data set.

    Attributes:
        name: as it stands on the page; unique.
        config: keys in which the runs differ, with their values as text; a key that a run lacks is left out.
        metrics: scores by name, in percent where they are shares; the first one that all runs have leads.
        confusion: (K, K) counts of pixels, [true, predicted].
        pair_images: (K, K, 5) indices into the image names: where class a is most taken for class b; -1 none.
    """

    name: str
    config: Mapping[str, str]
    metrics: Mapping[str, float]
    confusion: np.ndarray
    pair_images: np.ndarray


@dataclass(frozen=True, eq=False)
class ImageOfRun:
    """What one run makes of one image.

    Attributes:
        predicted: (H, W) classes.
        iou: (K,) in percent; NaN for classes that are not in the image.
        mean_iou: in percent, over the classes in the image; NaN where there is none.
        feature: (C, h, w) float32, from where the run's regularizers read it, or any other place.
        cell_size: height and width of a cell of the feature in pixels of the label. The first cell begins at
            the top left corner; the last ones may reach over the border, or end up to a cell before it.
    """

    predicted: np.ndarray
    iou: np.ndarray
    mean_iou: float
    feature: np.ndarray
    cell_size: tuple[float, float]


@dataclass(frozen=True, eq=False)
class PageImage:
    """One image that is on the page.

    Attributes:
        name: one of the content's image names.
        pixels: (H, W, 3) uint8, RGB.
        label: (H, W) classes; others than 0 to K - 1 are void.
        runs: one entry a run.
    """

    name: str
    pixels: np.ndarray
    label: np.ndarray
    runs: Sequence[ImageOfRun]


@dataclass(frozen=True, eq=False)
class PagePixels:
    """Pixels whose features are projected into the plane: the same ones for all runs.

    Attributes:
        image: (P,) indices into the image names.
        y: (P,) rows, in pixels of the label.
        x: (P,) columns.
        label: (P,) classes.
        predicted: one (P,) a run.
        confidence: one (P,) a run, 0 to 1.
        projections: by name of the method one (P, 2) a run, finite.
    """

    image: np.ndarray
    y: np.ndarray
    x: np.ndarray
    label: np.ndarray
    predicted: Sequence[np.ndarray]
    confidence: Sequence[np.ndarray]
    projections: Mapping[str, Sequence[np.ndarray]]


@dataclass(frozen=True, eq=False)
class PageContent:
    """All of the page.

    Attributes:
        title: what is compared, on which data.
        classes: K names, in any script.
        colors: (K, 3) uint8, RGB.
        image_names: all N images of the data set, unique.
        runs: at least one; the first is what the others are compared with.
        images: those that are shown. They are gone through several times, and one is held at a time: a
            collection that reads or makes each anew needs no memory for all of them.
        pixels: for the scatter plots; None where there are none.
        figures: captions and files (PNG or SVG) of pictures to show.
        command: how the page was made.
    """

    title: str
    classes: Sequence[str]
    colors: np.ndarray
    image_names: Sequence[str]
    runs: Sequence[PageRun]
    images: Collection[PageImage]
    pixels: PagePixels | None = None
    figures: Sequence[tuple[str, Path]] = field(default_factory=tuple)
    command: str = ""


def check_content(content: PageContent) -> None:
    """Looks at all but the images, which are looked at one by one by :func:`check_image`.

    Raises:
        UserError: arrays do not fit together, or a name is not unique.
    """
    K, N = len(content.classes), len(content.image_names)
    _expect(len(content.runs) > 0, "runs", "at least one run", 0)
    _expect(K > 0, "classes", "at least one class", 0)
    _expect(np.shape(content.colors) == (K, 3), "colors", f"shape ({K}, 3)", np.shape(content.colors))
    _expect_unique("names of runs", [run.name for run in content.runs])
    _expect_unique("image_names", content.image_names)
    for run in content.runs:
        where = f"run {printable(run.name)!r}"
        _expect_shape(f"{where}: confusion", run.confusion, (K, K))
        _expect_shape(f"{where}: pair_images", run.pair_images, (K, K, PAIR_IMAGES))
        _expect_indices(f"{where}: pair_images", run.pair_images, -1, N)
    labels = [np.asarray(run.confusion).sum(1) for run in content.runs]
    for run, label in zip(content.runs, labels, strict=True):
        where = f"run {printable(run.name)!r}: confusion"
        counts = f"{label.sum()} pixels, other ones of some class"
        _expect(
            bool((label == labels[0]).all()),
            where,
            f"the labels of all runs, {labels[0].sum()} pixels",
            counts,
        )
    if content.pixels is not None:
        _check_pixels(content.pixels, len(content.runs), K, N)


def check_image(image: PageImage, content: PageContent) -> None:
    """Looks at one image.

    Raises:
        UserError: it is none of the data set, or its arrays do not fit together or are not finite.
    """
    where = f"image {printable(image.name)!r}"
    if image.name not in content.image_names:
        raise UserError(f"{where} is not among image_names. Name all images of the data set there.")
    size, R = np.shape(image.label), len(content.runs)
    _expect(len(size) == 2 and min(size, default=0) > 0, f"{where}: label", "shape (H, W)", size)
    _expect_shape(f"{where}: pixels", image.pixels, (*size, 3))
    _expect(len(image.runs) == R, f"{where}: runs", f"{R}, one a run", len(image.runs))
    for run, made in zip(content.runs, image.runs, strict=True):
        of_run = f"{where}, run {printable(run.name)!r}"
        _expect_shape(f"{of_run}: predicted", made.predicted, size)
        _expect_shape(f"{of_run}: iou", made.iou, (len(content.classes),))
        shape, (high, wide) = np.shape(made.feature), made.cell_size
        fits = len(shape) == 3 and min(shape) > 0
        _expect(fits, f"{of_run}: feature", "shape (C, h, w)", shape)
        covered = (shape[1] + 1) * high > size[0] and (shape[2] + 1) * wide > size[1] and min(high, wide) > 0
        cells = f"{shape[1]} x {shape[2]} cells of {high:g} x {wide:g} pixels"
        _expect(covered, f"{of_run}: cell_size", f"cells that cover {size[0]} x {size[1]} pixels", cells)
        finite = bool(np.isfinite(made.feature).all())
        _expect(finite, f"{of_run}: feature", "finite numbers", "NaN or infinity")


def _check_pixels(pixels: PagePixels, R: int, K: int, N: int) -> None:
    count = len(pixels.image)
    _expect_indices("pixels: image", pixels.image, 0, N)
    for name in ("y", "x", "label"):
        _expect_shape(f"pixels: {name}", getattr(pixels, name), (count,))
    for name in ("y", "x"):
        _expect_indices(f"pixels: {name}", getattr(pixels, name), 0, 1 << 16)
    _expect_indices("pixels: label", pixels.label, 0, K)
    for name in ("predicted", "confidence"):
        values = getattr(pixels, name)
        _expect(len(values) == R, f"pixels: {name}", f"{R}, one a run", len(values))
        for of_run in values:
            _expect_shape(f"pixels: {name}", of_run, (count,))
    for of_run in pixels.predicted:
        _expect_indices("pixels: predicted", of_run, 0, K)
    for method, positions in pixels.projections.items():
        where = f"pixels: projection {printable(method)!r}"
        _expect(len(positions) == R, where, f"{R}, one a run", len(positions))
        for of_run in positions:
            _expect_shape(where, of_run, (count, 2))
            _expect(bool(np.isfinite(of_run).all()), where, "finite numbers", "NaN or infinity")


def _expect(fine: bool, what: str, expected: str, given: object) -> None:
    if not fine:
        raise UserError(f"Content of the page: {what}: expected {expected}, not {given}.")


def _expect_shape(what: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    _expect(np.shape(array) == shape, what, f"shape {shape}", np.shape(array))


def _expect_indices(what: str, array: np.ndarray, low: int, end: int) -> None:
    if np.size(array):
        lowest, highest = int(np.min(array)), int(np.max(array))
        _expect(low <= lowest and highest < end, what, f"{low} to {end - 1}", f"{lowest} to {highest}")


def _expect_unique(what: str, names: Sequence[str]) -> None:
    twice = (
        sorted({name for name in names if list(names).count(name) > 1})
        if len(set(names)) < len(names)
        else []
    )
    _expect(not twice, what, "names that are there once", ", ".join(map(printable, twice)))
