"""The dotted keys of a config: all of them, the value of one, and setting it to a value of its type."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode

from regseg_d2.common.errors import ConfigError, printable
from regseg_d2.common.suggestions import did_you_mean
from regseg_d2.common.yaml_files import shown
from regseg_d2.config.literals import read_literal, to_yaml

IMPORTS_KEY = "IMPORTS"
_LONGEST_KEY = 200
# A method once more at another place; see segmentor/regularizers.py.
_PLACE_KEY = re.compile(r"MODEL\.REGULARIZERS\.(?P<method>\w+)@(?P<place>[\w-]+)\.(?P<name>\w+)$")
_METHOD_KEY = r"MODEL.REGULARIZERS.\g<method>.\g<name>"
# Key -> {value: what other packages write for it}.
_OTHER_WORDS: dict[str, dict[str, tuple[Any, ...]]] = {
    "MODEL.TIMM.PRETRAINED": {"auto": (True, "true"), "": (False, "false")},  # timm's argument is a bool
}


def flatten_config(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Returns ``{dotted key: value}`` of every value in a config or in the mapping of a YAML file."""
    return dict(leaves(cfg, prefix=""))


def leaves(node: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Yields ``(dotted key, value)`` of every value in a mapping, with ``prefix`` before each key."""
    for name, value in node.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from leaves(value, prefix=f"{key}.")
        else:
            yield key, value


def value_of(cfg: CfgNode, key: str) -> Any:
    """Returns the value or section of ``key``; None where there is none.

    That of a method at another place is the method's own.
    """
    node: Any = cfg
    for name in _PLACE_KEY.sub(_METHOD_KEY, key).split("."):
        if not isinstance(node, CfgNode) or name not in node:
            return None
        node = node[name]
    return node


def set_value(cfg: CfgNode, key: str, value: Any, *, origin: str, known: Sequence[str]) -> None:
    """Sets a key to a value, brought to the type of what is there where that loses nothing.

    Args:
        cfg: the config.
        key: the dotted key.
        value: its value.
        origin: where it comes from, for errors.
        known: all keys that there are, for errors.

    Raises:
        ConfigError: there is no such key, or the value is of another type.
    """
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
        node[name] = read_literal(value) if isinstance(value, str) else value
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
    for meant, words in _OTHER_WORDS.get(key, {}).items():
        value = meant if any(value is word or value == str(word) for word in words) else value
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
        value = read_literal(value)
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
        f"{kinds.get(type(current), 'a list')}, such as {to_yaml(current)}.{hint}"
    )
