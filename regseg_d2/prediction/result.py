"""What is predicted for one image, its pictures and its files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np
from PIL import Image

from regseg_d2.common.errors import ConfigError, check_key
from regseg_d2.drawing.overlay import blend, legend_of, with_legend, write_picture
from regseg_d2.drawing.pictures import color_label
from regseg_d2.evaluation.prediction_files import PredictionFiles, prediction_format
from regseg_d2.prediction.classes import ClassList

# Folders of the three files that are written for each image.
INDEX_FOLDER, COLOR_FOLDER, OVERLAY_FOLDER = "labels", "colors", "overlays"
FOLDERS = (INDEX_FOLDER, COLOR_FOLDER, OVERLAY_FOLDER)


@dataclass(frozen=True, eq=False)
class Prediction:
    """Labels of an image.

    Attributes:
        labels: (H, W) class indices, uint8 up to 256 classes and int32 for more.
        image: (H, W, 3) uint8, RGB: the pixels, turned as EXIF says.
        classes: names and colours of the K classes.
        file: where the image is from; "" where that is not known.
    """

    labels: np.ndarray
    image: np.ndarray
    classes: ClassList
    file: str = ""
    _scores: np.ndarray | None = None
    _confidence: np.ndarray | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        """K names; the label i is ``class_names[i]``."""
        return self.classes.names

    @property
    def scores(self) -> np.ndarray:
        """Probabilities of all classes (K, H, W) of float32; their sum is 1.

        Raises:
            ConfigError: they were not asked for.
        """
        return _asked_for(self._scores, "scores")

    @property
    def confidence(self) -> np.ndarray:
        """Probability of the label (H, W) of float32.

        Raises:
            ConfigError: it was not asked for.
        """
        return _asked_for(self._confidence, "confidence")

    def color_image(self) -> Image.Image:
        """Returns a palette image of class ids and their colours; an RGB image for more than 256 classes."""
        colors = self.classes.colors
        if len(colors) > 256:
            return Image.fromarray(color_label(self.labels, colors))
        image = Image.fromarray(self.labels.astype(np.uint8))
        image.putpalette(colors.tobytes())  # makes it a palette image
        return image

    def overlay(
        self, opacity: float = 0.5, *, legend: bool = True, classes: Sequence[str] = ()
    ) -> Image.Image:
        """Paints the classes over the image.

        Args:
            opacity: of the classes, 0 to 1.
            legend: put the classes that occur below, with their shares.
            classes: names of those that are painted; none: all.

        Raises:
            ConfigError: ``opacity`` is outside of its range, or there is no class of a name.
        """
        check_key("opacity", opacity, 0 <= opacity <= 1, "0 to 1")
        picture = blend(self.image, self.labels, self.classes.colors, opacity)
        entries = legend_of(self.labels, self.classes.names, self.classes.colors) if legend else []
        if classes:
            chosen = [self.classes.index(name) for name in classes]
            others = ~np.isin(self.labels, chosen)
            picture[others] = self.image[others]
            entries = [entry for entry in entries if entry.name in classes]
        return Image.fromarray(with_legend(picture, entries))

    def save(
        self,
        folder: str | os.PathLike[str],
        name: str = "",
        *,
        opacity: float = 0.5,
        classes: Sequence[str] = (),
    ) -> tuple[Path, ...]:
        """Writes labels, palette image and overlay, each whole or not at all; earlier ones are replaced.

        Args:
            folder: gets ``labels/NAME.png``, ``colors/NAME.png`` and ``overlays/NAME.png``.
            name: NAME, which may have sub-folders; "" is that of the image's file.
            opacity: of the classes in the overlay.
            classes: names of those in the overlay; none: all.

        Returns:
            The three files.

        Raises:
            ConfigError: there is no name, it leads out of the folder, or the image itself would be replaced.
            UserError: a file cannot be written.
        """
        name = name or Path(self.file).stem
        if not name or PurePath(name).is_absolute() or ".." in PurePath(name).parts:
            raise ConfigError(
                f"name is {name!r}; expected what the files shall be called, a path below the folder without "
                "'..'. (An image that comes from no file has no name of its own.)"
            )
        paths = files_of(folder, name)
        refuse_to_overwrite(paths, [Path(self.file)] if self.file else [])
        files = PredictionFiles(
            Path(folder) / INDEX_FOLDER, prediction_format("png", self.class_names), len(self.class_names)
        )
        files.write(self.labels, os.path.abspath(self.file) if self.file else "", name)
        write_picture(paths[1], self.color_image())
        write_picture(paths[2], self.overlay(opacity, classes=classes))
        return paths


def files_of(folder: str | os.PathLike[str], name: str) -> tuple[Path, ...]:
    """The files of :meth:`Prediction.save`."""
    return tuple(Path(folder) / kind / f"{name}.png" for kind in FOLDERS)


def refuse_to_overwrite(paths: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Raises ConfigError where a file that will be written is an input."""
    taken = {path.resolve() for path in inputs}
    for path in paths:
        if path.resolve() in taken:
            raise ConfigError(f"The output would overwrite the input {path}; name another folder.")


def _asked_for(values: np.ndarray | None, name: str) -> np.ndarray:
    if values is None:
        raise ConfigError(
            f"The {name} of this prediction were not kept: ask for them, predictor(image, {name}=True)."
        )
    return values
