"""Writes the co-occurrence data set to the cache on first use, and registers it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from regseg_d2.common.errors import DatasetError
from regseg_d2.data.datasets.cooccurrence.scenes import CLASSES, COLORS, draw_scene, pasted_scenes
from regseg_d2.data.datasets.spec import DatasetSpec

# Counts up when the drawings change, so that an old cache is not taken for a new one.
_VERSION = 1
_SPLITS = ("train", "val", "swapped")
# Percent of the objects on their own ground in the variants.
_OTHER_SHARES = (70, 98)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CooccurrenceParameters:
    """What the data set is made from; equal parameters give equal files.

    Args:
        seed: seed of all randomness.
        size: side of the square images in pixels.
        train: number of images in ``cooccurrence_train``.
        val: number of images in ``cooccurrence_val``.
        swapped: number of images in ``cooccurrence_swapped``.
        own_ground: probability that an object of ``train`` and ``val`` is one of its ground's own.
        pasted: draw also ``pasted``, the scenes of ``train`` with objects of other ones.
    """

    seed: int = 2022
    size: int = 128
    train: int = 400
    val: int = 100
    swapped: int = 100
    own_ground: float = 0.9
    pasted: bool = False

    def digest(self) -> str:
        """Returns 12 hexadecimal digits that stand for the parameters."""
        values = asdict(self)
        if not self.pasted:
            del values["pasted"]
        text = json.dumps(values, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def cache_root() -> Path:
    """Folder for generated files: ``$REGSEG_CACHE``, else ``$XDG_CACHE_HOME``, else ``~/.cache``."""
    folder = os.environ.get("REGSEG_CACHE") or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(folder).expanduser() / "regseg_d2"


def cooccurrence_folder(parameters: CooccurrenceParameters | None = None) -> Path:
    """Folder of the data set, which is drawn first if it is not there.

    The folder appears at once and whole: it is drawn beside its place and then renamed, so that an
    interrupted call leaves nothing half done, and of two processes at once one wins and the other uses
    its files.

    Returns:
        A folder with ``<split>/images/*.jpg`` and ``<split>/labels/*.png``.

    Raises:
        DatasetError: the cache cannot be written.
    """
    parameters = parameters or CooccurrenceParameters()
    folder = cache_root() / f"cooccurrence_v{_VERSION}_{parameters.digest()}"
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise DatasetError(
            f"The co-occurrence data set cannot be written to {folder.parent}: {error}. "
            "Set $REGSEG_CACHE to a folder that can be written."
        ) from error
    try:
        logger.info("Drawing the co-occurrence data set into %s ...", folder)
        _write_splits(draft, parameters)
        # mkdtemp's folder is its owner's alone; the cache may be shared.
        draft.chmod(0o755)
        _move_into_place(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def _move_into_place(draft: Path, folder: Path) -> None:
    try:
        os.rename(draft, folder)
    except OSError:
        # Another process was faster; equal parameters made equal files.
        if not folder.is_dir():
            raise


def _write_splits(folder: Path, parameters: CooccurrenceParameters) -> None:
    for split_number, split in enumerate(_SPLITS):
        own_ground = 0.0 if split == "swapped" else parameters.own_ground
        rngs = (
            np.random.default_rng((parameters.seed, split_number, i))
            for i in range(getattr(parameters, split))
        )
        _write_scenes((draw_scene(rng, parameters.size, own_ground) for rng in rngs), folder / split)
    if parameters.pasted:
        _write_scenes(pasted_scenes(folder / "train", parameters.seed), folder / "pasted")
    text = json.dumps({"version": _VERSION, "classes": CLASSES, **asdict(parameters)}, indent=2)
    (folder / "parameters.json").write_text(text + "\n")


def _write_scenes(scenes: Iterable[tuple[np.ndarray, np.ndarray]], folder: Path) -> None:
    """Writes images, and class indices as palette PNGs, which viewers show in colour."""
    images, labels = folder / "images", folder / "labels"
    images.mkdir(parents=True)
    labels.mkdir()
    for i, (image, label) in enumerate(scenes):
        Image.fromarray(image).save(images / f"{i:04d}.jpg", quality=95, subsampling=0)
        picture = Image.fromarray(label)
        picture.putpalette([part for color in COLORS for part in color])
        picture.save(labels / f"{i:04d}.png")


def register_cooccurrence() -> None:
    """Registers ``cooccurrence_{train,val,swapped}`` and their variants.

    ``cooccurrence_70_*`` and ``cooccurrence_98_*`` have other shares of objects on their own ground;
    ``cooccurrence_pasted_train`` has the scenes of ``cooccurrence_train`` with objects of other scenes.
    """
    for split in _SPLITS:
        _register(f"cooccurrence_{split}", split, cooccurrence_folder)
        for percent in _OTHER_SHARES:
            _register(f"cooccurrence_{percent}_{split}", split, _folder_with(own_ground=percent / 100))
    _register("cooccurrence_pasted_train", "pasted", _folder_with(pasted=True))


@cache
def _folder_with(**changes: Any) -> Callable[[], Path]:
    """The same function for the same changes: a data set that is registered twice is then seen to be one."""
    return lambda: cooccurrence_folder(CooccurrenceParameters(**changes))


def _register(name: str, split: str, base: Callable[[], Path]) -> None:
    DatasetSpec(
        name=name,
        image_root=f"{split}/images",
        label_root=f"{split}/labels",
        classes=CLASSES,
        colors=COLORS,
        base=base,
        how_to_get="Its files are generated; delete the folder above it, and they are drawn again.",
    ).register()
