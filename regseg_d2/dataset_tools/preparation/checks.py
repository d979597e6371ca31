"""Checks of what was downloaded: the files that should be there, their number, their checksums."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from regseg_d2.common.errors import DatasetError, listed
from regseg_d2.common.files import digest_of


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
        raise DatasetError(
            f"{len(missing)} of {len(names)} {what} are not below {folder}: {listed(missing)}. {cure}"
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


def check_sum(path: Path, expected: str, cure: str) -> None:
    """Checks a file against its published checksum.

    Args:
        path: the file.
        expected: "algorithm:digest", with an algorithm that ``hashlib`` knows and hexadecimal digits.
        cure: what to do if it is another.

    Raises:
        DatasetError: the file is missing, or is another.
    """
    if not path.is_file():
        raise DatasetError(f"{path} does not exist. {cure}")
    algorithm, _, expected = expected.partition(":")
    found = digest_of(path, algorithm)
    if found != expected:
        raise DatasetError(f"{path} has the {algorithm} {found}; expected {expected}: it is damaged. {cure}")
