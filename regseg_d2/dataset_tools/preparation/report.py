"""Reading every file of a data set once: what its splits hold, and which file cannot be used."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from regseg_d2.common.errors import DatasetError
from regseg_d2.common.files import write_text
from regseg_d2.common.parallel import parallel_results
from regseg_d2.data.datasets.spec import DatasetSpec
from regseg_d2.data.mapper import read_pair
from regseg_d2.dataset_tools.preparation.checks import check_number
from regseg_d2.dataset_tools.preparation.conversion import reported_writing

# Pairs that a process reads at a time: passing them on costs nothing then, and there is a time to go early.
_CHUNK = 8


def below(spec: DatasetSpec, root: Path) -> DatasetSpec:
    """The same split in another folder of all data sets."""
    return replace(spec, base=functools.partial(Path, root))


def describe_splits(
    specs: Mapping[str, DatasetSpec],
    *,
    counts: Mapping[str, int] | None,
    workers: int,
    size: tuple[int, int] | None = None,
    apart: Sequence[str] = (),
) -> dict[str, Any]:
    """Reads every image and label of the splits of a data set and counts the pixels of each class.

    Args:
        specs: the splits by their name within the data set.
        counts: number of images that each split must have; None accepts any.
        workers: number of processes; 0 reads in this one.
        size: height and width that every image must have; None accepts any.
        apart: splits that must not share an image.

    Returns:
        ``{"classes", "splits"}``, of each split ``{"count", "images", "pixels", "ignored_pixels"}``;
        ``pixels`` by class name.

    Raises:
        DatasetError: the number of images is another, a file cannot be used, or two splits share an image.
    """
    records = {split: spec.load() for split, spec in specs.items()}
    for split, spec in specs.items():
        folder, found = spec.base() / spec.image_root, len(records[split])
        check_number(
            found, counts[split] if counts else None, f"images of {spec.name}", folder, spec.how_to_get
        )
    _check_apart(specs, {split: records[split] for split in apart})
    pixels = {split: np.zeros(len(spec.classes) + 1, dtype=np.int64) for split, spec in specs.items()}
    chunks = [
        (split, records[split][start : start + _CHUNK])
        for split in specs
        for start in range(0, len(records[split]), _CHUNK)
    ]
    # A function that a caller made up as a base cannot be sent to another process; nothing is loaded there.
    count = functools.partial(_count_pixels, {k: replace(spec, base=Path) for k, spec in specs.items()}, size)
    for split, counted in parallel_results(chunks, count, title="reading", workers=workers):
        pixels[split] += counted
    return {
        "classes": list(next(iter(specs.values())).classes),
        "splits": {
            split: {
                "count": len(records[split]),
                "images": [record["image_id"] for record in records[split]],
                "pixels": {name: int(pixels[split][i]) for i, name in enumerate(spec.classes)},
                "ignored_pixels": int(pixels[split][-1]),
            }
            for split, spec in specs.items()
        },
    }


def _check_apart(specs: Mapping[str, DatasetSpec], records: Mapping[str, list[dict]]) -> None:
    owner: dict[str, str] = {}
    for split, entries in records.items():
        for image in (record["image_id"] for record in entries):
            if image in owner:
                raise DatasetError(
                    f"The image {image} is in {specs[owner[image]].name} and in {specs[split].name}. "
                    "Copy the data set again."
                )
            owner[image] = split


def _count_pixels(
    specs: Mapping[str, DatasetSpec], size: tuple[int, int] | None, chunk: tuple[str, list[dict]]
) -> tuple[str, np.ndarray]:
    """Counts the pixels of each class, and of none in the last place, in some records of a split."""
    split, records = chunk
    spec = specs[split]
    classes = len(spec.classes)
    reader = spec.label_reader()
    pixels = np.zeros(classes + 1, dtype=np.int64)
    for record in records:
        _, label = read_pair(record, reader)
        if size is not None and label.shape != size:
            raise DatasetError(
                f"{record['file_name']} has {label.shape[0]} x {label.shape[1]} pixels (height x width); "
                f"expected {size[0]} x {size[1]}, the version of the data set that results are reported on."
            )
        valid = label[label != spec.ignore_value]
        pixels[:classes] += np.bincount(valid, minlength=classes)
        pixels[classes] += label.size - valid.size
    return split, pixels


def report_splits(path: Path, dataset: str, specs: Mapping[str, DatasetSpec], **options: Any) -> list[str]:
    """Reads the splits of a data set, writes what they hold as JSON, and returns lines for people.

    The options are those of :func:`describe_splits`.

    Raises:
        DatasetError: see :func:`describe_splits`, or the file cannot be written.
    """
    description = {"dataset": dataset, **describe_splits(specs, **options)}
    with reported_writing(path):
        write_text(path, json.dumps(description, indent=1) + "\n")
    lines = [
        f"{split}: {content['count']} images, all in order"
        for split, content in description["splits"].items()
    ]
    return [*lines, f"wrote {path}"]
