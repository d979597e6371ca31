"""Reads configuration files: ``_BASE_`` chains, safe YAML, errors that name what is wrong.

Detectron2's own reader falls back to ``yaml.unsafe_load`` (which runs code) and reports an unknown
key without its file. This one runs no code but that of the modules in ``IMPORTS``, remembers where each
value came from, and names the nearest known key.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils.logger import log_first_n

from regseg_d2.common.errors import ConfigError
from regseg_d2.common.yaml_files import is_text, parse_yaml, shown
from regseg_d2.config import get_regseg_cfg
from regseg_d2.config.bases import Chain
from regseg_d2.config.imports import UserModule, default_config, find_modules
from regseg_d2.config.keys import IMPORTS_KEY, flatten_config, leaves, set_value, value_of
from regseg_d2.config.literals import read_literal, to_yaml
from regseg_d2.config.shipped import config_path

# Folder of the bases, beside the folders of the files that are trained.
BASE_FOLDER = "_base_"
AUTO = "auto"
COMMAND_LINE = "command line"
# Keys that list files. A name is looked for beside the file that has the key, then in the working folder,
# and is absolute from then on: a config that is saved elsewhere names the same files.
FILE_LISTS = ("DATASETS.DECLARED",)


def load_config(config_file: str, opts: Sequence[str] | None = ()) -> CfgNode:
    """Returns the defaults, changed by a YAML file with its bases and by overrides.

    ``config_file`` is the path of a YAML file, ``regseg:NAME`` (one of the package's), or "" for the defaults
    alone; ``opts`` are overrides ``[KEY, VALUE, KEY, VALUE, ...]`` as they come from a command line.

    Returns:
        The config, not frozen. ``OUTPUT_DIR``, where nobody sets it or sets it to "auto", is
        ``output/FOLDER/NAME`` for a file ``FOLDER/NAME.yaml`` beside a folder ``_base_`` (or for the base of
        that kind that the file names), and ``./output`` for any other. A warning lists defaults that modules
        of ``IMPORTS`` changed, see :func:`describe_changed_defaults`.

    Raises:
        ConfigError: a file is missing, unsafe or no YAML, a module of ``IMPORTS`` is missing or fails, a key
            is unknown, a value has the wrong type, or an override has no value.
    """
    cfg, origins = load_config_with_origins(config_file, opts)
    if message := describe_changed_defaults(cfg, origins):
        log_first_n(logging.WARNING, message, name=__name__, key="message")
    return cfg


def load_config_with_origins(
    config_file: str, opts: Sequence[str] | None = ()
) -> tuple[CfgNode, dict[str, str]]:
    """As :func:`load_config`, and tells where each value comes from.

    The origins are ``{dotted key: file or "command line"}`` of every key that was set, whether or not to
    another value than the default; and "IMPORTS" with the module of those whose default one changed.
    """
    chain = Chain()
    values = list(chain.read(config_path(config_file))) if config_file else []
    pairs = list(override_pairs(opts or ()))
    modules = _user_modules(values, pairs)
    cfg, origins = default_config(modules)
    known = list(flatten_config(cfg))
    if modules:
        origins[IMPORTS_KEY] = modules[-1].origin
    for key, value, origin in values:
        if key != IMPORTS_KEY:
            value = _found_files(value, Path(origin).parent) if key in FILE_LISTS else value
            set_value(cfg, key, value, origin=origin, known=known)
            origins[key] = origin
    for key, text in pairs:
        if key == IMPORTS_KEY:
            continue
        value = _decode_override(text, expected=value_of(cfg, key))
        # A mapping sets the keys of a section, as in a file.
        inner = list(leaves(value, prefix=f"{key}.")) if isinstance(value, Mapping) else []
        for leaf, leaf_value in inner or [(key, value)]:
            leaf_value = _found_files(leaf_value, Path()) if leaf in FILE_LISTS else leaf_value
            set_value(cfg, leaf, leaf_value, origin=COMMAND_LINE, known=known)
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
            value = read_literal(value) if isinstance(value, str) else value
            modules += find_modules(value, os.path.dirname(os.path.abspath(origin)), origin)
    for key, text in pairs:
        if key == IMPORTS_KEY:
            modules += find_modules(_decode_override(text, expected=[]), os.getcwd(), COMMAND_LINE)
    return modules


def override_pairs(opts: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yields keys with their values, as a command line has them one behind the other.

    Raises:
        ConfigError: the last key has no value.
    """
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
    value = read_literal(text)
    if isinstance(expected, str):
        return value if isinstance(value, str) else text
    if isinstance(value, str):
        try:
            return parse_yaml(text, COMMAND_LINE)
        except ConfigError:
            return text  # a plain text; the check of its type reports it
    return value


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
        names = read_literal(names)
    if not isinstance(names, (list, tuple)):
        return names
    return [_found_file(name, folder) if isinstance(name, str) else name for name in names]


def _found_file(name: str, folder: Path) -> str:
    beside, here = (os.path.abspath(base / os.path.expanduser(name)) for base in (folder, Path()))
    return here if os.path.isfile(here) and not os.path.isfile(beside) else beside


def describe_changed_defaults(cfg: CfgNode, origins: Mapping[str, str]) -> str:
    """Lists defaults that a module of ``IMPORTS`` changed and nobody sets, for a warning.

    A module may well mean it: its networks need it. But the key is no longer what the documentation says.

    Args:
        cfg: the config.
        origins: its origins, see :func:`load_config_with_origins`.

    Returns:
        Each key of Detectron2 or of this package with its old and its new value; "" where there is none.
    """
    if not cfg.IMPORTS:
        return ""
    now = flatten_config(cfg)
    changes = [
        f"  {key}: {shown(old)} -> {shown(now[key]) if key in now else 'removed'}  ({origins[key]})"
        for key, old in flatten_config(get_regseg_cfg()).items()
        if origins.get(key, "").startswith(f"{IMPORTS_KEY} ")
    ]
    if not changes:
        return ""
    return "\n".join(
        [
            "These defaults were changed by modules:",
            *changes,
            "Set the keys in the config: to the old values, or to the new ones if they are meant.",
        ]
    )


def format_config(cfg: CfgNode, origins: Mapping[str, str] | None = None) -> str:
    """Returns a config as YAML, with its origin behind each value that is not the default.

    It can be loaded again; the origins are comments, as :func:`load_config_with_origins` gives them. A
    changed key that is not among them was set in code. None leaves the origins out.
    """
    defaults = flatten_config(default_config(find_modules(cfg.IMPORTS, None, IMPORTS_KEY))[0])
    defaults |= flatten_config(get_regseg_cfg())  # what a module changed is not the default
    lines: list[str] = []

    def write(node: Mapping[str, Any], prefix: str, indent: str) -> None:
        for name in sorted(node):
            key, value = f"{prefix}{name}", node[name]
            if isinstance(value, Mapping):
                lines.append(f"{indent}{name}:" if value else f"{indent}{name}: {{}}")
                write(value, f"{key}.", indent + "  ")
                continue
            line = f"{indent}{name}: {to_yaml(value)}"
            if origins is not None and (key not in defaults or defaults[key] != value):
                unset = AUTO if key == "OUTPUT_DIR" else "set in code"
                line += f"  # {origins.get(key, unset)}"
            lines.append(line)

    write(cfg, "", "")
    return "\n".join(lines) + "\n"


def print_config(cfg: CfgNode, origins: Mapping[str, str]) -> None:
    """Prints :func:`format_config`."""
    print(format_config(cfg, origins), end="")
