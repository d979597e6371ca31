"""A folder that holds all that a prediction needs: the weights, the whole config and the classes.

``tools/bundle.py`` writes it. It may come from a stranger: reading it runs no code, and reads no other file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from pydantic import Field

from regseg_d2.common.errors import ConfigError
from regseg_d2.common.files import digest_of
from regseg_d2.common.json_files import read_json
from regseg_d2.common.schema import Part, Whole, checked
from regseg_d2.common.yaml_files import read_yaml, shown
from regseg_d2.config.bases import BASE_KEY
from regseg_d2.config.files import load_config
from regseg_d2.config.keys import IMPORTS_KEY
from regseg_d2.prediction.classes import ClassList

#: Number of this layout of files; a reader refuses those that it does not know.
FORMAT = 1
WEIGHTS_FILE, CONFIG_FILE, BUNDLE_FILE, CARD_FILE = (
    "model.safetensors",
    "config.yaml",
    "bundle.json",
    "README.md",
)
#: Folder with the config of a network of transformers, as transformers writes it.
HUGGINGFACE_FOLDER = "huggingface"
#: All that is read of a bundle, and its card.
FILES = (WEIGHTS_FILE, CONFIG_FILE, BUNDLE_FILE, CARD_FILE, f"{HUGGINGFACE_FOLDER}/config.json")


@dataclass(frozen=True)
class Bundle:
    """What is in the folder.

    Attributes:
        cfg: the config, with MODEL.WEIGHTS.
        classes: names and colours of the classes.
    """

    cfg: CfgNode
    classes: ClassList


class BundledClass(Part):
    """A class in ``bundle.json``."""

    name: str
    color: tuple[Whole, Whole, Whole]


class Contents(Part):
    """What is read of ``bundle.json``."""

    format: Whole
    weights_sha256: str
    classes: list[BundledClass] = Field(min_length=1)


def open_bundle(folder: Path, weights: str = "", opts: Sequence[Any] = ()) -> Bundle:
    """Reads a bundle, but for its weights.

    Args:
        folder: the folder.
        weights: name of the file of weights; "" is ``model.safetensors``, whose checksum is in the bundle.
        opts: changes to the config, as :func:`~regseg_d2.config.files.load_config` takes them.

    Raises:
        ConfigError: a file is missing, damaged, does not go with the others, or would run code or read other
            files.
    """
    weights = weights or WEIGHTS_FILE
    for name in (BUNDLE_FILE, CONFIG_FILE, weights):
        if not (folder / name).is_file():
            raise ConfigError(
                f"'{folder}' is no bundle: it has no {name}. Expected a folder that tools/bundle.py wrote; a "
                "run's OUTPUT_DIR is loaded by Predictor.from_run."
            )
    file = folder / BUNDLE_FILE
    contents: Contents = checked(Contents, read_json(file), file, advice="It is no file of tools/bundle.py.")
    if contents.format != FORMAT:
        raise ConfigError(
            f"{file}: format is {contents.format}; expected {FORMAT}. A newer regseg_d2 wrote it: update."
        )
    if weights == WEIGHTS_FILE and digest_of(folder / WEIGHTS_FILE) != contents.weights_sha256:
        raise ConfigError(
            f"'{folder / WEIGHTS_FILE}' is not the file that {BUNDLE_FILE} names: its SHA-256 differs. Copy "
            "or download the folder again."
        )
    cfg = _read_config(folder, weights, opts)
    count = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    if len(contents.classes) != count:
        raise ConfigError(
            f"{file} has {len(contents.classes)} classes, and MODEL.SEM_SEG_HEAD.NUM_CLASSES of "
            f"{CONFIG_FILE} is {count}: they are not of one bundle."
        )
    colors = np.asarray([each.color for each in contents.classes])
    if colors.max() > 255:
        raise ConfigError(f"{file}: a color has the value {colors.max()}; expected 0 to 255.")
    return Bundle(cfg, ClassList(tuple(each.name for each in contents.classes), colors.astype(np.uint8)))


def _read_config(folder: Path, weights: str, opts: Sequence[Any]) -> CfgNode:
    file = folder / CONFIG_FILE
    content = read_yaml(file)
    for key in (BASE_KEY, IMPORTS_KEY):
        if content.get(key):
            raise ConfigError(
                f"{file}: {key} is {shown(content[key])}; a bundle is complete, and runs no code of its own. "
                "It was not written by tools/bundle.py."
            )
    cfg = load_config(str(file), [*opts, "MODEL.WEIGHTS", str(folder / weights)])
    cfg.MODEL.TRUST_PICKLE = False
    if cfg.MODEL.HUGGINGFACE.NAME:
        cfg.MODEL.HUGGINGFACE.NAME = str(folder / HUGGINGFACE_FOLDER)
    return cfg
