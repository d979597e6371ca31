"""Preparation of COCO-Stuff 164K: the files are used as they are published; they are only checked."""

from __future__ import annotations

from pathlib import Path

from regseg_d2.data.datasets.coco_stuff import (
    COCO_STUFF_164K_FOLDER,
    COCO_STUFF_164K_SPLITS,
    coco_stuff_164k_spec,
)
from regseg_d2.data.datasets.definitions import load_definition
from regseg_d2.dataset_tools.preparation.archives import unpack_archives
from regseg_d2.dataset_tools.preparation.report import below, report_splits

# With the folder below ``coco_stuff164k`` where they are unpacked.
ARCHIVES = {
    "train2017.zip": "images",
    "val2017.zip": "images",
    "stuffthingmaps_trainval2017.zip": "annotations",
}


def prepare_coco_stuff_164k(
    root: Path,
    *,
    workers: int = 0,
    partial: bool = False,
    archives: Path | None = None,
    output: Path | None = None,
) -> list[str]:
    """Checks a copy of COCO-Stuff 164K and writes a description of its splits.

    Args:
        root: folder that holds ``coco_stuff164k``.
        workers: number of processes; 0 works in this one.
        partial: accept any number of images.
        archives: folder of the downloaded archives, to unpack; None where they are unpacked.
        output: description to write; None for ``splits.json`` beside the data.

    Returns:
        Lines for people.

    Raises:
        DatasetError: the copy is not as it should be, or a file cannot be written.
    """
    folder = root / COCO_STUFF_164K_FOLDER
    definition = load_definition("coco_stuff_164k")
    places = {name: folder / place for name, place in ARCHIVES.items()}
    lines = unpack_archives(places, archives, definition.checksums)
    target = output or folder / "splits.json"
    return lines + report_splits(
        target,
        "coco_stuff_164k",
        {split: below(coco_stuff_164k_spec(split), root) for split in COCO_STUFF_164K_SPLITS},
        counts=None if partial else definition.counts,
        workers=workers,
        apart=COCO_STUFF_164K_SPLITS,
    )
