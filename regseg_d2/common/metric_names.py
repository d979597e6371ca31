"""What the numbers of a training are called in ``metrics.json``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

#: Before the name of a loss: its value without its weight.
UNWEIGHTED = "unweighted/"
# What files of earlier versions call it: the method, and the term of its loss.
_EARLIER = re.compile(r"(?P<method>[^/]+)/loss_(?P<term>[^/]+)")


def loss_name(method: str, term: str) -> str:
    """Name of a loss of a regularizer; its value without the weight has :data:`UNWEIGHTED` before it."""
    return f"loss_{method}_{term}"


def current_names(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of ``metrics.json`` with today's names, whichever version wrote it."""
    return {_current_name(key): value for key, value in row.items()}


def _current_name(key: str) -> str:
    earlier = _EARLIER.fullmatch(key)
    if earlier is None or key.startswith(UNWEIGHTED):
        return key
    return UNWEIGHTED + loss_name(earlier["method"], earlier["term"])
