"""Reads a config file with the files that its ``_BASE_`` names, and theirs."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from regseg_d2.common.errors import ConfigError, printable
from regseg_d2.common.yaml_files import read_yaml, shown
from regseg_d2.config.keys import leaves
from regseg_d2.config.shipped import config_path, shipped_name

BASE_KEY = "_BASE_"
# Levels and readings of bases. Ours have four levels and twelve.
_MOST_LEVELS = 10
_MOST_BASES = 100


class Chain:
    """Reads a config file and its bases, each file once.

    Attributes:
        files: the files that were read, in the order in which their values count.
    """

    def __init__(self) -> None:
        self.files: list[Path] = []
        self._contents: dict[str, dict[str, Any]] = {}
        self._num_bases = 0

    def read(self, path: Path, chain: tuple[str, ...] = ()) -> Iterator[tuple[str, Any, str]]:
        """Yields ``(dotted key, value, file)`` of the bases in order, then of the file itself.

        Args:
            path: the file.
            chain: real paths of the files that it is a base of; none for the first.

        Raises:
            ConfigError: a file is missing, unsafe or no YAML, or is a base of itself.
        """
        name = printable(str(path), 500)
        # Path.resolve raises where links lead in a circle.
        resolved = os.path.realpath(_checked_path(path))
        if resolved in chain:
            cycle = " -> ".join((*chain, resolved))
            raise ConfigError(
                f"{name}: the {BASE_KEY} chain comes back to itself ({cycle}). Remove one of the links."
            )
        self._num_bases += 1
        if len(chain) >= _MOST_LEVELS or self._num_bases > _MOST_BASES:
            raise ConfigError(
                f"{name}: the {BASE_KEY} chain has more than {_MOST_LEVELS} levels, or reads more than "
                f"{_MOST_BASES} files, some of them repeatedly. Name fewer bases."
            )
        if resolved not in self._contents:
            if not path.is_file():
                raise ConfigError(_missing_file_message(path))
            self._contents[resolved] = read_yaml(path)
        content = dict(self._contents[resolved])
        for base in _base_files(content.pop(BASE_KEY, []), path):
            yield from self.read(base, (*chain, resolved))
        self.files.append(path)
        for key, value in leaves(content, prefix=""):
            yield key, value, str(path)


def _checked_path(path: Path) -> Path:
    """Returns a path that the system can look for."""
    try:
        path.lstat()
    except FileNotFoundError:
        return path  # the reader names its neighbours
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "its name is no text"
        raise ConfigError(f"Config file '{printable(str(path), 500)}' cannot be read: {reason}.") from error
    return path


def _missing_file_message(path: Path) -> str:
    message = f"Config file '{printable(str(path), 500)}' does not exist"
    if path.is_symlink():
        return f"{message}: it is a link to nothing, or to itself."
    if path.is_dir():
        return f"Config file '{path}' is a folder; give a YAML file."
    if name := shipped_name(path):
        return f"{message}. The package has one of that name: '{name}'."
    if not path.parent.is_dir():
        return f"{message}, nor does its folder '{path.parent}'. Working folder: '{Path.cwd()}'."
    there = sorted(p.name for p in path.parent.iterdir() if p.suffix in (".yaml", ".yml"))
    near = difflib.get_close_matches(path.name, there, n=3, cutoff=0.4) or there[:8]
    if not near:
        return f"{message}, and there is no YAML file in '{path.parent}'."
    return f"{message}. In '{path.parent}' there are: {', '.join(near)}."


def _base_files(bases: Any, path: Path) -> list[Path]:
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(
            f"{path}: {BASE_KEY} is {shown(bases)}; expected a file name or a list of file names."
        )
    return [config_path(base, path.parent) for base in bases]
