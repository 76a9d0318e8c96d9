"""A PyTorch checkpoint of the old format (before 1.6) read without PyTorch, and without running what it holds.

Five pickles stand one behind the other: a magic number, the protocol, facts of the machine, the tensors by name, and the keys of
the storages, whose numbers follow in that order. The few opcodes that such a file needs are carried out here one by one; a name
in it is compared with the names allowed, never imported or called.
"""

import io
import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frostline.errors import Refused

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
DICT, TENSOR = "collections OrderedDict", "torch._utils _rebuild_tensor_v2"
TYPES = {
    "torch FloatStorage": "<f4",
    "torch DoubleStorage": "<f8",
    "torch HalfStorage": "<f2",
    "torch LongStorage": "<i8",
    "torch IntStorage": "<i4",
}
# Opcodes that put down their own argument, and those that put down something of their own.
PLAIN = frozenset(["BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINUNICODE", "BINFLOAT"])
FIXED: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
Array = NDArray[Any]


@dataclass(frozen=True)
class _Name:
    """A global of the pickle, by name alone."""

    name: str


@dataclass(frozen=True)
class _Storage:
    """A row of numbers that stands behind the pickles."""

    kind: str
    key: str
    count: int


@dataclass(frozen=True)
class _View:
    """A tensor as the file has it: a part of a storage, read with steps (strides) of its own along each axis."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_checkpoint(data: bytes, name: str) -> dict[str, Array]:
    """The tensors of a checkpoint by name, each an array of its own in the order of its axes; `name` is the file's.

    Raises Refused for another format, for anything in it that is no tensor of a known type, and for a file cut short.
    """
    file = io.BytesIO(data)
    try:
        magic, protocol, _, tensors, keys = (_read_pickle(file) for _ in range(5))
        if (magic, protocol) != (MAGIC, PROTOCOL):
            raise ValueError("it does not begin as PyTorch's old format does")
        views = {str(tensor): view for tensor, view in tensors.items() if isinstance(view, _View)}
        if len(views) != len(tensors):
            raise ValueError("it holds something else than tensors")
        storages = {view.storage.key: view.storage for view in views.values()}
        numbers = {key: _read_numbers(file, storages[key]) for key in keys}
        return {tensor: _take(view, numbers[view.storage.key]) for tensor, view in views.items()}
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
        raise Refused(f"{name} cannot be read as a PyTorch checkpoint: {error}.") from None


def _read_numbers(file: io.BytesIO, storage: _Storage) -> Array:
    count = int.from_bytes(file.read(8), "little")
    kind = np.dtype(TYPES[storage.kind])
    data = file.read(count * kind.itemsize) if count == storage.count else b""
    if count != storage.count or len(data) != count * kind.itemsize:
        raise ValueError(f"storage {storage.key} is not whole")
    return np.frombuffer(data, kind)


def _take(view: _View, numbers: Array) -> Array:
    if len(view.shape) != len(view.strides) or min((0, view.offset, *view.shape, *view.strides)) < 0:
        raise ValueError(f"a tensor of shape {view.shape} has strides {view.strides}")
    last = view.offset + sum((size - 1) * stride for size, stride in zip(view.shape, view.strides, strict=True))
    if last >= len(numbers) or math.prod(view.shape) > len(numbers) or 0 in view.shape:
        raise ValueError(f"a tensor of shape {view.shape} reaches beyond its storage")
    steps = [stride * numbers.itemsize for stride in view.strides]
    return np.lib.stride_tricks.as_strided(numbers[view.offset :], view.shape, steps).copy()


def _read_pickle(file: io.BytesIO) -> Any:
    """What one pickle describes; ValueError at the first opcode or name that no checkpoint needs."""
    stack: list[Any] = []
    marks: list[int] = []
    memory: dict[int, Any] = {}
    argument: Any
    for opcode, argument, _ in pickletools.genops(file):
        name = opcode.name
        if name in PLAIN:
            stack.append(argument)
        elif name in FIXED:
            stack.append(FIXED[name]())
        elif name in ("BINPUT", "LONG_BINPUT"):
            memory[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memory[argument])
        elif name == "MARK":
            marks.append(len(stack))
        elif name in ("TUPLE", "SETITEMS", "APPENDS"):
            start = marks.pop()
            items, stack[start:] = stack[start:], []
            if name == "TUPLE":
                stack.append(tuple(items))
            elif name == "APPENDS":
                stack[-1].extend(items)
            else:
                stack[-1].update(zip(items[::2], items[1::2], strict=True))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            stack[-1][key] = value
        elif name == "APPEND":
            value = stack.pop()
            stack[-1].append(value)
        elif name == "GLOBAL":
            if argument not in (DICT, TENSOR, *TYPES):
                raise ValueError(f"it names {argument}, which no checkpoint needs")
            stack.append(_Name(argument))
        elif name == "BINPERSID":
            stack.append(_make_storage(stack.pop()))
        elif name == "BUILD":
            # The attributes that PyTorch hangs on the dict; nothing here asks for them.
            stack.pop()
            if not isinstance(stack[-1], dict):
                raise ValueError("it sets the state of something else than a dict")
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(_make(function, arguments))
        elif name == "STOP":
            return stack.pop()
        elif name != "PROTO":
            raise ValueError(f"it has the opcode {name}, which no checkpoint needs")
    raise ValueError("a pickle in it does not end")


def _make_storage(given: Any) -> _Storage:
    word, kind, key, _, count, *_ = given
    if word != "storage" or not isinstance(kind, _Name) or kind.name not in TYPES:
        raise ValueError("it refers to something else than a storage of numbers")
    return _Storage(kind.name, str(key), int(count))


def _make(function: Any, arguments: tuple[Any, ...]) -> Any:
    if function == _Name(DICT) and arguments == ():
        return {}
    if function == _Name(TENSOR):
        storage, offset, shape, strides, *_ = arguments
        if isinstance(storage, _Storage):
            return _View(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))
    raise ValueError("it calls something else than a dict or a tensor")
