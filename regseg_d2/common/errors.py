"""Errors that a user can cause and cure.

The command line tools print them without a traceback. Each message names what is wrong (file, key
or value), what was expected, and what to do.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from regseg_d2.common.outputs import STDOUT, lost_outputs, point_to_nowhere

#: Exit status where the reader of the output ends first, as ``head`` does: that of a program of the shell.
NO_READER_EXIT_CODE = 141


class UserError(ValueError):
    """Base of every error whose cure lies with the user."""


class ConfigError(UserError):
    """A configuration file, key or value that cannot be used."""


class OptionError(ConfigError):
    """An argument of a constructor that cannot be used.

    Args:
        owner: what is constructed.
        argument: name of the argument.
        problem: its value and what is expected, as the rest of a sentence that begins with the argument.
    """

    def __init__(self, owner: str, argument: str, problem: str) -> None:
        super().__init__(owner, argument, problem)
        self.argument = argument
        self.problem = problem

    def __str__(self) -> str:
        return "{}: {} {}".format(*self.args)


def check_key(key: str, value: object, fine: bool, expected: str) -> None:
    """Raises ConfigError where the value of a key is not fine, with what is expected instead."""
    if not fine:
        raise ConfigError(f"{key} is {value!r}; expected {expected}")


class DatasetError(UserError):
    """A data set, image or label file that cannot be used."""


class CheckpointError(UserError):
    """A checkpoint that cannot or must not be loaded."""


class WriteError(UserError):
    """A file that could not be written; what was there before it is unharmed."""


class DiskFullError(WriteError):
    """There was no space for it."""


def printable(text: str, most: int | None = 200) -> str:
    """Returns a text of a file for a message: shortened, on one line, without what would steer a terminal.

    Escape sequences, line breaks, marks that turn the direction of writing, and halves of characters are
    written as Python writes them in a literal.

    The first ``most`` letters are kept; None keeps all.
    """
    kept = text if most is None or len(text) <= most else f"{text[:most]}..."
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in kept)


def printable_lines(text: str) -> str:
    """Returns a message of several lines for the terminal, each of them :func:`printable`."""
    return "\n".join(printable(line, None) for line in text.split("\n"))


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an error, and one after the other what it was raised from, or while."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def error_line(error: Exception) -> str:
    """Returns what an error of another package is and says, for a message: on one line, shortened."""
    return printable(" ".join(f"{type(error).__name__}: {error}".split()), 300)


def listed(values: Sequence[object], most: int = 5) -> str:
    """Returns the first of some values for a message, and how many more there are."""
    more = f" and {len(values) - most} more" if len(values) > most else ""
    return ", ".join(map(str, values[:most])) + more


def print_error(message: object, start: str = "Error: ") -> None:
    """Prints an error on stderr, with names that cannot steer the terminal.

    Lines after the first are indented: no name with a line break in it can pass for a message of its own.
    """
    lines = printable_lines(str(message)).replace("\n", "\n  ")
    print(f"{start}{lines}", file=sys.stderr, flush=True)


@contextmanager
def errors_end_the_program(status: int = 2) -> Iterator[None]:
    """Around the work of a command line tool: a user's error is printed and ends the program.

    So does a file that cannot be opened or written, and output that finds no room; where a reader of the
    output ends first, as ``head`` does, the program ends in silence. Every other error keeps its traceback.
    """
    try:
        yield
        print(end="", flush=True)  # sys.stdout may be None
    except UserError as error:
        print_error(error)
        sys.exit(status)
    except BrokenPipeError:
        if STDOUT not in lost_outputs():
            raise  # a pipe of the program itself
        point_to_nowhere(STDOUT)  # what Python still holds of it
        sys.exit(NO_READER_EXIT_CODE)
    except OSError as error:
        if error.filename is None and error.errno != errno.ENOSPC:
            raise
        if error.filename is None:
            point_to_nowhere(STDOUT)
        print_error(f"{error.filename or 'Standard output'}: {error.strerror}")
        sys.exit(status)
