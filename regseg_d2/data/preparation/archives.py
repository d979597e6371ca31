"""Unpacking the archives of a data set: safe to stop and to start again, with errors that name the file."""

from __future__ import annotations

import lzma
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from regseg_d2.data.preparation.checks import check_sum
from regseg_d2.data.preparation.conversion import reported_writing
from regseg_d2.engine.files import PARTIAL_SUFFIX
from regseg_d2.errors import DatasetError

# What the readers of archives raise on a file that is cut off or damaged.
_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, NotImplementedError)

_CURE = "Download it again; if its authors have published another version since, unpack it yourself."


def unpack_archives(
    archives: Mapping[str, Path], source: Path | None, checksums: Mapping[str, str]
) -> list[str]:
    """Unpacks those archives of a download that are there.

    Args:
        archives: ``{name of the archive: folder to unpack it into}``.
        source: folder of the archives; None unpacks none.
        checksums: ``{name: "algorithm:digest"}`` where one is published.

    Returns:
        A line for people for each archive that is there.

    Raises:
        DatasetError: none of the archives is there, one is damaged, or the disk is full.
    """
    if source is None:
        return []
    found = [name for name in archives if (source / name).is_file()]
    if not found:
        raise DatasetError(
            f"None of {', '.join(archives)} is in {source}. Name the folder of the downloaded archives with "
            "--archives, or leave it out where they are unpacked."
        )
    lines = []
    for name in found:
        if name in checksums:
            check_sum(source / name, checksums[name], _CURE)
        written = unpack(source / name, archives[name])
        lines.append(f"{source / name}: unpacked {written} files into {archives[name]}")
    return lines


def unpack(archive: Path, folder: Path) -> int:
    """Unpacks a zip or tar archive; files that are there in the right size are kept.

    Args:
        archive: the archive.
        folder: where to; is made where it is missing.

    Returns:
        How many files were written.

    Raises:
        DatasetError: the archive is damaged, has a path that leads out of the folder, or a file cannot be
            written.
    """
    written = 0
    columns = (TextColumn(archive.name), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    try:
        with archive.open("rb") as file, Progress(*columns, transient=True) as progress:
            task = progress.add_task(archive.name, total=archive.stat().st_size)
            for name, size, content in _members(file):
                target = folder / _inner_path(archive, name)
                if not (target.is_file() and target.stat().st_size == size):
                    _write_member(content, target)
                    written += 1
                progress.update(task, completed=file.tell())
    except _DAMAGE as error:
        raise DatasetError(
            f"The archive {archive} is cut off or damaged: {error}. Download it again; what is unpacked "
            "already stays."
        ) from error
    except OSError as error:
        raise DatasetError(f"The archive {archive} cannot be read: {error}. Download it again.") from error
    return written


def _members(file: IO[bytes]) -> Iterator[tuple[str, int, IO[bytes]]]:
    """Name, size and content of every file of an archive, in its order."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                if not member.is_dir():
                    with archive.open(member) as content:
                        yield member.filename, member.file_size, content
        return
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r|*") as archive:
        for member in archive:
            if member.isfile():
                yield member.name, member.size, archive.extractfile(member)


def _inner_path(archive: Path, name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name:
        raise DatasetError(
            f'The archive {archive} holds "{name}", a path that leads out of its folder: it is not what is '
            "published. Download it again."
        )
    return path


def _write_member(content: IO[bytes], target: Path) -> None:
    """Writes a file whole or not at all.

    It is not flushed to the disk by itself, as tens of thousands of small files would take minutes more: what
    a power cut leaves has the wrong size and is unpacked again.
    """
    partial = target.with_name(f".{target.name}{PARTIAL_SUFFIX}")
    with reported_writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        file = partial.open("wb")
    try:
        with file:
            shutil.copyfileobj(content, _Reported(file, target), 1 << 20)
        os.replace(partial, target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


class _Reported:
    """A file whose failures to write are told from failures to read the archive."""

    def __init__(self, file: IO[bytes], target: Path) -> None:
        self._file = file
        self._target = target

    def write(self, block: bytes) -> None:
        with reported_writing(self._target):
            self._file.write(block)
            self._file.flush()
