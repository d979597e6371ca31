"""Reads files in a process of its own, under limits of time and memory, and tells what came out."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import resource
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from regseg_d2.common.errors import UserError

#: What a small file may take: seconds of processor time, and bytes beside those that the process starts with.
SECONDS = 2.0
MEMORY = 1 << 30
# The machine may be busy with other things.
_LONGEST_WAIT = 10 * SECONDS
_LONGEST_START = 300.0
_LONGEST_MESSAGE = 5000

Reader = Callable[[Path], None]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came out of a file.

    Attributes:
        kind: "accepted", "refused" with one of our errors, or else "crashed", "died" or "endless".
        detail: the error's message, or what went wrong.
        seconds: processor time.
    """

    kind: str
    detail: str
    seconds: float = 0.0

    @property
    def is_right(self) -> bool:
        """Whether it was read, or ended with one of our errors."""
        return self.kind in ("accepted", "refused")


class LimitedReader:
    """A process that reads one file after the other; it is started anew after one that kills it."""

    def __init__(self, read: Reader) -> None:
        """Prepares the process, which starts with the first file.

        Args:
            read: a function of a module, as it is sent to the process by its name.
        """
        self._read = read
        self._process: multiprocessing.process.BaseProcess | None = None
        self._connection: Connection | None = None

    def __enter__(self) -> LimitedReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def read(self, path: Path) -> Outcome:
        """Reads a file.

        Args:
            path: the file.
        """
        if self._process is None:
            self._start()
        self._connection.send(path)
        if not self._connection.poll(_LONGEST_WAIT):
            self.stop()
            return Outcome("endless", f"more than {_LONGEST_WAIT:.0f} s", _LONGEST_WAIT)
        try:
            outcome = self._connection.recv()
        except EOFError:
            self._process.join()
            code = self._process.exitcode
            self.stop()
            return Outcome("died", signal.Signals(-code).name if code < 0 else f"exit status {code}")
        if outcome.seconds > SECONDS:
            return dataclasses.replace(
                outcome, kind="endless", detail=f"{outcome.seconds:.1f} s of processor time"
            )
        return outcome

    def stop(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._connection.close()
        self._process = self._connection = None

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._read), daemon=True)
        self._process.start()
        theirs.close()
        # Its imports take their time.
        if not self._connection.poll(_LONGEST_START):
            self.stop()
            raise RuntimeError(f"the process did not start within {_LONGEST_START} s")
        self._connection.recv()


def _serve(connection: Connection, read: Reader) -> None:
    warnings.simplefilter("ignore")  # Pillow's, about damaged files
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # bars of progress
    os.dup2(1, 2)  # what libraries in C say about damaged files
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    connection.send("ready")
    while True:
        try:
            path = connection.recv()
        except EOFError:
            return
        connection.send(_outcome(read, path))


def _outcome(read: Reader, path: Path) -> Outcome:
    start = time.process_time()
    try:
        read(path)
        kind, detail = "accepted", ""
    except UserError as error:
        kind, detail = "refused", str(error)
        if path.name not in detail:
            kind = "crashed"
            detail = f"an error that does not name the file: {detail}"
        elif len(detail) > _LONGEST_MESSAGE or not _is_printable(detail):
            kind = "crashed"
            detail = f"an error that cannot be printed: {detail[:200]!r}"
    except BaseException:
        kind, detail = "crashed", traceback.format_exc()
    return Outcome(kind, detail[:_LONGEST_MESSAGE], time.process_time() - start)


def _is_printable(message: str) -> bool:
    try:
        message.encode()
    except UnicodeEncodeError:
        return False
    return "\x1b" not in message and "\0" not in message
