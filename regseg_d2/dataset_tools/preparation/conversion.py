"""Label files that are there whole or not at all, made in several processes.

A conversion can be stopped and started again at any moment: the files that are there are not made again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from regseg_d2.common.errors import DatasetError, WriteError
from regseg_d2.common.files import atomic_writer, is_disk_full, remove_partial_files, write_text
from regseg_d2.common.parallel import parallel_results
from regseg_d2.data.images import decoded_file


@dataclass(frozen=True)
class Conversion:
    """One label file to write.

    Attributes:
        source: the file that it is made from, for messages.
        output: the PNG to write.
        payload: what else the conversion function needs; is pickled.
    """

    source: Path
    output: Path
    payload: Any = None


def convert_files(
    conversions: Sequence[Conversion],
    function: Callable[[Conversion], np.ndarray],
    *,
    title: str,
    workers: int,
) -> int:
    """Writes the label files that are not there yet, in several processes, with progress and time to go.

    Args:
        conversions: what to write.
        function: a function of a module; returns file values ``(H, W)`` in uint8 or uint16. What it raises
            as ``DatasetError`` stops the conversion; files that are done stay.
        title: shown with the progress.
        workers: number of processes; 0 converts in this one.

    Returns:
        How many files were written; the others were there.

    Raises:
        DatasetError: a source cannot be used, a folder cannot be written to, the disk is full, or a worker
            died.
    """
    waiting = [conversion for conversion in conversions if not conversion.output.is_file()]
    for folder in {conversion.output.parent for conversion in waiting}:
        if folder.is_dir():
            remove_partial_files(folder)
    for _ in parallel_results(
        waiting,
        functools.partial(_convert, function=function),
        title=title,
        workers=workers,
        already_done=len(conversions) - len(waiting),
    ):
        pass
    return len(waiting)


def check_made_alike(conversions: Sequence[Conversion], function: Callable[[Conversion], np.ndarray]) -> None:
    """Checks that outputs of an earlier run, or of another tool, are what would be written now.

    The first, the middle and the last of those that are there are made again and compared.

    Raises:
        DatasetError: an output is another, or cannot be read.
    """
    there = [conversion for conversion in conversions if conversion.output.is_file()]
    for index in sorted({0, len(there) // 2, len(there) - 1}) if there else ():
        path = there[index].output
        with decoded_file(path, "label") as image:
            found = np.array(image)
        if not np.array_equal(found, function(there[index])):
            raise DatasetError(
                f"{path} is there and is another label than the one that {there[index].source} gives: the "
                f"labels in {path.parent} were made of something else. Move that folder away and start again."
            )


def _convert(conversion: Conversion, function: Callable[[Conversion], np.ndarray]) -> None:
    write_label(conversion.output, function(conversion))


def write_label(path: Path, values: np.ndarray) -> None:
    """Writes file values ``(H, W)`` in uint8 or uint16 as a PNG of one channel, whole or not at all.

    Raises:
        DatasetError: the disk is full, or the folder cannot be written to.
    """
    if values.dtype not in (np.uint8, np.uint16) or values.ndim != 2:
        raise TypeError(f"a label is {values.dtype} of shape {values.shape}; expected uint8 or uint16 (H, W)")
    with reported_writing(path), atomic_writer(path, "wb") as file:
        Image.fromarray(values).save(file, format="PNG")


@contextmanager
def reported_writing(path: Path) -> Iterator[None]:
    """Turns a failure to write a file into an error that says what to do.

    Raises:
        DatasetError: the disk is full, or the folder cannot be written to.
    """
    try:
        yield
    except (OSError, WriteError) as error:
        if is_disk_full(error):
            raise DatasetError(
                f"The disk is full: {path} could not be written, and nothing of it is left. Make room and "
                "start again; files that are done are not made again."
            ) from error
        reason = error.__cause__ or error  # the system's own words
        raise DatasetError(
            f"{path} cannot be written: {reason}. Make its folder writable, or name another place (--output)."
        ) from error


def write_list(path: Path, names: Iterable[str]) -> None:
    """Writes a list of a split, a name in each line; raises DatasetError, see :func:`reported_writing`."""
    with reported_writing(path):
        write_text(path, "".join(f"{name}\n" for name in names))
