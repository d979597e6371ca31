"""The elements of MATLAB files: numbers, cells and structs, with every type and length checked.

SciPy's reader takes types and lengths on trust, and a file with wrong ones makes it read outside its tables.
The format is that of "MAT-File Format" (The MathWorks), level 5: an element is a type, a length and content;
a matrix is an element that holds others.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Collection
from typing import Any

import numpy as np

_HEADER = 128
_VERSION = 0x0100
_MATRIX, _COMPRESSED = 14, 15
# Types of elements that hold numbers or letters.
_TYPES = {
    **{1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"},
    **{16: "u1", 17: "u2", 18: "u4"},
}
_INT8, _INT32, _UINT32 = 1, 5, 6
_CELL, _STRUCT = 1, 2
# Classes of matrices of numbers, which may be stored in a smaller type.
_NUMBERS = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
_COMPLEX = 0x0800
_MOST_LEVELS = 20
_MOST_SIDES = 32
# Labels have long runs of one value, and are packed to a hundredth and less.
_MOST_BYTES = 1 << 29


def read_elements(data: bytes, variables: Collection[str]) -> dict[str, Any]:
    """Reads variables of a file.

    Args:
        data: the file.
        variables: names of those to read; others are passed over, whatever they hold.

    Returns:
        Those that are there: arrays of numbers; lists of the parts of cells, down the columns; dicts of the
        fields of a struct of one; None for letters, sparse matrices and objects.

    Raises:
        ValueError: the file is not of level 5, or contradicts itself.
    """
    if len(data) < _HEADER or data[126:128] not in (b"IM", b"MI"):
        raise ValueError("it has no header of a MATLAB file of level 5")
    order = "<" if data[126:128] == b"IM" else ">"
    if struct.unpack_from(f"{order}H", data, 124)[0] != _VERSION:
        raise ValueError("it is not of level 5; save it with -v7")
    found, left = {}, _MOST_BYTES
    for kind, content in _elements(memoryview(data)[_HEADER:], order):
        matrices = [(kind, content)]
        if kind == _COMPRESSED:
            unpacked = zlib.decompressobj().decompress(content, left + 1)
            left -= len(unpacked)
            if left < 0:
                raise ValueError(f"it unpacks to more than {_MOST_BYTES} bytes")
            matrices = _elements(memoryview(unpacked), order)
        for matrix in matrices:
            name = _name(*matrix, order)
            if name in variables:
                found[name] = _value(*matrix, order, 0)
    return found


def _elements(data: memoryview, order: str) -> list[tuple[int, memoryview]]:
    """Type and content of each element."""
    found, place = [], 0
    while place < len(data):
        if place + 8 > len(data):
            raise ValueError("it ends within an element")
        kind, size = struct.unpack_from(f"{order}II", data, place)
        if kind >> 16:  # up to four bytes of content stand in the place of the length
            kind, size, start = kind & 0xFFFF, kind >> 16, place + 4
            if size > 4:
                raise ValueError("a short element is longer than four bytes")
            place += 8
        else:
            start = place + 8
            # The packed ones alone are not filled up to eight bytes.
            place = start + size + (0 if kind == _COMPRESSED else -size % 8)
        if start + size > len(data):
            raise ValueError("an element is longer than what is there")
        found.append((kind, data[start : start + size]))
    return found


def _numbers(kind: int, content: memoryview, order: str) -> np.ndarray:
    if kind not in _TYPES:
        raise ValueError(f"an element has the type {kind}; expected numbers")
    return np.frombuffer(content, dtype=f"{order}{_TYPES[kind]}")  # raises where the length does not fit


def _parts(kind: int, content: memoryview, order: str) -> list[tuple[int, memoryview]]:
    if kind != _MATRIX:
        raise ValueError(f"an element has the type {kind}; expected a matrix")
    return _elements(content, order)


def _name(kind: int, content: memoryview, order: str) -> str:
    parts = _parts(kind, content, order)
    return bytes(parts[2][1]).decode("latin1") if len(parts) > 2 and parts[2][0] == _INT8 else ""


def _value(kind: int, content: memoryview, order: str, level: int) -> Any:
    parts = _parts(kind, content, order)
    if not parts:
        return np.zeros((0, 0))
    if level > _MOST_LEVELS:
        raise ValueError(f"its matrices are nested more than {_MOST_LEVELS} levels deep")
    if [part[0] for part in parts[:3]] != [_UINT32, _INT32, _INT8] or len(parts[0][1]) != 8:
        return None  # an object of a later version of MATLAB
    flags = int(_numbers(*parts[0], order)[0])
    sides = tuple(_numbers(*parts[1], order).tolist())
    if not 2 <= len(sides) <= _MOST_SIDES or min(sides) < 0:
        raise ValueError(f"a matrix has the sides {sides[:8]}")
    number = flags & 0xFF
    if number in _NUMBERS:
        if flags & _COMPLEX or len(parts) != 4:
            raise ValueError("a matrix holds complex numbers, or none at all")
        values = _numbers(*parts[3], order)
        if len(values) != math.prod(sides):
            raise ValueError(f"a matrix of the sides {sides[:8]} has {len(values)} numbers")
        return values.astype(_NUMBERS[number]).reshape(sides, order="F")
    if number == _CELL:
        return _all_values(parts[3:], math.prod(sides), order, level)
    if number == _STRUCT and math.prod(sides) == 1:
        return _fields(parts[3:], order, level)
    return None


def _all_values(parts: list[tuple[int, memoryview]], count: int, order: str, level: int) -> list[Any]:
    if len(parts) != count:
        raise ValueError(f"a cell or struct of {count} parts has {len(parts)}")
    return [_value(*part, order, level + 1) for part in parts]


def _fields(parts: list[tuple[int, memoryview]], order: str, level: int) -> dict[str, Any]:
    if [part[0] for part in parts[:2]] != [_INT32, _INT8] or len(parts[0][1]) != 4:
        raise ValueError("a struct has no names of its fields")
    length, text = int(_numbers(*parts[0], order)[0]), bytes(parts[1][1])
    if length < 1 or len(text) % length:
        raise ValueError("the names of a struct's fields have no length")
    names = [text[i : i + length].split(b"\0")[0].decode("latin1") for i in range(0, len(text), length)]
    return dict(zip(names, _all_values(parts[2:], len(names), order, level), strict=True))
