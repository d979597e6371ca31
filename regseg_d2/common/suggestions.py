"""The nearest known name to one that is unknown, for error messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from fvcore.common.registry import Registry

from regseg_d2.common.errors import ConfigError


def nearest_names(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Returns up to ``count`` known names, the most similar to ``name`` first."""
    candidates = {candidate.lower(): candidate for candidate in known}
    matches = difflib.get_close_matches(name.lower(), candidates, n=count, cutoff=0.5)
    return [candidates[match] for match in matches]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns ``" (did you mean 'x' or 'y'?)"``, or an empty string if nothing is near."""
    nearest = nearest_names(name, known)
    return f" (did you mean {' or '.join(map(repr, nearest))}?)" if nearest else ""


#: What may be missing where a name is in no registry.
IMPORTS_HINT = "Where a module of yours registers it, name the module in IMPORTS."


def registered(registry: Registry, name: str, key: str) -> Any:
    """Returns what is registered under the name that a key of the config has; raises ConfigError."""
    if name not in registry:
        known = sorted(known_name for known_name, _ in registry)
        raise ConfigError(
            f"{key}: unknown name {name!r}{did_you_mean(name, known)}; known are {known}. {IMPORTS_HINT}"
        )
    return registry.get(name)
