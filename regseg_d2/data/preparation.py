"""What the scripts that prepare data sets share: checks of a download, and conversion of many files.

A conversion can be stopped and started again at any moment: a file is there whole or not at all, and those
that are there are not made again.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from regseg_d2.data.datasets.spec import datasets_root
from regseg_d2.engine.files import atomic_writer, remove_partial_files
from regseg_d2.errors import DatasetError, UserError

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_SHOWN = 5


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
    with Progress(
        TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), transient=True
    ) as progress:
        task = progress.add_task(title, total=len(conversions), completed=len(conversions) - len(waiting))
        for _ in _results(waiting, function, workers):
            progress.advance(task)
    return len(waiting)


def _results(conversions: Sequence[Conversion], function: Callable[..., np.ndarray], workers: int):
    if workers == 0:
        for conversion in conversions:
            yield _convert(conversion, function)
        return
    # Spawned: a forked process would inherit the threads' locks of this one.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures = [pool.submit(_convert, conversion, function) for conversion in conversions]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise DatasetError(
                "A process that converts files was ended by the system, usually for want of memory. Files "
                f"that are done stay; start again with fewer than --workers {workers}."
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _convert(conversion: Conversion, function: Callable[[Conversion], np.ndarray]) -> None:
    write_label(conversion.output, function(conversion))


def write_label(path: Path, values: np.ndarray) -> None:
    """Writes file values as a PNG of one channel, whole or not at all.

    Args:
        path: the file to write.
        values: ``(H, W)`` in uint8 or uint16.

    Raises:
        DatasetError: the disk is full, or the folder cannot be written to.
    """
    if values.dtype not in (np.uint8, np.uint16) or values.ndim != 2:
        raise TypeError(f"a label is {values.dtype} of shape {values.shape}; expected uint8 or uint16 (H, W)")
    try:
        with atomic_writer(path, "wb") as file:
            Image.fromarray(values).save(file, format="PNG")
    except OSError as error:
        raise DatasetError(write_failure(path, error)) from error


def write_failure(path: Path, error: OSError) -> str:
    """Says why a file could not be written and what to do."""
    if error.errno in _DISK_FULL:
        return (
            f"The disk is full: {path} could not be written, and nothing of it is left. Make room and start "
            "again; files that are done are not made again."
        )
    return f"{path} cannot be written: {error}. Make its folder writable, or name another place."


def check_files(folder: Path, names: Sequence[str], what: str, cure: str) -> None:
    """Checks that files are there.

    Args:
        folder: where they should be.
        names: paths below it.
        what: what they are, for the message: "images of the split val".
        cure: what to do if they are not there.

    Raises:
        DatasetError: a file is missing; the first are named.
    """
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        shown = ", ".join(missing[:_SHOWN])
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise DatasetError(
            f"{len(missing)} of {len(names)} {what} are not below {folder}: {shown}{more}. {cure}"
        )


def check_number(found: int, expected: int | None, what: str, folder: Path, cure: str) -> None:
    """Checks a number of files against the published one.

    Args:
        found: how many there are.
        expected: how many there should be; None accepts any.
        what: what they are.
        folder: where they are.
        cure: what to do if the number is another.

    Raises:
        DatasetError: the numbers differ.
    """
    if expected is not None and found != expected:
        raise DatasetError(f"{folder} has {found} {what}; expected {expected}. {cure}")


def check_sum(path: Path, expected: str, cure: str, algorithm: str = "md5") -> None:
    """Checks a file against its published checksum.

    Args:
        path: the file.
        expected: hexadecimal digest.
        cure: what to do if it is another.
        algorithm: name that ``hashlib`` knows.

    Raises:
        DatasetError: the file is missing, or is another.
    """
    if not path.is_file():
        raise DatasetError(f"{path} does not exist. {cure}")
    digest = hashlib.new(algorithm)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    found = digest.hexdigest()
    if found != expected:
        raise DatasetError(f"{path} has the {algorithm} {found}; expected {expected}: it is damaged. {cure}")


def preparation_parser(description: str) -> argparse.ArgumentParser:
    """The arguments that every preparation script has: ``--root`` and ``--workers``."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--root",
        type=Path,
        default=datasets_root(),
        metavar="FOLDER",
        help="folder of all data sets (default: $DETECTRON2_DATASETS, or ./datasets)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes that convert files; 0 converts in this one (default: %(default)s)",
    )
    return parser


def run_preparation(prepare: Callable[[], list[str]]) -> int:
    """Runs a script's work and prints what it says, or the user's error.

    Args:
        prepare: returns lines for people.

    Returns:
        The exit status: 1 after an error.
    """
    try:
        lines = prepare()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; start again to go on where it stopped", file=sys.stderr)
        return 130
    print("\n".join(lines))
    return 0
