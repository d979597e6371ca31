"""Predictions for images of any folder, as files."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from PIL import Image
from rich.progress import track

import regseg_d2.data  # noqa: F401  registers the built-in data sets
from regseg_d2.common.errors import ConfigError, DatasetError
from regseg_d2.config.files import load_config
from regseg_d2.data.checks import check_head
from regseg_d2.data.datasets.declared import register_declared
from regseg_d2.data.images import read_image
from regseg_d2.data.mapper import TestMapper
from regseg_d2.drawing.overlay import blend, legend_of, with_legend, write_picture
from regseg_d2.drawing.pictures import class_colors, color_label
from regseg_d2.engine.devices import with_available_device
from regseg_d2.engine.trained_model import load_trained_model
from regseg_d2.evaluation.inference import build_predictor
from regseg_d2.evaluation.prediction_files import PredictionFiles, prediction_format

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm")
# Folders of the three files that are written for each image.
INDEX_FOLDER, COLOR_FOLDER, OVERLAY_FOLDER = "labels", "colors", "overlays"


@dataclass(frozen=True)
class InputImage:
    """An image to predict.

    ``name`` is the path of what is written for it, below the output's folders, without ".png".
    """

    path: Path
    name: str


# ---------------------------------------------------------------------------------------------- input


def find_images(source: str, output: Path) -> list[InputImage]:
    """Finds the images that a file, a folder or a pattern names.

    Args:
        source: an image; a folder, which is searched with its sub-folders; or a pattern such as
            ``"photos/**/*.jpg"``.
        output: where predictions go; what a folder or pattern finds in its three folders is no input.

    Returns:
        The images, sorted. Their names keep the sub-folders, and their suffixes where two differ in it
        only.

    Raises:
        ConfigError: nothing has this name, or no image is there.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return _named([path], path.parent)
    if path.is_dir():
        files, base = [file for file in path.rglob("*") if _is_image(file)], path
    elif glob.has_magic(source):
        matches = glob.glob(str(path), recursive=True)
        files = [Path(match) for match in matches if Path(match).is_file() and _is_image(Path(match))]
        base = _fixed_part(path)
    else:
        raise ConfigError(
            f"--input is {source}, which does not exist; expected an image, a folder or a pattern."
        )
    written = [(output / folder).resolve() for folder in (INDEX_FOLDER, COLOR_FOLDER, OVERLAY_FOLDER)]
    files = sorted(file for file in files if not any(file.resolve().is_relative_to(root) for root in written))
    if not files:
        raise ConfigError(
            f"--input {source} names no image; files that end in {', '.join(IMAGE_SUFFIXES)} are looked for."
        )
    return _named(files, base)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()


def _fixed_part(pattern: Path) -> Path:
    """The folder before the first part of a pattern that has a wildcard."""
    fixed = Path()
    for part in pattern.parts[:-1]:
        if glob.has_magic(part):
            break
        fixed /= part
    return fixed


def _named(files: Sequence[Path], base: Path) -> list[InputImage]:
    names = [file.relative_to(base) for file in files]
    stems = [name.with_suffix("") for name in names]
    # All keep their suffix or none: then no two can become equal.
    names = stems if len(set(stems)) == len(stems) else names
    return [InputImage(file, name.as_posix()) for file, name in zip(files, names, strict=True)]


# --------------------------------------------------------------------------------------------- output


@dataclass(frozen=True)
class PredictionWriter:
    """Writes a prediction as index PNG, colour PNG and overlay.

    Args:
        folder: gets the folders ``labels``, ``colors`` and ``overlays``.
        classes: K class names.
        colors: (K, 3) uint8, RGB.
        opacity: of the classes in the overlay.
    """

    folder: Path
    classes: Sequence[str]
    colors: np.ndarray
    opacity: float = 0.5

    def paths(self, image: InputImage) -> tuple[Path, Path, Path]:
        """Returns the three files of an image."""
        name = f"{image.name}.png"
        return (
            self.folder / INDEX_FOLDER / name,
            self.folder / COLOR_FOLDER / name,
            self.folder / OVERLAY_FOLDER / name,
        )

    def write(self, image: InputImage, pixels: np.ndarray, label: np.ndarray) -> None:
        """Writes the three files.

        Args:
            image: where they belong.
            pixels: (H, W, 3) uint8, RGB.
            label: (H, W) class ids.

        Raises:
            UserError: a file cannot be written.
        """
        _, color, overlay = self.paths(image)
        index_format = prediction_format("png", self.classes)
        files = PredictionFiles(self.folder / INDEX_FOLDER, index_format, len(self.classes))
        files.write(label, str(image.path.absolute()), image.name)
        write_picture(color, color_image(label, self.colors))
        picture = blend(pixels, label, self.colors, self.opacity)
        write_picture(overlay, with_legend(picture, legend_of(label, self.classes, self.colors)))


def color_image(label: np.ndarray, colors: np.ndarray) -> Image.Image:
    """Returns a palette image of class ids and their colours; an RGB image for more than 256 classes."""
    if len(colors) > 256:
        return Image.fromarray(color_label(label, colors))
    image = Image.fromarray(label.astype(np.uint8))
    image.putpalette(colors.tobytes())  # makes it a palette image
    return image


# ----------------------------------------------------------------------------------------------- work


class FilePredictor:
    """Predicts the classes of image files with the model and the inference protocol of a config.

    Raises:
        CheckpointError: there are no weights, or they do not fit the model.
    """

    def __init__(self, cfg: CfgNode) -> None:
        cfg = with_available_device(cfg)
        self._predict = build_predictor(cfg, load_trained_model(cfg).model)
        self._mapper = TestMapper(cfg)

    def __call__(self, path: str | Path) -> np.ndarray:
        """Predicts one image.

        Args:
            path: the file.

        Returns:
            (H, W) class ids, at the image's own size, turned as EXIF says.

        Raises:
            DatasetError: the file cannot be read.
        """
        sample = self._mapper({"file_name": str(path), "sem_seg_file_name": "", "image_id": str(path)})
        return self._predict([sample])[0]["sem_seg_labels"].cpu().numpy()


def predict_files(
    config_file: str,
    opts: Sequence[str],
    *,
    source: str,
    output: str = "",
    opacity: float = 0.5,
    say: Callable[[str], None] = print,
) -> bool:
    """Predicts all images of a source; one that cannot be read is named and left out.

    Args:
        config_file: config of the trained model.
        opts: changes to it, with MODEL.WEIGHTS where the config does not name the weights.
        source: as for :func:`find_images`.
        output: folder to write to; "" is ``demo`` in OUTPUT_DIR.
        opacity: of the classes in the overlays, 0 to 1.
        say: takes lines for people.

    Returns:
        Whether every image was predicted.

    Raises:
        UserError: an argument, the config or the weights cannot be used, or a file cannot be written.
    """
    if not 0 <= opacity <= 1:
        raise ConfigError(f"--opacity is {opacity}; expected 0 to 1.")
    cfg = load_config(config_file, list(opts))
    register_declared(cfg.DATASETS.DECLARED)
    folder = Path(output or os.path.join(cfg.OUTPUT_DIR, "demo"))
    images = find_images(source, folder)
    writer = PredictionWriter(folder, *classes_of(cfg), opacity=opacity)
    _refuse_to_overwrite(images, writer)
    predictor = FilePredictor(cfg)
    failed = 0
    for image in track(images, "predicting", transient=True):
        try:
            pixels = read_image(image.path)
            label = predictor(image.path)
        except DatasetError as error:
            say(f"Left out: {error}")
            failed += 1
            continue
        writer.write(image, pixels, label)
    say(f"Wrote the predictions of {len(images) - failed} of {len(images)} images to {folder}")
    return not failed


def classes_of(cfg: CfgNode) -> tuple[list[str], np.ndarray]:
    """Names and colours of the classes, from the first data set of the config.

    Raises:
        ConfigError: it names none, or one of other classes.
    """
    names = [*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN]
    count = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    if not names:
        raise ConfigError(
            "DATASETS.TEST and DATASETS.TRAIN name no data set; names and colours of the classes are a data "
            "set's. Give the config that the model was trained with."
        )
    check_head(cfg, names[0])
    metadata = MetadataCatalog.get(names[0])
    return list(metadata.stuff_classes), class_colors(metadata, count)


def _refuse_to_overwrite(images: Sequence[InputImage], writer: PredictionWriter) -> None:
    inputs = {image.path.resolve() for image in images}
    for image in images:
        for path in writer.paths(image):
            if path.resolve() in inputs:
                raise ConfigError(f"--output would overwrite the input {path}; name another folder.")
