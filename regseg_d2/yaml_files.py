"""Reads YAML files of users: plain data only, no key twice, every failure an error with its place."""

from __future__ import annotations

import reprlib
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml

from regseg_d2.errors import ConfigError

# Values of a file with its aliases written out. Aliases of aliases can make a few lines as large as memory.
_MOST_VALUES = 1_000_000
# What PyYAML lets through from a value that contradicts its form: 2001-99-99, !!int "", !!bool "x", ...
_VALUE_ERRORS = (ValueError, KeyError, IndexError, AttributeError, TypeError, OverflowError)


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML in which a key that is written twice is an error instead of a silent overwrite."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                break  # the parent class reports it
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {shown(key)} is written twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def read_yaml(path: Path) -> dict[Any, Any]:
    """Reads a YAML file that holds a mapping.

    Args:
        path: the file, which exists.

    Returns:
        Its content; an empty file is an empty mapping.

    Raises:
        ConfigError: the file is no text, no YAML or no mapping, has a key twice or a python tag, or its
            aliases make it endless.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.load(text, Loader=_StrictLoader)  # a SafeLoader: builds plain data only
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a text file in UTF-8 ({error}).") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from error
    except yaml.constructor.ConstructorError as error:
        raise ConfigError(
            f"{path}: {error.problem} ({_place(error)}). Only plain YAML is read: numbers, texts, lists "
            "and mappings, without python tags; write the value itself."
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(
            f"{path}: not valid YAML, {getattr(error, 'problem', error)} ({_place(error)})."
        ) from error
    except RecursionError as error:
        raise ConfigError(f"{path}: lists or mappings are nested too deep to be read.") from error
    except _VALUE_ERRORS as error:
        raise ConfigError(
            f"{path}: a value contradicts its form ({error}), such as the date 2001-99-99. Put texts in "
            "quotes."
        ) from error
    _check_size(content, path)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected 'KEY: value' lines, found a {type(content).__name__}.")
    return content


def shown(value: Any) -> str:
    """Returns a value as text for a message, shortened where it is large."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother = 3, 80, 80
    try:
        return short.repr(value)
    except ValueError:  # Python writes no number of more than 4300 digits
        return "a number of thousands of digits"


def _check_size(content: Any, path: Path) -> None:
    """Walks over all values, also of a list or mapping that holds itself."""
    waiting, count = [content], 0
    while waiting:
        value = waiting.pop()
        count += 1
        if count + len(waiting) > _MOST_VALUES:
            raise ConfigError(
                f"{path}: more than {_MOST_VALUES} values, or a list or mapping that holds itself through an "
                "alias (*name). Write the values out."
            )
        if isinstance(value, Mapping):
            waiting.extend(value.values())
        elif isinstance(value, (list, tuple, set)):
            waiting.extend(value)


def _place(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f"line {mark.line + 1}, column {mark.column + 1}" if mark else "place unknown"
