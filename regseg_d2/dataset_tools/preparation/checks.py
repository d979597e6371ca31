"""Checks of what was downloaded: the files that should be there, their number, their checksums."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from regseg_d2.common.errors import DatasetError, listed
from regseg_d2.common.files import digest_of


def check_files(folder: Path, names: Sequence[str], what: str, cure: str) -> None:
    """Checks that files are there; ``what`` they are ("images of the split val") and the cure are for errors.

    Raises:
        DatasetError: a file is missing; the first are named.
    """
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise DatasetError(
            f"{len(missing)} of {len(names)} {what} are not below {folder}: {listed(missing)}. {cure}"
        )


def check_number(found: int, expected: int | None, what: str, folder: Path, cure: str) -> None:
    """Checks a number of files against the published one; None accepts any.

    Raises:
        DatasetError: the numbers differ.
    """
    if expected is not None and found != expected:
        raise DatasetError(f"{folder} has {found} {what}; expected {expected}. {cure}")


def check_sum(path: Path, expected: str, cure: str) -> None:
    """Checks a file against its published checksum, "algorithm:hexadecimal digits" of one of hashlib's.

    Raises:
        DatasetError: the file is missing, or is another.
    """
    if not path.is_file():
        raise DatasetError(f"{path} does not exist. {cure}")
    algorithm, _, expected = expected.partition(":")
    found = digest_of(path, algorithm)
    if found != expected:
        raise DatasetError(f"{path} has the {algorithm} {found}; expected {expected}: it is damaged. {cure}")
