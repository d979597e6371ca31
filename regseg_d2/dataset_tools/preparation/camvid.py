"""Preparation of CamVid: the files are used as they are published, so there is only something to check."""

from __future__ import annotations

from pathlib import Path

from regseg_d2.data.datasets.camvid import CAMVID_SPLITS, camvid_spec
from regseg_d2.data.datasets.definitions import load_definition
from regseg_d2.dataset_tools.preparation.report import below, report_splits

IMAGE_SIZE = (360, 480)


def prepare_camvid(
    root: Path, *, workers: int = 0, partial: bool = False, output: Path | None = None
) -> list[str]:
    """Checks a copy of CamVid and writes a description of its splits.

    Args:
        root: folder that holds ``camvid``.
        workers: number of processes; 0 works in this one.
        partial: accept any number of images, of any size.
        output: description to write; None for ``splits.json`` beside the data.

    Returns:
        Lines for people.

    Raises:
        DatasetError: the copy is not as it should be, or the description cannot be written.
    """
    return report_splits(
        output or root / "camvid" / "splits.json",
        "camvid",
        {split: below(camvid_spec(split), root) for split in CAMVID_SPLITS},
        counts=None if partial else load_definition("camvid").counts,
        workers=workers,
        size=None if partial else IMAGE_SIZE,
        apart=CAMVID_SPLITS,
    )
