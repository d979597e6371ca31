"""JSON files whose values are checked as they are taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from regseg_d2.common.errors import ConfigError
from regseg_d2.common.json_files import read_json


class Checked:
    """A JSON object whose values are checked as they are taken; every error names the file and the key."""

    def __init__(self, file: Path, data: Any, where: str = "") -> None:
        self.file = file
        self.where = where
        if not isinstance(data, dict):
            raise self.error("", data, "an object")
        self.data = data

    def error(self, key: str, value: Any, expected: str) -> ConfigError:
        """The error of a value."""
        name = ".".join(part for part in (self.where, key) if part) or "the content"
        shown = repr(value) if len(repr(value)) < 80 else repr(value)[:77] + "..."
        return ConfigError(f"{self.file}: {name} is {shown}; expected {expected}")

    def take(self, key: str, kind: type | tuple[type, ...], expected: str, default: Any = ...) -> Any:
        """A value of some type; the default where it is missing."""
        if key not in self.data and default is ...:
            raise ConfigError(f"{self.file}: {'.'.join(filter(None, (self.where, key)))} is missing")
        value = self.data.get(key, default)
        if value is default or (isinstance(value, kind) and not isinstance(value, bool)):
            return value
        raise self.error(key, value, expected)

    def text(self, key: str) -> str:
        """A string."""
        return self.take(key, str, "a text")

    def count(self, key: str, default: Any = ...) -> int:
        """A whole number from 0 on."""
        expected = "a whole number from 0 on"
        value = self.take(key, (int, float), expected, default)
        if value < 0 or value != int(value):
            raise self.error(key, value, expected)
        return int(value)

    def part(self, key: str, default: Any = ...) -> Checked:
        """An object inside."""
        value = self.take(key, dict, "an object", default)
        return Checked(self.file, value, ".".join(filter(None, (self.where, key))))

    def numbers(self) -> dict[str, float | None]:
        """All of it: finite numbers, or null."""
        for key, value in self.data.items():
            if value is not None and not _is_number(value):
                raise self.error(key, value, "a finite number or null")
        return {key: None if value is None else float(value) for key, value in self.data.items()}


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf")
    )  # NaN fails


def load(file: Path) -> Checked:
    """Reads a file.

    Raises:
        ConfigError: it is no JSON object.
    """
    try:
        data = read_json(file)
    except ConfigError as error:
        raise ConfigError(
            f"'{file}' cannot be read ({error}): delete it, and the next call makes it again."
        ) from error
    return Checked(file, data)
