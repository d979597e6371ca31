"""Preparation of ADE20K: the files are used as they are published, so there is only something to check."""

from __future__ import annotations

from pathlib import Path

from regseg_d2.data.datasets.ade20k import ADE20K_SPLITS, ade20k_spec
from regseg_d2.data.datasets.definitions import load_definition
from regseg_d2.dataset_tools.preparation.archives import unpack_archives
from regseg_d2.dataset_tools.preparation.report import below, report_splits

ARCHIVES = ("ADEChallengeData2016.zip",)


def prepare_ade20k(
    root: Path,
    *,
    workers: int = 0,
    partial: bool = False,
    archives: Path | None = None,
    output: Path | None = None,
) -> list[str]:
    """Checks a copy of ADE20K and writes a description of its splits.

    Args:
        root: folder that holds ``ADEChallengeData2016``.
        workers: number of processes; 0 works in this one.
        partial: accept any number of images.
        archives: folder of the downloaded archive, to unpack; None where it is unpacked.
        output: description to write; None for ``splits.json`` beside the data.

    Returns:
        Lines for people.

    Raises:
        DatasetError: the copy is not as it should be, or a file cannot be written.
    """
    definition = load_definition("ade20k")
    lines = unpack_archives(dict.fromkeys(ARCHIVES, root), archives, definition.checksums)
    target = output or root / "ADEChallengeData2016" / "splits.json"
    return lines + report_splits(
        target,
        "ade20k",
        {split: below(ade20k_spec(split), root) for split in ADE20K_SPLITS},
        counts=None if partial else definition.counts,
        workers=workers,
        apart=tuple(ADE20K_SPLITS),
    )
