"""One process at a time on a run."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from regseg_d2.errors import UserError


class RunIsTaken(UserError):
    """Another process works on the run."""


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Keeps other processes off the folder of a run; the lock of a process that was killed is gone with it.

    Raises:
        RunIsTaken: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunIsTaken(f"Another process works in '{folder}'.") from None
        yield
