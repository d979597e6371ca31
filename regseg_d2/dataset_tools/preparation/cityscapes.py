"""Preparation of Cityscapes.

Training needs none of it: ``*_labelIds.png`` are read as they are. ``*_labelTrainIds.png`` are for other
tools. The official script draws them from polygons; as it draws the same polygons in the same order as for
``labelIds``, only with other values, the label map gives the same image.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from regseg_d2.data.datasets.cityscapes import CITYSCAPES_SPLITS, cityscapes_spec
from regseg_d2.data.datasets.definitions import load_definition
from regseg_d2.data.datasets.spec import DatasetSpec
from regseg_d2.data.labels import LabelReader
from regseg_d2.dataset_tools.preparation.archives import unpack_archives
from regseg_d2.dataset_tools.preparation.conversion import Conversion, convert_files
from regseg_d2.dataset_tools.preparation.report import below, report_splits

ARCHIVES = (
    "leftImg8bit_trainvaltest.zip",
    "gtFine_trainvaltest.zip",
    "leftImg8bit_trainextra.zip",
    "gtCoarse.zip",
)
IMAGE_SIZE = (1024, 2048)
_REQUIRED = ("fine_train", "fine_val")


def prepare_cityscapes(
    root: Path,
    *,
    workers: int = 0,
    partial: bool = False,
    archives: Path | None = None,
    output: Path | None = None,
) -> list[str]:
    """Checks a copy of Cityscapes, and writes ``labelTrainIds`` and a description of the splits.

    The fine train and val splits have to be there; of the others those are taken whose images and labels are
    both there.

    Args:
        root: folder that holds ``cityscapes``.
        workers: number of processes; 0 works in this one.
        partial: accept any number of images, of any size.
        archives: folder of the downloaded archives, to unpack; None where they are unpacked.
        output: description to write; None for ``splits.json`` beside the data.

    Returns:
        Lines for people.

    Raises:
        DatasetError: the copy is not as it should be, or a file cannot be written.
    """
    folder = root / "cityscapes"
    definition = load_definition("cityscapes")
    lines = unpack_archives(dict.fromkeys(ARCHIVES, folder), archives, definition.checksums)
    specs = _present_specs(root)
    conversions = [conversion for spec in specs.values() for conversion in _conversions(spec)]
    written = convert_files(conversions, _train_ids, title="labelTrainIds", workers=workers)
    lines.append(f"labelTrainIds: {written} written, {len(conversions) - written} were there")
    absent = [split for split in definition.counts if split not in specs]
    if absent:
        lines.append(f"not there, and not needed for the fine train and val splits: {', '.join(absent)}")
    return lines + report_splits(
        output or folder / "splits.json",
        "cityscapes",
        specs,
        counts=None if partial else definition.counts,
        workers=workers,
        size=None if partial else IMAGE_SIZE,
        apart=[split for split in specs if split.startswith("fine")],
    )


def _present_specs(root: Path) -> dict[str, DatasetSpec]:
    """The splits that are needed, and those others of which both folders are there."""
    specs = {}
    for kind, splits in CITYSCAPES_SPLITS.items():
        for split in splits:
            spec = below(cityscapes_spec(kind, split), root)
            there = (root / spec.image_root).is_dir() and (root / spec.label_root).is_dir()
            if there or f"{kind}_{split}" in _REQUIRED:
                specs[f"{kind}_{split}"] = spec
    return specs


def _conversions(spec: DatasetSpec) -> list[Conversion]:
    sources = [Path(record["sem_seg_file_name"]) for record in spec.load()]
    return [
        Conversion(path, path.with_name(path.name.replace("_labelIds.png", "_labelTrainIds.png")))
        for path in sources
    ]


def _train_ids(conversion: Conversion) -> np.ndarray:
    return _reader()(conversion.source).astype(np.uint8)


@functools.cache
def _reader() -> LabelReader:
    definition = load_definition("cityscapes")
    return LabelReader(label_map=definition.label_map, num_classes=len(definition.classes))
