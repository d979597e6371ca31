"""Files of ``torch.save`` in both of its formats, read without torch's or Python's unpickler.

Both are a pickle that refers to storages. In the zip format each storage is an entry of the archive; in the
older one all follow behind the pickle. A storage gets memory only when its bytes are there, and a tensor is
made only where it lies within its storage.
"""

from __future__ import annotations

import io
import math
import sys
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO

import torch
from torch import Tensor

from regseg_d2.weights.pickle_arrays import no_call, plain_names, text_of
from regseg_d2.weights.pickle_machine import Constructor, Name, Window, kind_of, read_pickle
from regseg_d2.weights.pickle_values import Budget, Damaged, Refused, Unread

ZIP_START = b"PK\x03\x04"
_LEGACY_NUMBER = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001
#: How the pickle of the older format begins: protocol 2, a number of ten bytes.
LEGACY_START = b"\x80\x02\x8a\n" + _LEGACY_NUMBER.to_bytes(10, "little")

_STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}
_DTYPES = {str(dtype): dtype for dtype in _STORAGES.values()}
_MOST_DIMENSIONS = 64
# Elements of a tensor that has more of them than its storage: an expanded one.
_MOST_REPEATED = 1 << 24


class _Storage:
    """Memory of one dtype that tensors of a file are views of."""

    def __init__(self, dtype: torch.dtype, count: int) -> None:
        self.raw = torch.empty(count * dtype.itemsize, dtype=torch.uint8)
        self.values = self.raw.view(dtype)

    def fill(self, file: Any) -> None:
        """Reads the memory from a binary file with ``readinto``."""
        view = memoryview(self.raw.numpy())
        while view:
            count = file.readinto(view)
            if not count:
                raise Damaged("it ends early")
            view = view[count:]


def read_zip(file: BinaryIO, size: int) -> Any:
    """Reads a file of ``torch.save``'s zip format, of so many bytes.

    Raises:
        Refused: it holds more than tensors, arrays and plain containers.
        Damaged: it contradicts itself, or a checksum is wrong.
    """
    budget = Budget(size)
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        if len(entries) < len(archive.infolist()):
            raise Damaged("two of its parts have the same name")
        pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
        folders = [name.removesuffix("data.pkl") for name in pickles]
        if len(folders) != 1:
            raise Damaged("it is a zip archive and none of torch.save")
        (folder,) = folders

        def content(name: str) -> bytes:
            entry = entries[f"{folder}{name}"]
            budget.take(entry.file_size)
            return archive.read(entry)

        if f"{folder}byteorder" in entries and content("byteorder") != sys.byteorder.encode():
            raise Refused("Unsupported byte order: it was written on a machine of another one")

        def fill(key: str, storage: _Storage) -> None:
            with archive.open(f"{folder}data/{key}") as part:
                storage.fill(part)
                if part.read(1):  # also compares the checksum, which is done at the end
                    raise Damaged(f"its part '{key}' is longer than it says")

        def size_of(key: str) -> int:
            entry = entries.get(f"{folder}data/{key}")
            if entry is None:
                raise Damaged(f"its part '{key[:80]}' is missing")
            if entry.compress_type != zipfile.ZIP_STORED:
                raise Refused(f"Unsupported compression of its part '{key}'")
            return entry.file_size

        storages = _Storages(Budget(size), size_of, fill)
        pickled = content("data.pkl")
        window = Window(io.BytesIO(pickled), len(pickled))
        copied = Budget(2 * size)
        return read_pickle(window, _names(copied), copied, storages.of)


def read_legacy(window: Window) -> Any:
    """Reads a file of ``torch.save``'s older format, in which the storages follow the pickle.

    Raises:
        Refused: it holds more than tensors, arrays and plain containers.
        Damaged: it contradicts itself, or ends early.
    """
    copied = Budget(2 * window.size)
    start = [read_pickle(window, {}, copied) for _ in range(3)]
    if start[:2] != [_LEGACY_NUMBER, _LEGACY_VERSION]:
        raise Damaged("it is not of a format that torch writes")
    if not isinstance(start[2], dict) or start[2].get("little_endian") is not (sys.byteorder == "little"):
        raise Refused("Unsupported byte order: it was written on a machine of another one")
    storages = _Storages(Budget(window.left()))
    content = read_pickle(window, _names(copied), copied, storages.of)
    keys = read_pickle(window, {}, copied)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise Damaged("its list of storages is none")
    if sorted(keys) != sorted(storages.found):
        raise Damaged("its storages are others than those that it refers to")
    for key in keys:
        storage = storages.found[key]
        if int.from_bytes(window.read(8), "little") != storage.values.numel():
            raise Damaged(f"its storage '{key[:80]}' has another length than it says")
        storage.fill(window.file)
    return content


class _Storages:
    """Makes the storages that a pickle refers to, each once."""

    def __init__(
        self,
        budget: Budget,
        size_of: Callable[[str], int] | None = None,
        fill: Callable[[str, _Storage], None] | None = None,
    ) -> None:
        self.found: dict[str, _Storage] = {}
        self._budget = budget
        self._size_of = size_of
        self._fill = fill

    def of(self, reference: Any) -> _Storage:
        """Returns the storage that a persistent id names: kind, key, place and number of elements."""
        if not isinstance(reference, tuple) or len(reference) not in (5, 6):
            raise Damaged("a reference to a storage is none")
        _, kind, key, _, count = reference[:5]
        if not isinstance(kind, torch.dtype):
            raise Damaged("a storage has no kind")
        if not isinstance(key, str) or type(count) is not int or count < 0:
            raise Damaged("a storage has no name or length")
        if len(reference) == 6 and reference[5] is not None:
            raise Refused("Unsupported view of a storage, as torch before 0.4 wrote it")
        if key not in self.found:
            self.found[key] = self._new(kind, key, count)
        storage = self.found[key]
        if storage.values.dtype != kind or storage.values.numel() != count:
            raise Damaged(f"its storage '{key[:80]}' is referred to in two ways")
        return storage

    def _new(self, kind: torch.dtype, key: str, count: int) -> _Storage:
        if self._size_of is not None and self._size_of(key) != count * kind.itemsize:
            raise Damaged(f"its storage '{key[:80]}' has another length than it says")
        self._budget.take(count * kind.itemsize)
        storage = _Storage(kind, count)
        if self._fill is not None:
            self._fill(key, storage)
        return storage


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    """``_rebuild_tensor_v2``: a view of a storage. Whether it needs a gradient is not taken over."""
    if not isinstance(storage, _Storage):
        raise Damaged("a tensor has no storage")
    size, stride = _sizes(size), _sizes(stride)
    if type(offset) is not int or offset < 0 or len(size) != len(stride):
        raise Damaged("the size of a tensor does not fit its strides")
    count, there = math.prod(size), storage.values.numel()
    last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True))
    if (last >= there if count else offset > there) or max((*size, *stride), default=0) > max(
        there, _MOST_REPEATED
    ):
        raise Damaged("a tensor is larger than its storage")
    if count > max(there, _MOST_REPEATED):
        raise Damaged("a tensor repeats few values endlessly")
    return storage.values.as_strided(size, stride, offset)


def _sizes(value: Any) -> tuple[int, ...]:
    if not isinstance(value, tuple) or len(value) > _MOST_DIMENSIONS:
        raise Damaged("the size of a tensor is no tuple of a few numbers")
    if not all(type(side) is int and side >= 0 for side in value):
        raise Damaged("the size of a tensor has parts that are no sizes")
    return value


def _size(sizes: Any = ()) -> tuple[int, ...]:
    """``torch.Size``: a tuple is what it is."""
    return _sizes(tuple(sizes) if isinstance(sizes, list) and len(sizes) <= _MOST_DIMENSIONS else sizes)


def _only_tensor(value: Any, *_: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise Damaged("a parameter is made of what is no tensor")
    return value


def _tensor_of_type(function: Any, _: Any, arguments: Any, *__: Any) -> Tensor:
    """Tensors that carry attributes, or are of a class of their own, which are left out."""
    if not isinstance(function, Name) or function.construct not in (_tensor, _only_tensor):
        raise Refused("Unsupported kind of tensor")
    if not isinstance(arguments, tuple):
        raise Damaged("a tensor has no arguments")
    return function.construct(*arguments)


def _names(budget: Budget) -> dict[str, Constructor | Any]:
    names = plain_names(budget)
    names |= {
        "torch._utils._rebuild_tensor": _tensor,
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_parameter": _only_tensor,
        "torch._utils._rebuild_parameter_with_state": _only_tensor,
        "torch._tensor._rebuild_from_type_v2": _tensor_of_type,
        "builtins.getattr": _attribute,
        "__builtin__.getattr": _attribute,
        "torch.Tensor": no_call,
        "torch.nn.parameter.Parameter": no_call,
        "torch.Size": _size,
        "torch.device": _device,
        **_DTYPES,
    }
    for module in ("torch", "torch.cuda"):
        names |= {f"{module}.{name}": dtype for name, dtype in _STORAGES.items()}
    return names


def _attribute(owner: Any, name: Any) -> Unread:
    """``getattr``: mmengine's curves of logged numbers name methods of their own class."""
    if isinstance(owner, Unread) and isinstance(name, str):
        return Unread(f"{owner.name}.{name[:80]}")
    raise Refused(f"Unsupported attribute {text_of(name)} of {kind_of(owner)}")


def _device(kind: Any, index: Any = None) -> str:
    """The name of a device: nothing of a file goes anywhere but to the CPU."""
    return f"{kind}:{index}" if isinstance(kind, str) and isinstance(index, int) else str(kind)[:40]
