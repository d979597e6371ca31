"""Runs pip for the set-up scripts: its progress in short, its failures with what to do.

Standard library only: nothing is installed when this runs.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

# Lines of pip's output worth a line of ours.
_SHOWN = (
    "Downloading ",
    "Building wheel",
    "Building editable",
    "Installing collected packages",
    "Successfully ",
)
_SHOWN_WIDTH = 110
_KEPT_LINES = 60

AGAIN = "then run the same command again: it continues where this one stopped."

_NOTHING_FOUND = ("No matching distribution found", "ResolutionImpossible")

# (words in pip's output, what happened, what to do); the first row that matches wins.
_FAILURES: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (
        ("No space left on device", "Errno 28"),
        "the disk is full",
        "the environment needs about 6 GB (most of it torch's CUDA libraries); free some space, " + AGAIN,
    ),
    (
        ("DO NOT MATCH THE HASHES", "do not match the hashes"),
        "a downloaded file is not the one that was tested (its hash differs)",
        "the download was cut, or a mirror serves another file; run `pip cache purge`, check PIP_INDEX_URL, "
        + AGAIN,
    ),
    (
        ("externally-managed-environment",),
        "this Python belongs to the operating system, and pip must not change it",
        "use a virtual environment: `make setup` creates one in .venv.",
    ),
    (
        ("Permission denied", "Errno 13"),
        "pip may not write there",
        "use a virtual environment that you own: `make setup` creates one in .venv.",
    ),
    (
        (
            "NewConnectionError",
            "ConnectTimeoutError",
            "ReadTimeoutError",
            "Read timed out",
            "NameResolutionError",
            "Temporary failure in name resolution",
            "Failed to establish a new connection",
            "Connection refused",
            "Connection reset",
            "Connection aborted",
            "ConnectionResetError",
            "IncompleteRead",
            "ProtocolError",
            "ProxyError",
            "Could not resolve host",
            "unable to access",
            "Network is unreachable",
        ),
        "there is no connection to the package index (with --source git: to GitHub), or it was cut",
        "check the network (and PIP_INDEX_URL, HTTPS_PROXY), " + AGAIN,
    ),
    (
        ("SSLError", "CERTIFICATE_VERIFY_FAILED"),
        "the package index's certificate is not trusted here",
        "behind a company proxy set PIP_CERT to its certificate file, " + AGAIN,
    ),
    (
        _NOTHING_FOUND,
        "the package index has no version that fits this machine and constraints.txt",
        "supported are Python 3.10 to 3.13 on Linux; check that no PIP_INDEX_URL or pip.conf hides PyPI.",
    ),
    (
        (
            "error: command 'gcc'",
            "command 'g++' failed",
            "No such file or directory: 'gcc'",
            "nvcc",
            "CUDA_HOME",
        ),
        "something had to be compiled, and the compiler is missing or failed",
        "install a C++ compiler, or (for Detectron2) use --source pypi, which needs none.",
    ),
)


class SetupError(RuntimeError):
    """A step of the set-up that failed, with what to do about it."""


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Waits until no other process works in a folder; the lock of one that was killed is gone with it.

    Args:
        folder: it is there; nothing is written into it.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Another process installs into {folder}: waiting for its end ...", flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:  # some file systems have no locks
            print(f"{folder} cannot be locked ({error}): see that nothing else installs into it.", flush=True)
        yield
    finally:
        os.close(handle)


def diagnose(output: str) -> str:
    """Says what a failed pip run died of and what to do.

    Args:
        output: what pip printed, or the end of it.

    Returns:
        One or two sentences; never empty.
    """
    if any(word in output for word in _NOTHING_FOUND) and not index_answers():
        # With its retries turned off pip does not say that it had no connection, only that it found nothing.
        output += "\nNewConnectionError"
    for words, what, cure in _FAILURES:
        if any(word in output for word in words):
            return f"{what[0].upper()}{what[1:]}.\nWhat to do: {cure}"
    return "pip failed; its last lines are above.\nWhat to do: see to what they name, " + AGAIN


def index_answers() -> bool:
    """Whether the package index that pip is set to (by environment; PyPI otherwise) answers at all."""
    index = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple").rstrip("/")
    request = urllib.request.Request(f"{index}/pip/", method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=10):
            return True
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False


def run_pip(python: str, arguments: Sequence[str], *, doing: str) -> None:
    """Runs ``python -m pip`` and prints its progress in short.

    Args:
        python: interpreter whose pip runs.
        arguments: pip's arguments, from the sub-command on.
        doing: what this run is for, as the subject of a message ("Installing ...").

    Raises:
        SetupError: pip failed, was killed, or is not there; the message says what to do.
    """
    command = [python, "-m", "pip", *arguments, "--progress-bar", "off", "--disable-pip-version-check"]
    print(f"{doing} ...", flush=True)
    last_lines: deque[str] = deque(maxlen=_KEPT_LINES)
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PIP_NO_INPUT": "1", "PIP_USER": "0"}
    try:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment,
        )
    except OSError as error:
        raise SetupError(f"{doing}: cannot run {python}: {error}.") from error
    with process:
        for line in process.stdout or ():
            last_lines.append(line.rstrip())
            short = shorten(line)
            if short:
                print(f"  {short}", flush=True)
    if process.returncode:
        output = "\n".join(last_lines)
        print(output, file=sys.stderr, flush=True)
        raise SetupError(f"{doing}: failed (pip's exit code {process.returncode}).\n{diagnose(output)}")


def shorten(line: str) -> str:
    """Returns the part of a line of pip's output that is worth showing, or "" if none is."""
    line = line.strip()
    if line.startswith(("ERROR:", "WARNING: Retrying")):
        return line[:_SHOWN_WIDTH]
    if not line.startswith(_SHOWN) or line.endswith(": started"):
        return ""
    return line if len(line) <= _SHOWN_WIDTH else line[: _SHOWN_WIDTH - 4] + " ..."
