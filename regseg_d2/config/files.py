"""Reads configuration files: ``_BASE_`` chains, safe YAML, errors that name what is wrong.

Detectron2's own reader falls back to ``yaml.unsafe_load`` (which runs code) and reports an unknown
key without its file. This one runs no code but that of the modules in ``IMPORTS``, remembers where each
value came from, and names the nearest known key.
"""

from __future__ import annotations

import ast
import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode

from regseg_d2.common.errors import ConfigError, printable
from regseg_d2.common.suggestions import did_you_mean
from regseg_d2.common.yaml_files import is_text, parse_yaml, read_yaml, shown
from regseg_d2.config.imports import IMPORTS_KEY, UserModule, default_config, find_modules

BASE_KEY = "_BASE_"
# Folder of the bases, beside the folders of the files that are trained.
BASE_FOLDER = "_base_"
AUTO = "auto"
COMMAND_LINE = "command line"
# Keys that list files. A name is looked for beside the file that has the key, then in the working folder,
# and is absolute from then on: a config that is saved elsewhere names the same files.
FILE_LISTS = ("DATASETS.DECLARED",)
# Levels and readings of bases. Ours have four levels and twelve.
_MOST_LEVELS = 10
_MOST_BASES = 100
# Letters of a text that may be a Python literal.
_LONGEST_LITERAL = 20_000
_LONGEST_KEY = 200
# Of whole numbers, which YAML files keep to, too.
_MOST_BITS = 64
# A method once more at another place; see segmentor/regularizers.py.
_PLACE_KEY = re.compile(r"MODEL\.REGULARIZERS\.(?P<method>\w+)@(?P<place>[\w-]+)\.(?P<name>\w+)$")
_METHOD_KEY = r"MODEL.REGULARIZERS.\g<method>.\g<name>"


def load_config(config_file: str, opts: Sequence[str] | None = ()) -> CfgNode:
    """Returns the defaults, changed by a YAML file with its bases and by overrides.

    ``config_file`` is the path of a YAML file, or "" for the defaults alone; ``opts`` are overrides ``[KEY,
    VALUE, KEY, VALUE, ...]`` as they come from a command line.

    Returns:
        The config, not frozen. ``OUTPUT_DIR``, where nobody sets it or sets it to "auto", is
        ``output/FOLDER/NAME`` for a file ``FOLDER/NAME.yaml`` beside a folder ``_base_`` (or for the base of
        that kind that the file names), and ``./output`` for any other.

    Raises:
        ConfigError: a file is missing, unsafe or no YAML, a module of ``IMPORTS`` is missing or fails, a key
            is unknown, a value has the wrong type, or an override has no value.
    """
    return load_config_with_origins(config_file, opts)[0]


def load_config_with_origins(
    config_file: str, opts: Sequence[str] | None = ()
) -> tuple[CfgNode, dict[str, str]]:
    """As :func:`load_config`, and tells where each value comes from.

    The origins are ``{dotted key: file or "command line"}`` of every key that was set, whether or not to
    another value than the default.
    """
    chain = _Chain()
    values = list(chain.read(Path(os.path.expanduser(config_file)), chain=())) if config_file else []
    pairs = list(_pairs(list(opts or ())))
    modules = _user_modules(values, pairs)
    cfg = default_config(modules)
    known = list(flatten_config(cfg))
    origins = {IMPORTS_KEY: modules[-1].origin} if modules else {}
    for key, value, origin in values:
        if key != IMPORTS_KEY:
            value = _found_files(value, Path(origin).parent) if key in FILE_LISTS else value
            _set_value(cfg, key, value, origin=origin, known=known)
            origins[key] = origin
    for key, text in pairs:
        if key == IMPORTS_KEY:
            continue
        value = _decode_override(text, expected=_value_of(cfg, _PLACE_KEY.sub(_METHOD_KEY, key)))
        # A mapping sets the keys of a section, as in a file.
        leaves = list(_leaves(value, prefix=f"{key}.")) if isinstance(value, Mapping) else []
        for leaf, leaf_value in leaves or [(key, value)]:
            leaf_value = _found_files(leaf_value, Path()) if leaf in FILE_LISTS else leaf_value
            _set_value(cfg, leaf, leaf_value, origin=COMMAND_LINE, known=known)
            origins[leaf] = COMMAND_LINE
    if "OUTPUT_DIR" not in origins or cfg.OUTPUT_DIR == AUTO:
        cfg.OUTPUT_DIR = _output_folder(chain.files)
    return cfg, origins


def _user_modules(
    values: Sequence[tuple[str, Any, str]], pairs: Sequence[tuple[str, Any]]
) -> list[UserModule]:
    """The modules of all files and of the command line together: a base needs those that it names."""
    modules = []
    for key, value, origin in values:
        if key == IMPORTS_KEY:
            value = _literal(value) if isinstance(value, str) else value
            modules += find_modules(value, os.path.dirname(os.path.abspath(origin)), origin)
    for key, text in pairs:
        if key == IMPORTS_KEY:
            modules += find_modules(_decode_override(text, expected=[]), os.getcwd(), COMMAND_LINE)
    return modules


def flatten_config(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Returns ``{dotted key: value}`` of every value in a config or in the mapping of a YAML file."""
    return dict(_leaves(cfg, prefix=""))


def format_config(cfg: CfgNode, origins: Mapping[str, str] | None = None) -> str:
    """Returns a config as YAML, with its origin behind each value that is not the default.

    It can be loaded again; the origins are comments, as :func:`load_config_with_origins` gives them. A
    changed key that is not among them was set in code. None leaves the origins out.
    """
    defaults = flatten_config(default_config(find_modules(cfg.IMPORTS, None, IMPORTS_KEY)))
    lines: list[str] = []

    def write(node: Mapping[str, Any], prefix: str, indent: str) -> None:
        for name in sorted(node):
            key, value = f"{prefix}{name}", node[name]
            if isinstance(value, Mapping):
                lines.append(f"{indent}{name}:" if value else f"{indent}{name}: {{}}")
                write(value, f"{key}.", indent + "  ")
                continue
            line = f"{indent}{name}: {_to_yaml(value)}"
            if origins is not None and (key not in defaults or defaults[key] != value):
                unset = AUTO if key == "OUTPUT_DIR" else "set in code"
                line += f"  # {origins.get(key, unset)}"
            lines.append(line)

    write(cfg, "", "")
    return "\n".join(lines) + "\n"


def print_config(cfg: CfgNode, origins: Mapping[str, str]) -> None:
    """Prints :func:`format_config`."""
    print(format_config(cfg, origins), end="")


# ---------------------------------------------------------------------------------------------- files


class _Chain:
    """Reads a config file and its bases, each file once."""

    def __init__(self) -> None:
        self.files: list[Path] = []  # in the order in which their values count
        self._contents: dict[str, dict[str, Any]] = {}
        self._num_bases = 0

    def read(self, path: Path, chain: tuple[str, ...]) -> Iterator[tuple[str, Any, str]]:
        """Yields ``(dotted key, value, file)`` of the bases in order, then of the file itself."""
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
        for key, value in _leaves(content, prefix=""):
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
    return [path.parent / os.path.expanduser(base) for base in bases]


def _output_folder(files: Sequence[Path]) -> str:
    """Where a run goes if nobody says it: what the last of its files beside a folder of bases is called."""
    for path in reversed(files):
        absolute = Path(os.path.abspath(path))
        root = next((folder for folder in absolute.parents if (folder / BASE_FOLDER).is_dir()), None)
        if root and root / BASE_FOLDER not in absolute.parents:
            return f"output/{absolute.relative_to(root).with_suffix('').as_posix()}"
    return "./output"


def _found_files(names: Any, folder: Path) -> Any:
    """Makes the names of files absolute; what is no list of names is left to the check of its type."""
    if isinstance(names, str):
        names = _literal(names)
    if not isinstance(names, (list, tuple)):
        return names
    return [_found_file(name, folder) if isinstance(name, str) else name for name in names]


def _found_file(name: str, folder: Path) -> str:
    beside, here = (os.path.abspath(base / os.path.expanduser(name)) for base in (folder, Path()))
    return here if os.path.isfile(here) and not os.path.isfile(beside) else beside


# ----------------------------------------------------------------------------------------------- keys


def _leaves(node: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from _leaves(value, prefix=f"{key}.")
        else:
            yield key, value


def _value_of(cfg: CfgNode, key: str) -> Any:
    """Returns the value or section of ``key``; None where there is none."""
    node: Any = cfg
    for name in key.split("."):
        if not isinstance(node, CfgNode) or name not in node:
            return None
        node = node[name]
    return node


def _set_value(cfg: CfgNode, key: str, value: Any, *, origin: str, known: Sequence[str]) -> None:
    if match := _PLACE_KEY.match(key):
        _set_place_value(cfg, match, value, origin=origin, known=known)
        return
    *sections, name = key.split(".")
    node: Any = cfg
    for section in sections:
        if isinstance(node, CfgNode) and node.is_new_allowed():
            node.setdefault(section, CfgNode(new_allowed=True))
        node = node[section] if isinstance(node, CfgNode) and section in node else None
    if isinstance(node, CfgNode) and node.is_new_allowed():
        # A section of free keys, whose types nobody knows.
        node[name] = _literal(value) if isinstance(value, str) else value
        return
    if not isinstance(node, CfgNode) or name not in node:
        raise ConfigError(_unknown_key_message(key, origin, known))
    if isinstance(node[name], CfgNode):
        example = next((k for k in known if k.startswith(key + ".")), f"{key}.NAME")
        raise ConfigError(
            f"{origin}: '{key}' is a section with keys of its own, and got {shown(value)}. "
            f"Write the keys below it, such as '{example}'."
        )
    if key == "VERSION" and value != node[name]:
        raise ConfigError(f"{origin}: VERSION is {shown(value)}; only version {node[name]} can be read.")
    node[name] = _coerce(value, node[name], key=key, origin=origin)


def _set_place_value(
    cfg: CfgNode, match: re.Match[str], value: Any, *, origin: str, known: Sequence[str]
) -> None:
    """Sets a key of a section such as ``MODEL.REGULARIZERS.PNE@aux``, which is born when first set.

    Such a section takes the keys of the method's own, and holds those alone that were set.
    """
    key, method, place, name = match[0], match["method"], match["place"], match["name"]
    regularizers = cfg.MODEL.REGULARIZERS
    defaults = regularizers.get(method)
    if not isinstance(defaults, CfgNode) or name not in defaults:
        placed = [re.sub(r"^(MODEL\.REGULARIZERS\.\w+)\.", rf"\1@{place}.", k) for k in known]
        raise ConfigError(_unknown_key_message(key, origin, placed))
    value = _coerce(value, defaults[name], key=key, origin=origin)
    regularizers.setdefault(f"{method}@{place}", CfgNode())[name] = value


def _unknown_key_message(key: str, origin: str, known: Sequence[str]) -> str:
    if len(key) > _LONGEST_KEY:
        return f"{origin}: unknown key '{printable(key, 80)}'."
    message = f"{origin}: unknown key '{printable(key)}'.{did_you_mean(key, known)}"
    # A key in the wrong section is far from its right spelling as a text, and near by its last name.
    elsewhere = [k for k in known if k.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]][:3]
    shown = [k for k in elsewhere if k not in message]
    if not shown and message.endswith("."):
        return f"{message} Where a module of yours adds it, name the module in {IMPORTS_KEY}."
    return message + (f" The same name exists as: {', '.join(shown)}." if shown else "")


def _coerce(value: Any, current: Any, *, key: str, origin: str) -> Any:
    """Returns ``value`` in the type of ``current``, where that loses nothing."""
    # YAML reads '1e-4' as a text; Detectron2's own configs rely on texts being read as literals.
    if isinstance(value, str) and not isinstance(current, str):
        value = _literal(value)
    if current is None or type(value) is type(current):
        return value
    if isinstance(current, float) and type(value) is int:
        return float(value)
    if isinstance(current, (list, tuple)) and isinstance(value, (list, tuple)):
        # Lists in a tuple of tuples become tuples, so that what was printed is read as it was.
        inner = type(current[0]) if current and isinstance(current[0], (list, tuple)) else None
        return type(current)(inner(v) if inner and isinstance(v, (list, tuple)) else v for v in value)
    hint = ""
    if isinstance(current, (list, tuple)):
        hint = f" Write it as a list: [{printable(str(value), 80)}]." if isinstance(value, (str, int)) else ""
    kinds = {bool: "True or False", int: "a whole number", float: "a number", str: "a text"}
    raise ConfigError(
        f"{origin}: '{key}' is {shown(value)} ({type(value).__name__}); expected "
        f"{kinds.get(type(current), 'a list')}, such as {_to_yaml(current)}.{hint}"
    )


# ------------------------------------------------------------------------------------------ overrides


def _pairs(opts: list[str]) -> Iterator[tuple[str, str]]:
    if len(opts) % 2:
        hint = " Write 'KEY VALUE', not 'KEY=VALUE'." if any("=" in o for o in opts) else ""
        raise ConfigError(
            f"{COMMAND_LINE}: overrides come in pairs 'KEY VALUE', and {len(opts)} words were given: "
            f"{' '.join(opts)}.{hint} (Flags such as --resume stand before the overrides.)"
        )
    yield from zip(opts[0::2], opts[1::2], strict=True)


def _decode_override(text: Any, expected: Any) -> Any:
    """Returns the value that a word of the command line stands for.

    A key that holds a text takes the word as it is (``OUTPUT_DIR 2024``); for every other key a
    Python literal or YAML is read, so that ``[CAR]``, ``"['CAR']"`` and ``1e-3`` all work.
    """
    if not isinstance(text, str):
        return text
    if not is_text(text):
        raise ConfigError(f"{COMMAND_LINE}: {shown(text)} is no text: it holds a NUL or half a character.")
    value = _literal(text)
    if isinstance(expected, str):
        return value if isinstance(value, str) else text
    if isinstance(value, str):
        try:
            return parse_yaml(text, COMMAND_LINE)
        except ConfigError:
            return text  # a plain text; the check of its type reports it
    return value


def _literal(text: str) -> Any:
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


def _to_yaml(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10**9, allow_unicode=True)
    return text.removesuffix("...\n").strip()
