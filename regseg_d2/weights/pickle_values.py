"""What a pickle may hold: the values that are made of it, and the checks on them before and after."""

from __future__ import annotations

import argparse
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

# A dict of weights in the checkpoint of an optimizer in a list: what people have is not ten levels deep.
_MOST_LEVELS = 100
# Values with repeated references written out.
_MOST_VALUES = 10_000_000
_LONGEST_KEY = 4096
_LONGEST_NAME = 200
# Keys whose hashes can be made equal would take quadratic time; of numbers of 64 bits only some are.
_MOST_KEY_BITS = 64


class Refused(Exception):
    """A file that asks for more than data."""


class Damaged(Exception):
    """A file that contradicts itself, or is no checkpoint."""


class Unread:
    """Stands for an object of another program, of which nothing was made and nothing is kept."""

    def __init__(self, name: str) -> None:
        self.name = name[:_LONGEST_NAME]

    def __repr__(self) -> str:
        return f"<not read: {self.name[:80]}>"


class Unfinished:
    """An object whose state comes later in the file."""

    #: Whether it is something without that state, too.
    is_complete = False

    def finished(self, state: Any) -> Any:
        """Returns the object that the state makes of it.

        Raises:
            Refused: it is of another kind than numbers.
            Damaged: it contradicts itself.
        """
        raise NotImplementedError


class Budget:
    """How many bytes may still be taken: a file cannot hold more values than bytes.

    Whatever is copied out of the memo counts, for a file can name the same value again and again.
    """

    def __init__(self, size: int) -> None:
        self._left = size

    def take(self, size: int) -> None:
        """Counts bytes before memory is taken for them.

        Raises:
            Damaged: there are not that many left.
        """
        self._left -= size
        if self._left < 0:
            raise Damaged("it declares more data than it holds")


def checked_key(value: Any) -> str | int | bytes:
    """Returns what can be hashed in the time that its bytes take; called before anything is hashed."""
    if isinstance(value, (str, bytes)) and len(value) <= _LONGEST_KEY:
        return value
    if isinstance(value, int) and value.bit_length() <= _MOST_KEY_BITS:
        return value
    raise Refused(
        f"Unsupported key: {type(value).__name__}; keys are texts of up to {_LONGEST_KEY} letters, or numbers"
    )


def checked_items(pairs: Any, budget: Budget) -> list[tuple[Any, Any]]:
    """Returns the items of a dict that a file gives as a dict or as pairs, counted in the budget.

    Raises:
        Damaged: it is neither.
        Refused: a key is neither text nor number.
    """
    if not isinstance(pairs, (dict, list, tuple)):
        raise Damaged("a dict is made of what are no pairs")
    budget.take(len(pairs))
    if isinstance(pairs, dict):
        return list(pairs.items())
    if not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs):
        raise Damaged("a dict is made of what are no pairs")
    return [(checked_key(key), value) for key, value in pairs]


def checked_keys(items: Any, budget: Budget) -> list[Any]:
    """Returns the items of a set that a file gives, counted in the budget.

    Raises:
        Damaged: it is no list.
        Refused: one is neither text nor number.
    """
    if not isinstance(items, (list, tuple, set, frozenset)):
        raise Damaged("a set is made of what is no list")
    budget.take(len(items))
    return [checked_key(item) for item in items]


def text_keys(state: Any, budget: Budget) -> dict[str, Any]:
    """Returns the attributes of an object, or the like, counted in the budget.

    Raises:
        Damaged: it is no dict with texts as keys.
    """
    if isinstance(state, dict):
        budget.take(len(state))
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise Damaged("the attributes of an object are no texts with values")
    return state


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, argparse.Namespace):
        return vars(value).values()
    if isinstance(value, OrderedDict) and hasattr(value, "_metadata"):
        return [*value.values(), value._metadata]
    return value.values() if isinstance(value, dict) else value


def check_tree(content: Any) -> None:
    """Checks that a value is finite: of few levels, and not endless where references are written out.

    Raises:
        Damaged: it is not.
    """
    sizes: dict[int, int] = {}
    open_ones: set[int] = set()
    frames: list[list[Any]] = [[None, iter([content]), 0]]
    while frames:
        frame = frames[-1]
        for child in frame[1]:
            if isinstance(child, Unfinished) and not child.is_complete:
                raise Damaged("an object in it has no content")
            if not isinstance(child, (dict, list, tuple, argparse.Namespace)):
                frame[2] += 1
            elif id(child) in sizes:
                frame[2] += sizes[id(child)]
            elif id(child) in open_ones:
                raise Damaged("a list or dict in it holds itself")
            elif len(frames) > _MOST_LEVELS:
                raise Damaged(f"its lists and dicts are nested more than {_MOST_LEVELS} levels deep")
            else:
                open_ones.add(id(child))
                frames.append([child, iter(_children(child)), 1])
                break
            if frame[2] > _MOST_VALUES:
                raise Damaged(f"it has more than {_MOST_VALUES} values")
        else:
            done, _, size = frames.pop()
            sizes[id(done)] = size
            open_ones.discard(id(done))
            if frames:
                frames[-1][2] += size
