"""Errors that a user can cause and cure.

The command line tools print them without a traceback. Each message names what is wrong (file, key
or value), what was expected, and what to do.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Base of every error whose cure lies with the user."""


class ConfigError(UserError):
    """A configuration file, key or value that cannot be used."""


class DatasetError(UserError):
    """A data set, image or label file that cannot be used."""


class CheckpointError(UserError):
    """A checkpoint that cannot or must not be loaded."""


class DiskFullError(UserError):
    """A file that could not be written for want of space; what was there before it is unharmed."""


def printable(text: str, most: int = 200) -> str:
    """Returns a text of a file for a message: shortened, and without what would steer a terminal.

    Args:
        text: the text.
        most: letters that are kept.
    """
    kept = text if len(text) <= most else f"{text[:most]}..."
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in kept)


@contextmanager
def errors_end_the_program(status: int = 2) -> Iterator[None]:
    """Around the work of a command line tool: a user's error is printed and ends the program.

    So does a file that cannot be opened or written. Every other error keeps its traceback.

    Args:
        status: the exit status.
    """
    try:
        yield
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(status)
    except OSError as error:
        if error.filename is None:
            raise
        print(f"Error: {error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(status)
