"""Which files belong to a split: those below a folder, those of a list, or a part drawn by their names."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from regseg_d2.common.errors import DatasetError


@dataclass(frozen=True)
class Part:
    """A part of a set of files, from ``start`` to below ``stop``, drawn by a hash of seed and stem.

    Each stem has its own place in [0, 1), whatever the other files are: a file that is added later moves
    no other one into another part. The size of a part is therefore about its share. An exact part has the
    stems of these ranks among all places instead: it has its share to one file, and a file that is added
    may move others.

    Raises:
        DatasetError: the ends are not 0 <= start < stop <= 1.
    """

    start: float
    stop: float
    seed: int = 0
    exact: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop <= 1:
            raise DatasetError(f"A part from {self.start} to {self.stop}: expected 0 <= start < stop <= 1.")

    def choose(self, stems: Iterable[str]) -> set[str]:
        """Returns those of all stems that are in this part."""
        places = {stem: self._place(stem) for stem in stems}
        if not self.exact:
            return {stem for stem, place in places.items() if self.start <= place < self.stop}
        ordered = sorted(places, key=lambda stem: (places[stem], stem))
        first, last = (round(end * len(ordered)) for end in (self.start, self.stop))
        return set(ordered[first:last])

    def _place(self, stem: str) -> float:
        digest = hashlib.sha256(f"{self.seed}/{stem}".encode("utf-8", "surrogateescape")).digest()
        # 48 bits are exact in a float, so that the place is always below 1.
        return int.from_bytes(digest[:6], "big") / 2**48


def files_by_stem(root: Path, suffixes: Sequence[str], other: Sequence[str] = ()) -> dict[str, list[Path]]:
    """Finds the files below a folder that have one of the suffixes.

    Args:
        root: the folder; sub-folders and links to folders are searched, hidden files are passed over.
        suffixes: ends of names; case does not matter. The longest that fits is cut off, so that
            ``_label.png`` goes before ``.png``.
        other: ends of the names of other files in this folder; a name that ends in a longer one of them
            than of ``suffixes`` is passed over.

    Returns:
        ``{path below root without the suffix: files}``; more than one file is an ambiguity.
    """
    own = {suffix.lower() for suffix in suffixes}
    ordered = sorted(own | {suffix.lower() for suffix in other}, key=len, reverse=True)
    files: dict[str, list[Path]] = {}
    # Not Path.rglob: it passes over links to folders, and takes several times as long.
    for folder, names in _walk(root):
        below = os.path.relpath(folder, root)
        prefix = "" if below == "." else f"{below.replace(os.sep, '/')}/"
        for name in sorted(names):
            suffix = next((suffix for suffix in ordered if name.lower().endswith(suffix)), None)
            path = os.path.join(folder, name)
            if suffix in own and not name.startswith(".") and os.path.isfile(path):
                files.setdefault(prefix + name[: len(name) - len(suffix)], []).append(Path(path))
    return files


def _walk(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Yields every folder below ``root`` once, with the names in it; links may lead back up."""
    seen: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        yield folder, names


def without_suffix(name: str, suffixes: Sequence[str]) -> str:
    """Cuts the longest of the suffixes that fits off a name."""
    fitting = [len(suffix) for suffix in suffixes if name.lower().endswith(suffix.lower())]
    return name[: len(name) - max(fitting, default=0)]


@dataclass(frozen=True)
class ListLine:
    """One line of a list of files: its number from 1 on, and a stem, or the paths of image and label."""

    number: int
    image: str
    label: str | None


def read_list(path: Path) -> list[ListLine]:
    """Reads a list of files: a stem in each line, or the paths of an image and its label.

    Two paths are separated by a tab or by spaces; a name with spaces stands in double quotes, or the
    columns are separated by a tab. Empty lines are passed over.

    Raises:
        DatasetError: the file is missing, no text or empty, a line has more than two columns or another
            number of them than the first, or two lines name the same image.
    """
    lines = [
        _parse_line(path, number, text)
        for number, text in enumerate(_read_text(path).split("\n"), start=1)
        if text.strip()
    ]
    if not lines:
        raise DatasetError(
            f"The list {path} is empty; expected a stem, or an image and a label, in each line."
        )
    seen: dict[str, int] = {}
    for line in lines:
        if (line.label is None) != (lines[0].label is None):
            raise DatasetError(
                f"{path}, line {line.number}: {1 if line.label is None else 2} column(s), but line "
                f"{lines[0].number} has {1 if lines[0].label is None else 2}. Write all lines alike (names "
                "with spaces in double quotes)."
            )
        if line.image in seen:
            raise DatasetError(
                f'{path}, line {line.number}: "{line.image}" stands in line {seen[line.image]} already. '
                "Remove one of the lines."
            )
        seen[line.image] = line.number
    return lines


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DatasetError(
            f"The list {path} does not exist. Check its name, or write it: a line for each image."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(
            f"The list {path} cannot be read: {error}. Expected a text file in UTF-8."
        ) from error


def _parse_line(path: Path, number: int, text: str) -> ListLine:
    separator = "\t" if "\t" in text.strip() else " "
    try:
        columns = next(csv.reader([text.strip()], delimiter=separator, skipinitialspace=True))
    except csv.Error as error:
        raise DatasetError(f"{path}, line {number} is no list of names: {error}.") from error
    columns = [column.strip() for column in columns if column.strip()]
    if not 1 <= len(columns) <= 2:
        raise DatasetError(
            f"{path}, line {number}: {len(columns)} columns ({text.strip()[:200]!r}); expected a stem, or "
            "the paths of an image and its label. A name with spaces stands in double quotes."
        )
    # "./a" and "a//b" are the names "a" and "a/b".
    names = [PurePosixPath(column).as_posix() for column in columns]
    return ListLine(number, names[0], names[1] if len(names) == 2 else None)
