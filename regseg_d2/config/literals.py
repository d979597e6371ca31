"""Values that a text of a YAML file or of the command line stands for, and the text of a value."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

import yaml

# Letters of a text that may be a Python literal.
_LONGEST_LITERAL = 20_000
# Of whole numbers, which YAML files keep to, too.
_MOST_BITS = 64


def read_literal(text: str) -> Any:
    """Returns the number, list, ... that a text writes in Python, or the text."""
    if len(text) > _LONGEST_LITERAL:
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return text  # '{{}}' is a type error, 5000 minus signs are a recursion or memory error
    return text if _has_huge_number(value) else value


def _has_huge_number(value: Any) -> bool:
    if isinstance(value, Mapping):
        value = [*value, *value.values()]
    if isinstance(value, (list, tuple, set)):
        return any(map(_has_huge_number, value))
    return isinstance(value, int) and value.bit_length() > _MOST_BITS


def to_yaml(value: Any) -> str:
    """Returns a value as YAML in one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**9, allow_unicode=True)
    return text.removesuffix("...\n").strip()
