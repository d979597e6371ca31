"""NumPy's arrays and numbers in a pickle: numbers and booleans alone, made of bytes that are there."""

from __future__ import annotations

import argparse
import math
import re
from collections import Counter, OrderedDict, defaultdict
from typing import Any

import numpy as np

from regseg_d2.weights.pickle_machine import Constructor, Name, kind_of
from regseg_d2.weights.pickle_values import (
    Budget,
    Damaged,
    Refused,
    Unfinished,
    Unread,
    checked_items,
    checked_keys,
)

_NUMBERS = re.compile(r"[<>=|]?(\?|b1|[iu][1248]|f[248]|c8|c16)")
# Texts and times: of no use here, and nothing is made of them.
_OTHER_VALUES = re.compile(r"[<>=|]?[USaMm]\d*(\[\w+\])?")
_BYTE_ORDERS = ("<", ">", "=", "|")
# NumPy 1 has 32.
_MOST_DIMENSIONS = 32


class PickledDtype(Unfinished):
    """A kind of numbers as a pickle names it; complete at once, though most files give a byte order later.

    Its code has been checked; where it is not one of numbers, such as "f4", :attr:`is_numeric` is False.
    """

    def __init__(self, code: str) -> None:
        self.code = code
        self.is_complete = True
        self.is_numeric = bool(_NUMBERS.fullmatch(code))

    def finished(self, state: Any) -> PickledDtype:
        """Takes over the byte order of a dtype's state, and nothing else of it."""
        if not isinstance(state, tuple) or len(state) < 2 or not _is_one_of(state[1], *_BYTE_ORDERS):
            raise Damaged("the state of a dtype has no byte order")
        return PickledDtype(state[1] + self.code.lstrip("<>=|"))

    def numpy(self) -> np.dtype:
        """Returns the dtype of the bytes in the file."""
        return np.dtype(self.code)


class _PickledArray(Unfinished):
    """An array whose shape, dtype and bytes follow."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget

    def finished(self, state: Any) -> np.ndarray | Unread:
        if not isinstance(state, tuple) or len(state) != 5:
            raise Damaged("the state of an array has not five parts")
        _, shape, dtype, is_fortran, content = state
        is_fortran = isinstance(is_fortran, int) and bool(is_fortran)
        return _array(content, dtype, shape, "F" if is_fortran else "C", self._budget)


def _dtype(code: Any, *_: Any) -> PickledDtype:
    """``numpy.dtype``: its further arguments say how NumPy would align and copy it."""
    is_short = isinstance(code, str) and len(code) <= 40
    if not is_short or not (_NUMBERS.fullmatch(code) or _OTHER_VALUES.fullmatch(code)):
        raise Refused(f"Unsupported dtype {text_of(code)}: only numbers and booleans are read")
    return PickledDtype(code)


def _array(content: Any, dtype: Any, shape: Any, order: str, budget: Budget) -> np.ndarray | Unread:
    """An array of its own memory, in the byte order of this machine; nothing for texts and times."""
    if not isinstance(dtype, PickledDtype):
        raise Damaged("an array has no dtype")
    if not dtype.is_numeric:
        return Unread(f"array of {dtype.code}")
    if not isinstance(shape, tuple) or len(shape) > _MOST_DIMENSIONS:
        raise Damaged("the shape of an array is no tuple of a few numbers")
    if not all(type(side) is int and side >= 0 for side in shape):
        raise Damaged("the shape of an array has parts that are no sizes")
    kind, content = dtype.numpy(), _bytes(content)
    if math.prod(shape) * kind.itemsize != len(content) or max(shape, default=0) > 1 << 62:
        raise Damaged(f"an array of shape {_shown(shape)} and dtype {kind} has {len(content)} bytes")
    budget.take(len(content))
    flat = np.frombuffer(content, dtype=kind)
    return flat.astype(kind.newbyteorder("=")).reshape(shape, order=order)


def _is_one_of(value: Any, *texts: str) -> bool:
    return isinstance(value, str) and value in texts


def text_of(value: Any) -> str:
    """Returns a text, shortened, or what a value is instead, for messages."""
    return repr(value[:80]) if isinstance(value, str) else kind_of(value)


def _shown(shape: tuple[int, ...]) -> str:
    return " x ".join(str(side) if side < 10**18 else "endless" for side in shape)


def _bytes(content: Any) -> bytes | bytearray:
    if isinstance(content, (bytes, bytearray)):
        return content
    if isinstance(content, str):
        return content.encode("latin1")  # of Python 2, which has no bytes; fails on other letters
    raise Refused(f"Unsupported content of an array: {type(content).__name__}; expected bytes")


def _latin1_bytes(text: Any, encoding: Any, budget: Budget) -> bytes:
    """``_codecs.encode``, with which old protocols write bytes; every other encoding is refused."""
    if not isinstance(text, str) or not _is_one_of(encoding, "latin1", "latin-1"):
        raise Refused(f"Unsupported encoding {text_of(encoding)}")
    budget.take(len(text))
    return text.encode("latin1")


def _scalar(dtype: Any, content: Any) -> Any:
    if not isinstance(dtype, PickledDtype):
        raise Damaged("a number has no dtype")
    if not dtype.is_numeric:
        return Unread(f"value of {dtype.code}")
    kind, content = dtype.numpy(), _bytes(content)
    if len(content) != kind.itemsize:
        raise Damaged(f"a number of dtype {kind} has {len(content)} bytes")
    return np.frombuffer(content, dtype=kind).astype(kind.newbyteorder("="))[0]


def _byte_array(budget: Budget, content: Any = b"", encoding: Any = "latin1") -> bytearray:
    if not _is_one_of(encoding, "latin1", "latin-1"):
        raise Refused(f"Unsupported encoding {text_of(encoding)}")
    content = _bytes(content)
    budget.take(len(content))
    return bytearray(content)


def _complex(real: Any, imaginary: Any) -> complex:
    if type(real) is not float or type(imaginary) is not float:
        raise Damaged("the parts of a complex number are no numbers")
    return complex(real, imaginary)


def plain_names(budget: Budget) -> dict[str, Constructor | Any]:
    """Returns what pickles of plain containers and NumPy arrays name; a budget of bytes is for all arrays."""

    def reconstruct(kind: Any, shape: Any, code: Any) -> _PickledArray:
        if not isinstance(kind, Name) or kind.name != "numpy.ndarray":
            raise Refused(f"Unsupported kind of array: {kind_of(kind)}")
        return _PickledArray(budget)

    def from_buffer(
        content: Any, dtype: Any, shape: Any, order: Any, axes: Any = None
    ) -> np.ndarray | Unread:
        array = _array(content, dtype, shape, "F" if _is_one_of(order, "F") else "C", budget)
        if not _is_one_of(order, "K") or axes is None or isinstance(array, Unread):
            return array
        if not isinstance(axes, tuple) or not all(type(axis) is int for axis in axes):
            raise Damaged("the axes of an array are no numbers")
        return array.transpose(axes)

    def no_array(*_: Any) -> Any:
        raise Refused("Unsupported call of numpy.ndarray")

    names: dict[str, Constructor | Any] = {
        "numpy.dtype": _dtype,
        "numpy.ndarray": no_array,
        "collections.OrderedDict": lambda pairs=(): OrderedDict(checked_items(pairs, budget)),
        "collections.Counter": lambda pairs=(): Counter(dict(checked_items(pairs, budget))),
        "collections.defaultdict": lambda factory=None: defaultdict(None),
        "_codecs.encode": lambda text, encoding: _latin1_bytes(text, encoding, budget),
        "argparse.Namespace": argparse.Namespace,
    }
    for package in ("numpy.core", "numpy._core"):
        names[f"{package}.multiarray._reconstruct"] = reconstruct
        names[f"{package}.multiarray.scalar"] = _scalar
        names[f"{package}.numeric._frombuffer"] = from_buffer
    for package in ("builtins", "__builtin__"):
        names[f"{package}.set"] = lambda items=(): set(checked_keys(items, budget))
        names[f"{package}.frozenset"] = lambda items=(): frozenset(checked_keys(items, budget))
        names[f"{package}.bytearray"] = lambda *content: _byte_array(budget, *content)
        names[f"{package}.complex"] = _complex
        names[f"{package}.bytes"] = lambda: b""  # what old protocols write for an empty array
        # What a defaultdict makes of a missing key. Nothing is made here.
        for name in ("list", "dict", "int", "float", "str", "bool", "tuple"):
            names[f"{package}.{name}"] = no_call
    return names


def no_call(*_: Any) -> Any:
    """Stands for a name that may be mentioned and not called: raises Refused."""
    raise Refused("Unsupported call of a class")
