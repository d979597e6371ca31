"""Reads pickles without Python's unpickler: a small machine that knows plain values and a list of names.

Python's unpickler calls whatever a file names and hashes whatever a file uses as a key. This machine goes
through the opcodes itself. It makes numbers, texts, bytes, lists, tuples, dicts and sets; a name of the file
becomes a value only through a function of ours that checks what it gets. Nothing of these is ever imported.
"""

from __future__ import annotations

import argparse
import pickletools
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import IO, Any, BinaryIO, cast

from regseg_d2.weights.pickle_values import (
    Budget,
    Damaged,
    Refused,
    Unfinished,
    Unread,
    check_tree,
    checked_key,
    text_keys,
)

_LONGEST_LINE = 1 << 20
_LONGEST_NAME = 200
_MOST_BITS = 4096
# Data classes of training programs, kept beside weights. They are read as `Unread`.
_DATA_CLASSES = (
    "mmengine.", "mmcv.", "mmseg.", "mmdet.", "yacs.", "omegaconf.", "pathlib.", "datetime.", "numpy.random.",
    "numpy.ma.", "easydict.", "addict.",
)  # fmt: skip

Constructor = Callable[..., Any]


class Name:
    """A dotted name of a file that is known; it is no value by itself.

    ``construct`` makes the value of the arguments that the file gives, and checks them.
    """

    def __init__(self, name: str, construct: Constructor) -> None:
        self.name = name
        self.construct = construct

    def __repr__(self) -> str:
        return f"<{self.name}>"


class Window:
    """A file, open for reading, that is never asked for more bytes than are left of its ``size``."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file = file
        self.size = size

    def left(self) -> int:
        """Returns how many bytes follow."""
        return self.size - self.file.tell()

    def tell(self) -> int:
        """Returns the place in the file."""
        return self.file.tell()

    def read(self, size: int) -> bytes:
        """Reads exactly ``size`` bytes, or none where there are fewer, except for single bytes."""
        if size > 1 and size > self.left():
            raise Damaged("it ends early")
        return self.file.read(size)

    def readline(self) -> bytes:
        """Reads up to the next line break."""
        return self.file.readline(_LONGEST_LINE)


def read_pickle(
    window: Window,
    names: Mapping[str, Constructor | Any],
    budget: Budget,
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """Reads one pickle.

    Args:
        window: the file, at the pickle's first byte; afterwards behind its last.
        names: by dotted name, the function that makes the value, or the value itself.
        budget: how many bytes and values may be copied.
        persistent: makes the value of a persistent id, which is how torch refers to storages.

    Returns:
        Numbers, texts, bytes, lists, tuples, dicts, sets, what ``names`` and ``persistent`` make, and
        :class:`Unread`. No list or dict of it holds itself.

    Raises:
        Refused: the file asks for more than that.
        Damaged: it contradicts itself, ends early, or is no pickle.
    """
    content = _Machine(names, budget, persistent).run(window)
    check_tree(content)
    return content


class _Machine:
    def __init__(
        self,
        names: Mapping[str, Constructor | Any],
        budget: Budget,
        persistent: Callable[[Any], Any] | None,
    ) -> None:
        self._names = names
        self._budget = budget
        self._persistent = persistent
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        # Where unfinished objects are in the memo: what they become takes their places.
        self._places: dict[int, tuple[Unfinished, list[int]]] = {}

    def run(self, window: Window) -> Any:
        try:
            for opcode, argument, _ in pickletools.genops(cast(IO[bytes], window)):
                if opcode.name == "STOP":
                    return self._stack.pop()
                if opcode.name in _VALUES:
                    self._stack.append(_value(argument))
                    continue
                run = _OPERATIONS.get(opcode.name)
                if run is None:
                    raise Refused(f"Unsupported operation {opcode.name}")
                run(self, argument)
        except IndexError as error:
            raise Damaged("it takes values that it has not put there") from error
        except (ValueError, UnicodeError) as error:
            raise Damaged(str(error)[:200]) from error
        raise Damaged("it ends early")

    # ------------------------------------------------------------------------------------ stack and memo

    def nothing(self, _: Any) -> None:
        pass

    def mark(self, _: Any) -> None:
        self._marks.append(len(self._stack))

    def _above_mark(self) -> list[Any]:
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def pop(self, _: Any) -> None:
        if self._marks and self._marks[-1] == len(self._stack):
            self._marks.pop()
        else:
            self._stack.pop()

    def pop_mark(self, _: Any) -> None:
        self._above_mark()

    def put(self, place: int | None) -> None:
        place = len(self._memo) if place is None else place
        value = self._stack[-1]
        if isinstance(value, Unfinished):
            self._places.setdefault(id(value), (value, []))[1].append(place)
        self._memo[place] = value

    def get(self, place: int) -> None:
        if place not in self._memo:
            raise Damaged(f"it refers to value {place}, which is not there")
        self._stack.append(self._memo[place])

    # -------------------------------------------------------------------------------------- plain values

    def constant(self, value: Any) -> None:
        self._stack.append(value)

    def list_of_mark(self, _: Any) -> None:
        self._stack.append(self._above_mark())

    def append(self, _: Any) -> None:
        self._extend([self._stack.pop()])

    def appends(self, _: Any) -> None:
        self._extend(self._above_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, Unread):
            return
        if not isinstance(target, list):
            raise Refused(f"Unsupported append to {kind_of(target)}")
        target.extend(items)

    def tuple_of_mark(self, _: Any) -> None:
        self._stack.append(tuple(self._above_mark()))

    def tuple_of(self, count: int) -> None:
        items = tuple(self._stack[-count:])
        if len(items) < count:
            raise Damaged("it takes values that it has not put there")
        self._stack[-count:] = [items]

    def dict_of_mark(self, _: Any) -> None:
        items = self._above_mark()
        self._stack.append({})
        self._set_items(items)

    def set_item(self, _: Any) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set_items([key, value])

    def set_items(self, _: Any) -> None:
        self._set_items(self._above_mark())

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, Unread):
            return
        if not isinstance(target, dict):
            raise Refused(f"Unsupported keys of {kind_of(target)}")
        if len(items) % 2:
            raise Damaged("a key has no value")
        target.update(zip(map(checked_key, items[::2]), items[1::2], strict=True))

    def add_items(self, _: Any) -> None:
        items, target = self._above_mark(), self._stack[-1]
        if isinstance(target, Unread):
            return
        if not isinstance(target, set):
            raise Refused(f"Unsupported items of {kind_of(target)}")
        target.update(map(checked_key, items))

    def frozen_set(self, _: Any) -> None:
        self._stack.append(frozenset(map(checked_key, self._above_mark())))

    # ------------------------------------------------------------------------------------------- objects

    def global_name(self, argument: str) -> None:
        self._stack.append(self._named(argument.replace(" ", ".", 1)))

    def stack_global(self, _: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise Damaged("a name is no text")
        if len(name) + len(module) > _LONGEST_NAME:
            raise Refused(f"Unsupported global: {module[:80]}.{name[:80]}")
        self._stack.append(self._named(f"{module}.{name}"))

    def _named(self, name: str) -> Any:
        if name in self._names:
            found = self._names[name]
            return Name(name, found) if callable(found) else found
        if name.startswith(_DATA_CLASSES):
            return Unread(name)
        raise Refused(f"Unsupported global: {name[:_LONGEST_NAME]}")

    def call(self, _: Any) -> None:
        arguments, named = self._stack.pop(), self._stack.pop()
        if not isinstance(arguments, tuple):
            raise Damaged("the arguments of a name are no tuple")
        if isinstance(named, Unread):
            self._stack.append(Unread(named.name))
            return
        if not isinstance(named, Name):
            raise Refused(f"Unsupported call of {kind_of(named)}")
        try:
            value = named.construct(*arguments)
        except TypeError as error:
            raise Damaged(f"{named.name} does not take what it is given") from error
        self._stack.append(value)

    def persistent_id(self, _: Any) -> None:
        if self._persistent is None:
            raise Refused("Unsupported persistent id")
        self._stack.append(self._persistent(self._stack.pop()))

    def build(self, _: Any) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if isinstance(target, Unread):
            return
        if isinstance(target, Unfinished):
            self._stack[-1] = finished = target.finished(state)
            for place in self._places.pop(id(target), (target, []))[1]:
                self._memo[place] = finished
        elif isinstance(target, OrderedDict):
            self._set_metadata(target, state)
        elif isinstance(target, argparse.Namespace):
            target.__dict__ = text_keys(state, self._budget)  # not a copy
        else:
            raise Refused(f"Unsupported state of {kind_of(target)}")

    def _set_metadata(self, target: OrderedDict[Any, Any], state: Any) -> None:
        """The versions of modules, which torch keeps in an attribute of a dict of weights."""
        metadata = text_keys(state, self._budget).get("_metadata", {})
        if not all(isinstance(entry, dict) for entry in text_keys(metadata, self._budget).values()):
            raise Damaged("the versions of the modules are no dicts")
        target._metadata = metadata  # type: ignore[attr-defined]


# Opcodes whose argument is the value.
# fmt: off
_VALUES = frozenset((
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
))
# fmt: on
_OPERATIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _Machine.nothing,
    "FRAME": _Machine.nothing,
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": _Machine.pop_mark,
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    "NONE": lambda machine, _: machine.constant(None),
    "NEWTRUE": lambda machine, _: machine.constant(True),
    "NEWFALSE": lambda machine, _: machine.constant(False),
    "EMPTY_LIST": lambda machine, _: machine.constant([]),
    "LIST": _Machine.list_of_mark,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "EMPTY_TUPLE": lambda machine, _: machine.constant(()),
    "TUPLE": _Machine.tuple_of_mark,
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "EMPTY_DICT": lambda machine, _: machine.constant({}),
    "DICT": _Machine.dict_of_mark,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "EMPTY_SET": lambda machine, _: machine.constant(set()),
    "ADDITEMS": _Machine.add_items,
    "FROZENSET": _Machine.frozen_set,
    "GLOBAL": _Machine.global_name,
    "STACK_GLOBAL": _Machine.stack_global,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent_id,
}


def kind_of(value: Any) -> str:
    """Returns what a value is, in a few letters, for messages."""
    return repr(value) if isinstance(value, (Name, Unread)) else type(value).__name__


def _value(argument: Any) -> Any:
    if isinstance(argument, str) and not argument.isascii():
        argument.encode()  # raises on half characters, which nothing could print
    elif isinstance(argument, int) and argument.bit_length() > _MOST_BITS:
        raise Damaged("it has a number of thousands of digits")
    return argument
