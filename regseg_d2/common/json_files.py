"""Reads JSON files: every failure an error that names the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from regseg_d2.common.errors import ConfigError, UserError, printable


def read_json(path: Path, error: type[UserError] = ConfigError) -> Any:
    """Reads a JSON file.

    Args:
        path: the file.
        error: what is raised.

    Raises:
        UserError: of the given kind; the file is missing or no file, no JSON, not in UTF-8, nested too deep,
            or has a number without end.
    """
    name = printable(str(path), 500)
    try:
        if not path.is_file():
            raise error(f"'{name}' does not exist, or is no file.")
        return json.loads(path.read_text(encoding="utf-8"))
    except UserError:
        raise
    except RecursionError as reason:
        raise error(f"'{name}' is not valid JSON: it is nested too deep.") from reason
    except (OSError, ValueError) as reason:
        raise error(f"'{name}' is not valid JSON ({printable(str(reason))}).") from reason
