"""torch's state dicts without torch: a `.pth` is read, and nothing in it is run.

A `.pth` is a pickle, which can call any function. Here it goes through a small machine that
knows the thirty-odd instructions a state dict needs, can call nothing at all, and treats every
name in the file as inert text. Memory stays within a small multiple of the file's size.
"""

from __future__ import annotations

import io
import math
import mmap
import pickletools
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

MAX_OPS = 400_000  # of one pickle; a ResNet-152 has 40,000. Bounds memory and time.
MAX_DIMS = 8

# The numpy type of torch's storages; numpy has no bfloat16.
STORAGES = {
    "torch.DoubleStorage": "<f8",
    "torch.FloatStorage": "<f4",
    "torch.HalfStorage": "<f2",
    "torch.BFloat16Storage": "bfloat16",
    "torch.LongStorage": "<i8",
    "torch.IntStorage": "<i4",
    "torch.ShortStorage": "<i2",
    "torch.CharStorage": "i1",
    "torch.ByteStorage": "u1",
    "torch.BoolStorage": "?",
}
# What a state dict may name. Parameter and _rebuild_tensor are in files of torch < 0.4, which
# torchvision still serves.
REBUILDERS = {"torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor"}
WRAPPERS = {"torch._utils._rebuild_parameter", "torch.nn.parameter.Parameter"}
ORDERED_DICT = "collections.OrderedDict"
NAMES = {ORDERED_DICT, *REBUILDERS, *WRAPPERS, *STORAGES}

LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


class Refused(Exception):
    """The file is whole but not accepted; `id` is the last part of the error's id."""

    def __init__(self, message: str, id: str = "unsafe-file"):
        super().__init__(message)
        self.id = id


def read_zip(path: Path) -> dict[str, np.ndarray]:
    with open_zip(path) as archive:
        pickles = [name for name in archive.namelist() if re.fullmatch(r"([^/]+/)?data\.pkl", name)]
        if len(pickles) != 1:
            raise Refused("it is a zip file without one data.pkl, not a state dict", "format")
        prefix = pickles[0].removesuffix("data.pkl")
        if f"{prefix}byteorder" in archive.namelist():
            _check_order(archive.read(f"{prefix}byteorder") == b"little")

        def load(storage: _Storage) -> np.ndarray:
            flat = decode(archive.read(f"{prefix}data/{storage.key}"), storage.dtype)
            if flat.size != storage.size:
                raise ValueError(f"storage {storage.key} has {flat.size} of {storage.size} values")
            return flat

        return _state_dict(_unpickle(io.BytesIO(archive.read(pickles[0]))), load)


@contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip file that cannot grow when it is read: its members are stored as they are."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise Refused("its members are compressed, which torch and Keras never do")
        if sum(member.file_size for member in members) > path.stat().st_size:
            raise Refused("its members are larger than the file")
        for name in archive.namelist():
            if name.startswith("/") or "\\" in name or ".." in name.split("/"):
                raise Refused(f"a member's name leaves the archive: {name!r}")
        yield archive


def read_legacy(path: Path) -> dict[str, np.ndarray]:
    """Five pickles (magic, protocol, system, state dict, storage keys), then the storages."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:1] != b"\x80" or _unpickle(data) != LEGACY_MAGIC:
            raise ValueError("it does not begin as a torch file does")
        if _unpickle(data) != LEGACY_PROTOCOL:
            raise Refused(f"its protocol is not {LEGACY_PROTOCOL}", "format")
        _check_order(_unpickle(data)["little_endian"] is True)
        found: dict[str, _Storage] = {}
        content = _unpickle(data, found)
        loaded = {}
        for key in _unpickle(data):
            storage = found[_text(key)]
            if int.from_bytes(data.read(8), "little") != storage.size:
                raise ValueError(f"storage {key} has another length than its tensors say")
            loaded[key] = decode(data.read(storage.size * storage.itemsize), storage.dtype)
            if loaded[key].size != storage.size:
                raise EOFError("the file ends within a tensor")
        return _state_dict(content, lambda storage: loaded[storage.key])


def _check_order(little: bool) -> None:
    if not little:
        raise Refused("it was written by a big-endian machine; save it again on another", "format")


def decode(raw: bytes, dtype: str) -> np.ndarray:
    if dtype == "bfloat16":  # the upper half of a float32
        return (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
    return np.frombuffer(raw, dtype)


@dataclass(frozen=True)
class _Name:
    """A global the file mentions: text, never looked up."""

    name: str


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: str
    size: int

    @property
    def itemsize(self) -> int:
        return 2 if self.dtype == "bfloat16" else np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def view(self, flat: np.ndarray) -> np.ndarray:
        """Return the tensor as a view of its storage, after checking that it lies within."""
        numbers = (self.offset, *self.shape, *self.strides)
        if (
            len(self.shape) != len(self.strides)
            or len(self.shape) > MAX_DIMS
            or any(type(number) is not int or number < 0 for number in numbers)
        ):
            raise Refused("a tensor's shape, strides and offset are not plain sizes")
        count = math.prod(self.shape)
        last = self.offset + sum(
            (n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True)
        )
        if count > flat.size or (count and last >= flat.size):
            raise Refused(f"a tensor of shape {self.shape} in a storage of {flat.size} values")
        if not count:
            return np.empty(self.shape, flat.dtype)
        strides = [stride * flat.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(
            flat[self.offset :], self.shape, strides, writeable=False
        )


def _state_dict(content: Any, load: Callable[[_Storage], np.ndarray]) -> dict[str, np.ndarray]:
    if not isinstance(content, dict):
        raise Refused("there is no state dict in it", "format")
    content = _unwrapped(content)
    tensors = {k: v for k, v in content.items() if isinstance(v, _Tensor)}
    if not tensors:
        raise Refused("there are no tensors in it", "format")
    storages: dict[str, tuple[_Storage, np.ndarray]] = {}
    arrays = {}
    for name, tensor in tensors.items():
        storage = tensor.storage
        if storage.key not in storages:
            storages[storage.key] = storage, load(storage)
        declared, flat = storages[storage.key]
        if declared != storage:
            raise Refused(f"storage {storage.key} is declared in two ways")
        arrays[str(name)] = tensor.view(flat)
    return arrays


# Where training programs keep a network, the averaged one first, as timm takes it.
_KEYS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model")


def _unwrapped(content: dict[Any, Any]) -> dict[Any, Any]:
    """Return the table of tensors inside `content`: under a usual name, or the only one."""

    def held(table: Any) -> bool:
        return isinstance(table, dict) and any(isinstance(v, _Tensor) for v in table.values())

    inside = [key for key, value in content.items() if held(value)]
    for key in _KEYS:
        if key in inside:
            return content[key]
    return content[inside[0]] if len(inside) == 1 and not held(content) else content


_LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"),
    *("BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES"),
}
_CONSTANTS: dict[str, Callable[[], Any]] = {
    **{"NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False},
    **{"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple},
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _unpickle(stream: Any, storages: dict[str, _Storage] | None = None) -> Any:
    """Return the next pickle of `stream` as plain values, _Name, _Tensor and _Storage.

    Args:
        stream: has `read`, `readline` and `tell`; left after the pickle.
        storages: filled with what the pickle declares, by key.
    """
    stack: list[Any] = []
    below: list[list[Any]] = []  # the stacks under each open mark
    memo: dict[int, Any] = {}
    budget = MAX_OPS
    arg: Any
    for opcode, arg, _ in pickletools.genops(stream):
        op = opcode.name
        if (budget := budget - 1) < 0:
            raise Refused(f"it has more than {MAX_OPS:,} instructions")
        if op in _LITERALS:
            stack.append(arg)
        elif op in _CONSTANTS:
            stack.append(_CONSTANTS[op]())
        elif op in ("BINPUT", "LONG_BINPUT"):
            memo[arg] = stack[-1]
        elif op == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif op in ("BINGET", "LONG_BINGET"):
            stack.append(memo[arg])
        elif op == "MARK":
            below.append(stack)
            stack = []
        elif op in ("TUPLE", "SETITEMS", "APPENDS"):
            items, stack = stack, below.pop()
            if op == "TUPLE":
                stack.append(tuple(items))
            elif op == "SETITEMS":
                _put(stack[-1], zip(items[::2], items[1::2], strict=True))
            else:
                _extend(stack[-1], items)
        elif op in _TUPLES:
            items = [stack.pop() for _ in range(_TUPLES[op])]
            stack.append(tuple(reversed(items)))
        elif op == "SETITEM":
            value, key = stack.pop(), stack.pop()
            _put(stack[-1], [(key, value)])
        elif op == "APPEND":
            item = stack.pop()
            _extend(stack[-1], [item])
        elif op == "GLOBAL":
            stack.append(_name(arg.replace(" ", ".", 1)))
        elif op == "STACK_GLOBAL":
            name, module = stack.pop(), stack.pop()
            stack.append(_name(f"{_text(module)}.{_text(name)}"))
        elif op == "BINPERSID":
            storage = _storage(stack.pop())
            if storages is not None and storages.setdefault(storage.key, storage) != storage:
                raise Refused(f"storage {storage.key} is declared in two ways")
            stack.append(storage)
        elif op == "REDUCE":
            args, function = stack.pop(), stack.pop()
            if function == _Name(ORDERED_DICT) and args:
                budget -= len(args[0])  # a copy, so that copies of copies are bounded too
            stack.append(_build(function, args))
        elif op == "BUILD":  # attributes, such as a state dict's _metadata: not wanted
            stack.pop()
            if not isinstance(stack[-1], (dict, _Tensor)):
                raise Refused("it sets attributes of something that is no tensor")
        elif op not in ("PROTO", "FRAME", "STOP"):
            raise Refused(f"it uses the pickle instruction {op}")
    if len(stack) != 1 or below:
        raise ValueError("an unfinished pickle")
    return stack[0]


def _name(name: str) -> _Name:
    if name not in NAMES:
        raise Refused(f"it wants to call {name[:80]!r}, and weights need no code")
    return _Name(name)


def _text(value: Any) -> str:
    if type(value) is not str:  # hashing or printing nested tuples can be made endless
        raise Refused("it holds a name that is no text")
    return value


def _put(target: Any, items: Any) -> None:
    for key, value in items:
        if type(target) is not dict or type(key) not in (str, int):
            raise Refused("it holds a table that is no plain dict")
        target[key] = value


def _extend(target: Any, items: list[Any]) -> None:
    if type(target) is not list:
        raise Refused("it appends to something that is no list")
    target.extend(items)


def _storage(entry: Any) -> _Storage:
    kind, dtype, key, _, size = entry[:5]
    if kind != "storage" or dtype.name not in STORAGES or type(size) is not int or size < 0:
        raise Refused("it refers to something that is no tensor storage")
    if not re.fullmatch(r"\w{1,40}", _text(key)):
        raise Refused(f"a storage has the name {key[:80]!r}")
    if len(entry) > 5 and entry[5] is not None:
        raise Refused("its storages are views, as of torch < 0.2; save it again", "format")
    return _Storage(key, STORAGES[dtype.name], size)


def _build(function: Any, args: Any) -> Any:
    """Do what a REDUCE asks for, where it is one of the few known constructions."""
    name = function.name if isinstance(function, _Name) else None
    if type(args) is not tuple:
        raise Refused("it calls something without a tuple of arguments")
    if name == ORDERED_DICT and len(args) < 2:
        made: dict[Any, Any] = {}
        _put(made, args[0] if args else ())
        return made
    if name in REBUILDERS and [type(a) for a in args[:4]] == [_Storage, int, tuple, tuple]:
        return _Tensor(*args[:4])
    if name in WRAPPERS and type(args[0]) is _Tensor:
        return args[0]
    raise Refused(f"it wants to call {name or type(function).__name__!r}")
