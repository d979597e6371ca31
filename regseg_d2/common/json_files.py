"""Reads JSON files: every failure an error that names the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from regseg_d2.common.errors import ConfigError, UserError, printable

T = TypeVar("T")


def read_json(path: Path, error: type[UserError] = ConfigError) -> Any:
    """Reads a JSON file.

    Raises:
        UserError: of the given kind; the file is missing or no file, no JSON, not in UTF-8, nested too deep,
            or has a number without end.
    """
    return _read(path, error, json.loads)


def read_json_lines(path: Path, *, is_growing: bool = False) -> list[dict[str, Any]]:
    """Reads a file with one JSON object a line, such as ``metrics.json`` of a run.

    Args:
        path: the file.
        is_growing: a last line without its end is being written, and left out.

    Raises:
        ConfigError: as :func:`read_json`; or a line is no object.
    """

    def parse(text: str) -> list[dict[str, Any]]:
        if is_growing:
            text = text[: text.rfind("\n") + 1]
        lines = [json.loads(line) for line in text.splitlines()]
        for number, line in enumerate(lines, start=1):
            if not isinstance(line, dict):
                raise ValueError(f"line {number} is no object")
        return lines

    return _read(path, ConfigError, parse)


def _read(path: Path, error: type[UserError], parse: Callable[[str], T]) -> T:
    name = printable(str(path), 500)
    try:
        if not path.is_file():
            raise error(f"'{name}' does not exist, or is no file.")
        return parse(path.read_text(encoding="utf-8"))
    except UserError:
        raise
    except RecursionError as reason:
        raise error(f"'{name}' is not valid JSON: it is nested too deep.") from reason
    except (OSError, ValueError) as reason:
        raise error(f"'{name}' is not valid JSON ({printable(str(reason))}).") from reason
