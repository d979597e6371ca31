"""Reads YAML of users: plain data of bounded size, no key twice, every failure an error with its place."""

from __future__ import annotations

import reprlib
import stat
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from regseg_d2.common.errors import ConfigError, printable

# A label map of 65,536 values has 0.7 MB.
_MOST_BYTES = 1 << 20
# Values of a file with its aliases and merge keys written out: these can make a few lines as large as memory.
_MOST_VALUES = 1_000_000
_MOST_LEVELS = 50
# In a number. Longer ones are none that a key takes, and take Python long to make and to print.
_MOST_DIGITS = 100
_MOST_BITS = 64
# What PyYAML lets through from a value that contradicts its form: 2001-99-99, !!int "", !!bool "x", ...
_VALUE_ERRORS = (ValueError, KeyError, IndexError, AttributeError, TypeError, OverflowError)
_TAG = "tag:yaml.org,2002:"
# Kinds of values that YAML has and no key takes.
_OTHER_KINDS = tuple(f"{_TAG}{name}" for name in ("pairs", "omap", "set", "binary"))


class _TooLargeError(yaml.composer.ComposerError):
    """A limit that was met."""

    def __init__(self, problem: str, event: yaml.Event) -> None:
        super().__init__(None, None, problem, event.start_mark)


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML that counts while it reads, and in which a key that is written twice is an error."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._values = 0
        # Of each finished node: its values with aliases written out, and its levels.
        self._extents: dict[int, tuple[int, int]] = {}
        # The levels below each node that is being read.
        self._open: list[int] = []

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        is_alias, before = isinstance(event, yaml.AliasEvent), self._values
        self._values += 1
        self._open.append(0)
        self._check_extent(0, event)
        node = super().compose_node(parent, index)
        levels = self._open.pop()
        if is_alias:
            if id(node) not in self._extents:
                raise _TooLargeError("a list or mapping holds itself through an alias (*name)", event)
            values, levels = self._extents[id(node)]
            self._values += values
        else:
            self._extents[id(node)] = self._values - before, levels
        self._check_extent(levels, event)
        if self._open:
            self._open[-1] = max(self._open[-1], levels + 1)
        return node

    def _check_extent(self, levels: int, event: yaml.Event) -> None:
        problem = None
        if len(self._open) + levels > _MOST_LEVELS:
            problem = f"lists or mappings are nested too deep, more than {_MOST_LEVELS} levels"
        elif self._values > _MOST_VALUES:
            problem = f"more than {_MOST_VALUES} values, with aliases (*name) written out"
        if problem:
            raise _TooLargeError(problem, event)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if node.tag in _OTHER_KINDS:
            self._refuse(f"values of the kind !!{node.tag.removeprefix(_TAG)} are not read", node)
        is_number = node.tag in (f"{_TAG}int", f"{_TAG}float") and isinstance(node, yaml.ScalarNode)
        if is_number and len(node.value) > _MOST_DIGITS:
            self._refuse(f"a number of {len(node.value)} digits", node)
        value = super().construct_object(node, deep=deep)
        if isinstance(value, int) and value.bit_length() > _MOST_BITS:
            self._refuse(f"a number of more than {_MOST_BITS} bits", node)
        if isinstance(value, str) and not is_text(value):
            self._refuse(f"{shown(value)} is no text: it holds a NUL or half a character", node)
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == f"{_TAG}merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                break  # the parent class reports it
            if key in seen:
                self._refuse(f"the key {shown(key)} is written twice", key_node)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)

    def _refuse(self, problem: str, node: yaml.Node) -> None:
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def read_yaml(path: Path) -> dict[Any, Any]:
    """Reads a YAML file that exists and holds a mapping; an empty file is an empty one.

    Raises:
        ConfigError: the file is no text, no YAML or no mapping, has a key twice, a python tag or a number
            without end, or is too large, also through its aliases and merge keys.
    """
    name = printable(str(path), 500)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"{name} cannot be read: it is no file.")
        if status.st_size > _MOST_BYTES:
            raise ConfigError(f"{name} has {status.st_size} bytes; expected up to {_MOST_BYTES}.")
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}: not a text file in UTF-8 ({error}).") from error
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = (error.strerror if isinstance(error, OSError) else None) or printable(str(error))
        raise ConfigError(f"{name} cannot be read: {reason}.") from error
    content = parse_yaml(text, name)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{name}: expected 'KEY: value' lines, found a {type(content).__name__}.")
    return content


def read_own_yaml(path: Path) -> Any:
    """Reads a YAML file of this package, ten times faster than :func:`read_yaml`: unchecked."""
    # The loader in C is missing where PyYAML was built without libyaml.
    return yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def parse_yaml(text: str, origin: str) -> Any:
    """Reads a text of YAML, any kind of value; the origin is for the errors, see :func:`read_yaml`."""
    try:
        return yaml.load(text, Loader=_StrictLoader)  # a SafeLoader: builds plain data only
    except _TooLargeError as error:
        raise ConfigError(f"{origin}: {_problem(error)} ({_place(error)}).") from error
    except yaml.constructor.ConstructorError as error:
        raise ConfigError(
            f"{origin}: {_problem(error)} ({_place(error)}). Only plain YAML is read: numbers, texts, lists "
            "and mappings, without python tags; write the value itself."
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin}: not valid YAML, {_problem(error)} ({_place(error)}).") from error
    except RecursionError as error:
        raise ConfigError(f"{origin}: lists or mappings are nested too deep to be read.") from error
    except _VALUE_ERRORS as error:
        raise ConfigError(
            f"{origin}: a value contradicts its form ({printable(str(error))}), such as the date 2001-99-99. "
            "Put texts in quotes."
        ) from error


def shown(value: Any) -> str:
    """Returns a value as text for a message, shortened where it is large."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother = 3, 80, 80
    try:
        return short.repr(value)
    except ValueError:  # Python writes no number of more than 4300 digits
        return "a number of thousands of digits"


def is_text(value: str) -> bool:
    """Whether a text can be written to a file and name one: it has no NUL and no half of a character."""
    return (
        value.isascii()
        and "\0" not in value
        or not any(c == "\0" or "\ud800" <= c <= "\udfff" for c in value)
    )


def _problem(error: yaml.YAMLError) -> str:
    return printable(str(getattr(error, "problem", None) or error).splitlines()[0])


def _place(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is None and isinstance(error, yaml.reader.ReaderError):
        return f"character {error.position + 1}"
    return f"line {mark.line + 1}, column {mark.column + 1}" if mark else "place unknown"
