"""One process at a time in a run's folder. The lock of a process that was killed is gone with it."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from regseg_d2.common.errors import UserError
from regseg_d2.data.main_process import from_main_process

#: File in a run's folder that its trainer holds a lock on.
LOCK_FILE = ".lock"


class FolderInUseError(UserError):
    """Another process writes to the folder."""


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a lock on a file, which stays, empty.

    It and its folder are made where they are missing.

    Raises:
        FolderInUseError: another process holds it.
        UserError: the folder cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise UserError(f"'{path.parent}' cannot be written to: {error.strerror or error}.") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderInUseError(
                f"'{path.parent}' is in use: another process trains in it. Wait for its end, stop it, or "
                "take another folder."
            ) from None
        yield


@contextmanager
def run_lock(folder: str | Path) -> Iterator[None]:
    """Keeps a second training out of a folder; to be entered by all processes of a run.

    Raises:
        UserError: on all processes, see :func:`locked`.
    """
    with ExitStack() as held:
        from_main_process(lambda: held.enter_context(locked(Path(folder) / LOCK_FILE)))
        yield
