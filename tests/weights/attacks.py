"""Files of weights that mean harm, written by hand."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path

import numpy as np
import torch

from regseg_d2.weights.reading import load_file


def forged_object_array(key: str = "conv.weight", flags: int = 0) -> bytes:
    """A pickle of ``{key: array}`` whose dtype is of objects and claims not to be (flags).

    NumPy then takes bytes of the file for addresses of objects.
    """
    addresses = struct.pack("<2Q", 0x4141414141414141, 0x4242424242424242)
    dtype = b"cnumpy\ndtype\n(X\x02\0\0\0O8K\0K\1tR"
    state = b"(K\3X\1\0\0\0|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK" + bytes([flags]) + b"tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\0tC\1btR"
    content = b"(K\1(K\2t" + dtype + state + b"\x89C" + bytes([len(addresses)]) + addresses + b"tb"
    name = key.encode()
    return b"\x80\3}X" + struct.pack("<I", len(name)) + name + array + content + b"s."


def holds_objects(value: object) -> bool:
    """Whether an array of objects, or of records, is anywhere in what was read."""
    if isinstance(value, np.ndarray):
        return value.dtype.kind not in "biufc" or value.dtype.hasobject
    if isinstance(value, dict):
        return any(map(holds_objects, value.values()))
    return isinstance(value, (list, tuple)) and any(map(holds_objects, value))


def read_checkpoint(path: Path) -> None:
    """Reads a file and every byte of its arrays and tensors.

    Args:
        path: the file.
    """
    content = load_file(str(path))
    assert not holds_objects(content)
    _touch(content)


def _touch(value: object) -> None:
    if isinstance(value, torch.Tensor):
        assert value.numel() <= 1 << 24
        value.sum()
    elif isinstance(value, np.ndarray):
        value.sum()
    elif isinstance(value, dict):
        for item in value.values():
            _touch(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _touch(item)


def self_containing() -> bytes:
    """A dict that has itself under "model"."""
    return b"\x80\2}q\0X\5\0\0\0modelh\0s."


def nested_tuple_key(levels: int = 60) -> bytes:
    """A dict whose key is a pair of twice the same pair, and so on; its hash takes 2 ** levels steps."""
    pairs = b"".join(b"q%ch%c\x86" % (level, level) for level in range(levels))
    return b"\x80\2}K\1" + pairs + b"K\1s."


def repeated_lists(levels: int = 9) -> bytes:
    """Lists of ten times the same list."""
    text = b"(" + b"K\1" * 10 + b"l"
    for level in range(levels):
        text = text + b"q%c0(" % level + b"h%c" % level * 10 + b"l"
    return b"\x80\2}X\5\0\0\0model" + text + b"s."


def used_again_and_again(setup: bytes, use: bytes, times: int = 20_000) -> bytes:
    """A value of 20,000 parts in the memo, and then a copy of it, or a walk over it, every few bytes."""
    return b"\x80\2" + setup + b"q\0" + b"".join([use] * times) + b"N."


def huge_array() -> bytes:
    """An array that declares 2 ** 40 numbers and has two."""
    return _array(pickle.dumps(np.zeros(2), protocol=2), b"K\x02\x85", b"\x8a\6\0\0\0\0\0\1\x85")


def _array(data: bytes, old: bytes, new: bytes) -> bytes:
    assert data.count(old) == 1
    return data.replace(old, new)
