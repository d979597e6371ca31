"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch

from regseg_d2.common.errors import DiskFullError, WriteError, causes

# Ends the name of a file that is being written. One that is left behind belongs to a killed process.
PARTIAL_SUFFIX = ".partial"


@contextmanager
def atomic_writer(
    path: str | os.PathLike[str], mode: str = "w", *, before_replacing: Callable[[], None] | None = None
) -> Iterator[IO[Any]]:
    """Opens a temporary file that takes the place of ``path`` when the block ends without an error.

    A reader, and a process that is killed at any moment, sees the old file or the new one: the
    temporary file lies in the same folder, is flushed to the disk, and is renamed.

    Args:
        path: the file to write; its folder is made where it is missing.
        mode: "w" for text in UTF-8, "wb" for bytes.
        before_replacing: called when all bytes are on the disk, before they take the place of ``path``.

    Yields:
        The open file.

    Raises:
        DiskFullError: there is no room for the file; the old one is still there.
        WriteError: the folder cannot be written to, or a folder has the file's name.
    """
    path = Path(path)
    refuse_folder(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=_draft_prefix(path), suffix=PARTIAL_SUFFIX)
    except OSError as error:
        if is_disk_full(error):
            raise DiskFullError(disk_full_message(path)) from error
        raise WriteError(f"'{path}' cannot be written: {error.strerror or error}.") from error
    try:
        with os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())  # mkstemp's files are readable by their owner alone
        if before_replacing is not None:
            before_replacing()
        os.replace(name, path)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if is_disk_full(error):
            raise DiskFullError(disk_full_message(path)) from error
        raise
    _sync_folder(path.parent)


@contextmanager
def atomic_folder(path: str | os.PathLike[str], *, replace: bool = False) -> Iterator[Path]:
    """Makes a folder that is there as a whole when the block ends without an error, or not at all.

    Its files are written into a folder beside it, flushed to the disk, and that folder is renamed.

    Args:
        path: the folder; those above it are made where they are missing.
        replace: take away the folder of this name that is there, once the new one is whole.

    Yields:
        The folder to write to.

    Raises:
        DiskFullError: there is no room for it; what was there before is unharmed.
        WriteError: it cannot be written, or is there already and shall not be replaced.
    """
    path = Path(path)
    try:
        parent = path.absolute().parent
        parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=parent, prefix=_draft_prefix(path), suffix=PARTIAL_SUFFIX))
    except OSError as error:
        raise WriteError(f"'{path}' cannot be written: {error.strerror or error}.") from error
    try:
        yield draft
        for folder, _, names in os.walk(draft):
            for name in names:
                # Some writers, and mkdtemp, make what is its owner's alone.
                os.chmod(os.path.join(folder, name), 0o666 & ~_umask())
                _sync(os.path.join(folder, name))
            os.chmod(folder, 0o777 & ~_umask())
            _sync_folder(Path(folder))
        _move_into_place(draft, path, replace=replace)
    except BaseException as error:
        if is_disk_full(error):
            raise DiskFullError(disk_full_message(path)) from error
        raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    _sync_folder(parent)


def _draft_prefix(path: Path) -> str:
    """How a draft of ``path`` is called at first; a name as long as names may be is cut off."""
    return f".{os.fsdecode(os.fsencode(path.name)[:200])}."


def _move_into_place(draft: Path, path: Path, *, replace: bool) -> None:
    # A process that is killed between the two renames leaves the old folder under this name.
    old = draft.with_suffix(".old")
    if replace and path.exists():
        os.rename(path, old)
    try:
        os.rename(draft, path)
    except OSError as error:
        if old.exists():
            os.rename(old, path)
        raise WriteError(f"'{path}' cannot be written: {error.strerror or error}.") from error
    shutil.rmtree(old, ignore_errors=True)


def require_room(folder: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Refuses to begin what would not fit into a folder: a state of tensors in containers.

    Raises:
        DiskFullError: the disk has less room than the tensors take.
    """
    needed, free = _num_bytes(state), shutil.disk_usage(folder).free
    if free < needed:
        raise DiskFullError(
            f"A checkpoint takes {needed / 1e6:,.3g} MB, and the disk of '{folder}' has {free / 1e6:,.3g} MB "
            "free. Nothing was changed there; make room, or give another OUTPUT_DIR."
        )


def _num_bytes(state: Any) -> int:
    if isinstance(state, torch.Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, Mapping):
        state = list(state.values())
    return sum(map(_num_bytes, state)) if isinstance(state, (list, tuple)) else 0


def refuse_folder(path: str | os.PathLike[str]) -> None:
    """Raises WriteError where a folder has the name that a file of a run shall have."""
    if Path(path).is_dir():
        raise WriteError(f"'{path}' is a folder, where a file of the run belongs: move it away.")


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or one that it came from, says that a disk or a quota is full.

    torch wraps what its writer of checkpoints meets in errors of its own.
    """
    full = (errno.ENOSPC, errno.EDQUOT)
    return any(isinstance(link, OSError) and link.errno in full for link in causes(error))


def disk_full_message(path: str | os.PathLike[str] | None) -> str:
    """What to say about a file, known by its name or not, that found no room."""
    file, free = "a file of the run", ""
    if path is not None:
        file, folder = f"'{path}'", Path(path).absolute().parent
        if folder.is_dir():
            free = f" ({shutil.disk_usage(folder).free / 1e6:.1f} MB are free without it)"
    return (
        f"The disk, or your quota on it, is full{free}: {file} could not be written. What was there before, "
        "the last checkpoint too, is unharmed. Free some space; --resume then continues from that checkpoint."
    )


def digest_of(path: str | os.PathLike[str], algorithm: str = "sha256") -> str:
    """Returns the hexadecimal digest of a file, by one of hashlib's algorithms."""
    digest = hashlib.new(algorithm)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a whole text file, atomically."""
    with atomic_writer(path) as file:
        file.write(text)


def remove_partial_files(folder: str | os.PathLike[str]) -> list[Path]:
    """Deletes what killed processes left half written in a folder, and returns the paths."""
    leftovers = sorted(Path(folder).glob(f".*{PARTIAL_SUFFIX}"))
    for leftover in leftovers:
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink(missing_ok=True)
    return leftovers


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Makes the rename itself survive a power cut; only POSIX systems can open a folder for it."""
    if os.name == "posix":
        _sync(folder)


def _sync(path: str | os.PathLike[str]) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
