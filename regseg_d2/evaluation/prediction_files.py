"""Predictions as index PNGs, in the folders and with the values that the benchmarks' servers take."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import cv2
import numpy as np

from regseg_d2.common.errors import ConfigError, DatasetError
from regseg_d2.common.files import atomic_writer
from regseg_d2.data.datasets.definitions import load_definition

# The server looks for <city>_<sequence>_<frame>*.png and takes label ids, not training ids.
# https://github.com/mcordts/cityscapesScripts, evaluation/evalPixelLevelSemanticLabeling.py
_CITYSCAPES_NAME = re.compile(r"[^_]+_\d{6}_\d{6}(_.*)?")
# Values 1 to 150, files named as the images. https://github.com/CSAILVision/sceneparsing, README.md
_ADE20K_CLASSES = 150
FORMATS = ("png", "cityscapes", "ade20k")


@dataclass(frozen=True)
class PredictionFormat:
    """What is written for an image.

    Attributes:
        values: file value of each class; None writes the class index.
        file_name: from the image's file and its id to the name of the prediction, without suffix.
    """

    name: str
    values: np.ndarray | None
    file_name: Callable[[str, str], str]


def prediction_format(name: str, class_names: Sequence[str]) -> PredictionFormat:
    """Returns a format by name.

    Args:
        name: "png": class indices, named as the data set names its images; "cityscapes": label ids;
            "ade20k": class indices + 1.
        class_names: of the data set, K.

    Raises:
        ConfigError: there is no such format, or the classes are not those of its server.
    """
    if name == "png":
        return PredictionFormat(name, None, _image_id_name)
    if name == "cityscapes":
        official = load_definition("cityscapes")
        if sorted(class_names) != sorted(official.classes):
            raise ConfigError(
                "TEST.PREDICTIONS has cityscapes, whose server takes the 19 classes of Cityscapes; the data "
                f"set has {len(class_names)}: {', '.join(class_names[:5])}, ... Take png for other data sets."
            )
        label_id = {
            official.classes[i]: value
            for value, i in (official.label_map or {}).items()
            if i != official.ignore_value
        }
        ids = np.asarray([label_id[class_name] for class_name in class_names], dtype=np.uint8)
        return PredictionFormat(name, ids, _cityscapes_name)
    if name == "ade20k":
        if len(class_names) != _ADE20K_CLASSES:
            raise ConfigError(
                f"TEST.PREDICTIONS has ade20k, whose server takes {_ADE20K_CLASSES} classes, and the data "
                f"set has {len(class_names)}. Take png for other data sets."
            )
        return PredictionFormat(name, np.arange(1, _ADE20K_CLASSES + 1, dtype=np.uint8), _stem)
    raise ConfigError(
        f'TEST.PREDICTIONS has "{name}"; expected some of {", ".join((*FORMATS, "json"))}, or [] for none.'
    )


class PredictionFiles:
    """Writes one PNG an image; every process writes those of its own images.

    Args:
        folder: gets a file for each image; sub-folders as its names say.
        format: names and values.
        num_classes: up to 256 make files of 8 bits, more of 16.
    """

    def __init__(self, folder: str | os.PathLike[str], format: PredictionFormat, num_classes: int) -> None:
        self.folder = Path(folder)
        self._format = format
        self._dtype = np.uint8 if num_classes <= 256 else np.uint16
        self._written: dict[str, str] = {}

    def write(self, label: np.ndarray, image_file: str, image_id: str) -> Path:
        """Writes a prediction, whole or not at all, and returns its file.

        Args:
            label: ``(H, W)`` class indices.
            image_file: the image's file.
            image_id: its id in the data set.

        Raises:
            DatasetError: the name does not fit the format, or another image has the same one.
        """
        name = self._format.file_name(image_file, image_id)
        other = self._written.setdefault(name, image_file)
        if other != image_file:
            raise DatasetError(
                f"The predictions of {other} and {image_file} would both be {name}.png below {self.folder}: "
                "the data set's image ids, or file names, must differ."
            )
        values = label.astype(self._dtype, copy=False)
        if self._format.values is not None:
            values = self._format.values[values]
        _, encoded = cv2.imencode(".png", np.ascontiguousarray(values))
        path = self.folder / f"{name}.png"
        with atomic_writer(path, "wb") as file:
            file.write(encoded.tobytes())
        return path


def _image_id_name(image_file: str, image_id: str) -> str:
    """The id where it is a path below a folder, and the file's name otherwise."""
    path = PurePosixPath(image_id)
    if image_id and not path.is_absolute() and ".." not in path.parts and image_id != image_file:
        return image_id
    return _stem(image_file, image_id)


def _stem(image_file: str, image_id: str) -> str:
    return Path(image_file).stem


def _cityscapes_name(image_file: str, image_id: str) -> str:
    stem = Path(image_file).stem
    if not _CITYSCAPES_NAME.fullmatch(stem):
        raise DatasetError(
            f"{image_file} is not named as Cityscapes' images are, "
            "<city>_<6 digits>_<6 digits>_leftImg8bit.png: the server could not tell which image the "
            "prediction is of."
        )
    return stem
