"""How many pixels of each class every training label has: counted once a run, kept in its folder."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode

from regseg_d2.common.errors import DatasetError
from regseg_d2.common.files import atomic_writer
from regseg_d2.common.parallel import parallel_results
from regseg_d2.data.bad_files import skips_bad_files
from regseg_d2.data.balance import ClassBalance, count_classes
from regseg_d2.data.labels import LabelReader, label_reader_for
from regseg_d2.data.subsets import load_train_subset
from regseg_d2.data.transforms import count_labels

logger = logging.getLogger(__name__)

#: In OUTPUT_DIR.
FILE_NAME = "label_counts.npz"
# Labels that a process counts at a time; a process takes seconds to start and pays from more than that on.
_CHUNK = 64
_FEW = 256


@dataclass(frozen=True)
class LabelCounts:
    """Pixels of K classes in N labels.

    Attributes:
        per_image: pixels of each class in each label, ``(N, K)`` of uint32.
        ignored_pixels: pixels without a class in all of them.
    """

    per_image: np.ndarray
    ignored_pixels: int

    def balance(self) -> ClassBalance:
        """Sums over the labels."""
        return count_classes(self.per_image.astype(np.int64), self.ignored_pixels)


def training_label_counts(cfg: CfgNode) -> LabelCounts:
    """Counts the labels of ``DATASETS.TRAIN``, or reads what this run counted before.

    The counts lie in ``OUTPUT_DIR/label_counts.npz`` and hold for the same files (name, size and time of
    the last change) read in the same way; otherwise they are made again.

    They are in the order of ``load_train_subset``.

    Raises:
        ConfigError: a data set's name is unknown.
        DatasetError: a data set cannot be loaded; a label cannot be used and ``DATALOADER.BAD_FILES`` is
            "stop".
    """
    records = load_train_subset(cfg, max(cfg.SEED, 0))
    readers = {name: label_reader_for(name) for name in cfg.DATASETS.TRAIN}
    path, key = Path(cfg.OUTPUT_DIR) / FILE_NAME, _fingerprint(records, readers)
    counts = _read(path, key)
    if counts is None:
        logger.info("Counting the pixels of each class in %d training labels.", len(records))
        workers = cfg.DATALOADER.NUM_WORKERS if len(records) > _FEW else 0
        counts = count_label_files(records, readers, workers=workers, skip_bad=skips_bad_files(cfg))
        with atomic_writer(path, "wb") as file:
            np.savez_compressed(
                file, key=key, per_image=counts.per_image, ignored_pixels=counts.ignored_pixels
            )
    return counts


def count_label_files(
    records: Sequence[dict], readers: Mapping[str, LabelReader], *, workers: int, skip_bad: bool = False
) -> LabelCounts:
    """Counts the pixels of each class in every label, in several processes, with progress and time to go.

    ``readers`` are those of the data sets of the records, all with the same number of classes; 0 ``workers``
    count in this process. With ``skip_bad`` a label that cannot be used counts nothing, with a warning.

    Raises:
        DatasetError: a label cannot be used.
    """
    files = [(record["sem_seg_file_name"], record["dataset_name"]) for record in records]
    chunks = [(start, files[start : start + _CHUNK]) for start in range(0, len(files), _CHUNK)]
    num_classes = next(iter(readers.values())).num_classes
    per_image, ignored = np.zeros((len(files), num_classes), dtype=np.uint32), 0
    count = functools.partial(_count_chunk, readers=dict(readers), skip_bad=skip_bad)
    for start, counts, chunk_ignored, warnings in parallel_results(
        chunks, count, title="labels, in chunks", workers=workers
    ):
        per_image[start : start + len(counts)] = counts
        ignored += chunk_ignored
        for warning in warnings:
            logger.warning("Nothing is counted in a label that cannot be used. %s", warning)
    return LabelCounts(per_image, ignored)


def _count_chunk(
    chunk: tuple[int, list[tuple[str, str]]], *, readers: Mapping[str, LabelReader], skip_bad: bool
) -> tuple[int, np.ndarray, int, list[str]]:
    start, files = chunk
    num_classes = next(iter(readers.values())).num_classes
    counts, ignored, warnings = np.zeros((len(files), num_classes), dtype=np.uint32), 0, []
    for row, (path, name) in zip(counts, files, strict=True):
        try:
            label = readers[name].compact(path)
        except DatasetError as error:
            if not skip_bad:
                raise
            warnings.append(str(error))
            continue
        found = count_labels(label, readers[name].ignore_value)
        row[: len(found)] = found[:num_classes]
        ignored += label.size - int(found.sum())
    return start, counts, ignored, warnings


def _fingerprint(records: Sequence[dict], readers: Mapping[str, LabelReader]) -> str:
    """Hash of all that the counts depend on."""
    content: list = [
        (name, _sorted(r.label_map), _sorted(r.color_table), r.ignore_value, r.num_classes)
        for name, r in sorted(readers.items())
    ]
    for record in records:
        path = record["sem_seg_file_name"]
        try:
            state = os.stat(path)
            content.append((str(path), record["dataset_name"], state.st_size, state.st_mtime_ns))
        except OSError:  # whoever reads it says what is wrong
            content.append((str(path), record["dataset_name"], None, None))
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _sorted(table: Mapping | None) -> list | None:
    return None if table is None else sorted(table.items())


def _read(path: Path, key: str) -> LabelCounts | None:
    """The counts of a file, if they are there, whole, and those of ``key``."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as content:
            if str(content["key"]) != key:
                logger.info("The labels are not those of %s.", path)
                return None
            return LabelCounts(content["per_image"], int(content["ignored_pixels"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        logger.warning("%s cannot be read (%s) and is made again.", path, error)
        return None
