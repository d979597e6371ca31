"""Preparation of Cityscapes.

Training needs none of it: ``*_labelIds.png`` are read as they are. ``*_labelTrainIds.png`` are for other
tools. The official script draws them from polygons; as it draws the same polygons in the same order as for
``labelIds``, only with other values, the label map gives the same image.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from regseg_d2.data.datasets.definitions import load_definition
from regseg_d2.data.datasets.spec import DatasetSpec
from regseg_d2.data.labels import LabelReader
from regseg_d2.dataset_tools.preparation.conversion import Conversion, convert_files
from regseg_d2.dataset_tools.preparation.preparation import Copy, Preparation

_REQUIRED = ("fine_train", "fine_val")


def _write_train_ids(copy: Copy) -> list[str]:
    """Writes ``labelTrainIds`` of all splits that are there; those besides the required ones need not be."""
    for split, spec in list(copy.specs.items()):
        there = (copy.root / spec.image_root).is_dir() and (copy.root / spec.label_root).is_dir()
        if not there and split not in _REQUIRED:
            del copy.specs[split]
    conversions = [conversion for spec in copy.specs.values() for conversion in _conversions(spec)]
    written = convert_files(conversions, _train_ids, title="labelTrainIds", workers=copy.workers)
    lines = [f"labelTrainIds: {written} written, {len(conversions) - written} were there"]
    absent = [split for split in copy.definition.counts if split not in copy.specs]
    if absent:
        lines.append(f"not there, and not needed for the fine train and val splits: {', '.join(absent)}")
    return lines


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


prepare_cityscapes = Preparation(
    "cityscapes",
    folder="cityscapes",
    archives={
        "leftImg8bit_trainvaltest.zip": "cityscapes",
        "gtFine_trainvaltest.zip": "cityscapes",
        "leftImg8bit_trainextra.zip": "cityscapes",
        "gtCoarse.zip": "cityscapes",
    },
    convert=_write_train_ids,
    size=(1024, 2048),
    apart=("fine_train", "fine_val", "fine_test"),
)
