"""Unpacking the archives of a data set: safe to stop and to start again, with errors that name the file."""

from __future__ import annotations

import lzma
import os
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any, NoReturn

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from regseg_d2.common.errors import DatasetError, UserError, printable
from regseg_d2.common.files import PARTIAL_SUFFIX
from regseg_d2.dataset_tools.preparation.checks import check_sum
from regseg_d2.dataset_tools.preparation.conversion import reported_writing

# What the readers of archives raise on a file that is cut off, damaged or made to harm. They do not check all
# that they index, decode and allocate.
_DAMAGE = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, struct.error),
    *(NotImplementedError, RuntimeError, ValueError, IndexError, KeyError, TypeError, AttributeError),
    *(OverflowError, MemoryError, AssertionError),
)
# COCO-Stuff, the largest of the data sets, has 164,000 files a folder.
_MOST_MEMBERS = 2_000_000
# Unpacked bytes: images and labels are compressed already, and a bomb has a thousand times its size.
_MOST_GROWTH = 200
_FREE_SIZE = 100 << 20
# Headers of a tar archive that hold long names and attributes.
_MOST_HEADER_BYTES = 64 << 10
_LONGEST_PATH = 1000

_CURE = "Download it again; if its authors have published another version since, unpack it yourself."


def unpack_archives(
    archives: Mapping[str, Path], source: Path | None, checksums: Mapping[str, str]
) -> list[str]:
    """Unpacks those archives of a download that are there.

    ``archives`` has the folder to unpack each name into, ``source`` is where they lie (None unpacks none),
    and ``checksums`` has "algorithm:digest" where one is published. Returns a line for people for each
    archive.

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
    """Unpacks a zip or tar archive, and returns how many files it wrote; those of the right size are kept.

    Raises:
        DatasetError: the archive is damaged, encrypted or a bomb, has a path that leads out of the folder or
            cannot be one, or a file cannot be written.
    """
    written = 0
    columns = (TextColumn(archive.name), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    try:
        limits = _Limits(archive)
        with archive.open("rb") as file, Progress(*columns, transient=True) as progress:
            task = progress.add_task(archive.name, total=archive.stat().st_size)
            for name, size, content in _members(file, limits):
                target = folder / _inner_path(archive, name)
                _check_place(archive, folder, target)
                if not (target.is_file() and target.stat().st_size == size):
                    _write_member(content, target)
                    written += 1
                progress.update(task, completed=file.tell())
    except UserError:
        raise
    except _DAMAGE as error:
        reason = printable(str(error)) or type(error).__name__
        raise DatasetError(
            f"The archive {archive} is cut off or damaged: {reason}. Download it again; what is unpacked "
            "already stays."
        ) from error
    except OSError as error:
        raise DatasetError(f"The archive {archive} cannot be read: {error}. Download it again.") from error
    return written


class _Limits:
    """Counts members and bytes before anything of them is read."""

    def __init__(self, archive: Path) -> None:
        self.archive = archive
        self._members_left = _MOST_MEMBERS
        self._bytes = self._bytes_left = _FREE_SIZE + _MOST_GROWTH * archive.stat().st_size

    def count(self, size: int) -> None:
        """Counts a member of so many bytes; raises DatasetError where there are too many of either."""
        self._members_left -= 1
        self._bytes_left -= size
        if size < 0 or self._members_left < 0 or self._bytes_left < 0:
            raise DatasetError(
                f"The archive {self.archive} would unpack to more than {self._bytes} bytes or "
                f"{_MOST_MEMBERS} files: it is not what is published. Download it again."
            )


class _PlainTarInfo(tarfile.TarInfo):
    """Headers of tar archives, without those that make Python's reader endless: large, sparse or broken."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _PlainTarInfo:
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.InvalidHeaderError as error:  # type: ignore[attr-defined]  # typeshed lacks it
            # Behind the first member, Python takes it for the end of the archive.
            raise tarfile.ReadError(str(error)) from error
        is_plain = header.isreg() or header.isdir() or header.issym() or header.islnk() or header.isdev()
        if not is_plain and header.size > _MOST_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {header.size} bytes")
        return header

    def _refuse_sparse(self, *_: Any) -> NoReturn:
        raise tarfile.ReadError("a sparse file")

    # The private steps of Python's reader that the kinds of sparse files go through; tests watch over them.
    _proc_sparse = _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _refuse_sparse


def _members(file: IO[bytes], limits: _Limits) -> Iterator[tuple[str, int, IO[bytes]]]:
    """Name, size and content of every file of an archive, in its order."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                limits.count(member.file_size)
                if member.flag_bits & 1:
                    raise DatasetError(
                        f"The archive {limits.archive} is encrypted: it is not what is published. Download "
                        "it again, or unpack it yourself."
                    )
            for member in archive.infolist():
                if not member.is_dir():
                    with archive.open(member) as content:
                        yield member.filename, member.file_size, content
        return
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r|*", tarinfo=_PlainTarInfo) as tar:
        for entry in tar:
            limits.count(entry.size)
            extracted = tar.extractfile(entry) if entry.isfile() else None
            if extracted is not None:
                yield entry.name, entry.size, extracted


def _inner_path(archive: Path, name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if (
        not path.parts
        or not name.isprintable()
        or len(name) > _LONGEST_PATH
        or any(len(p.encode()) > 255 for p in path.parts)
    ):
        raise DatasetError(
            f"The archive {archive} holds '{printable(name, 80)}', which cannot be the name of a file: it is "
            "not what is published. Download it again."
        )
    if path.is_absolute() or ".." in path.parts or "\\" in name:
        raise DatasetError(
            f'The archive {archive} holds "{name}", a path that leads out of its folder: it is not what is '
            "published. Download it again."
        )
    return path


def _check_place(archive: Path, folder: Path, target: Path) -> None:
    """Refuses a name that is there as something else: a folder, or below a file."""
    inside = [parent for parent in target.parents if folder in parent.parents]
    wrong = [target] if target.is_dir() else [parent for parent in inside if parent.is_file()]
    if wrong:
        raise DatasetError(
            f"The archive {archive} has the file {target.relative_to(folder)}, and {wrong[0]} is a "
            f"{'folder' if wrong[0] == target else 'file'} already. Download it again, or unpack it into an "
            "empty folder."
        )


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
