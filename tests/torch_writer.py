"""Writers of torch's two file formats without torch, honest or hostile, and how both are judged."""

from __future__ import annotations

import pickle
import struct
import tracemalloc
import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from dlzoo.errors import ModelError
from dlzoo.zoo import checkpoints


@dataclass(frozen=True)
class Global:
    name: str


@dataclass(frozen=True)
class Call:
    function: Any
    args: Any


@dataclass(frozen=True)
class Persistent:
    id: Any


@dataclass(frozen=True)
class Raw:
    code: bytes


def code(value) -> bytes:
    """Return the pickle instructions (protocol 2) that build `value`."""
    match value:
        case Raw():
            return value.code
        case Global():
            module, _, name = value.name.rpartition(".")
            return f"c{module}\n{name}\n".encode()
        case Call():
            return code(value.function) + code(value.args) + b"R"
        case Persistent():
            return code(value.id) + b"Q"
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case tuple():
            return b"(" + b"".join(map(code, value)) + b"t"
        case list():
            return b"](" + b"".join(map(code, value)) + b"e"
        case dict():
            return b"}(" + b"".join(code(k) + code(v) for k, v in value.items()) + b"u"
    return pickle.dumps(value, 2)[2:-1]  # None, a number, a truth value


def tensor(key, shape, strides=None, *, kind="Float", size=None, offset=0, version="_v2"):
    """Return a call that rebuilds a tensor; contiguous and alone in its storage by default."""
    if strides is None:
        strides = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
    size = int(np.prod(shape)) if size is None else size
    storage = Persistent(("storage", Global(f"torch.{kind}Storage"), key, "cpu", size))
    rest = (False, Call(Global("collections.OrderedDict"), ())) if version else ()
    name = Global(f"torch._utils._rebuild_tensor{version}")
    return Call(name, (storage, offset, shape, strides, *rest))


def program(value) -> bytes:
    return b"\x80\x02" + code(value) + b"."


def save(path, content, storages, form="zip", *, little=True, compression=zipfile.ZIP_STORED):
    """Write `content` and its storages (`key: (values, raw bytes)`) as torch does."""
    if form == "zip":
        with zipfile.ZipFile(path, "w", compression) as archive:
            archive.writestr("net/data.pkl", program(content))
            archive.writestr("net/byteorder", "little" if little else "big")
            for key, (_, raw) in storages.items():
                archive.writestr(f"net/data/{key}", raw)
        return path
    head = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": little}]
    parts = [program(value) for value in [*head, content, list(storages)]]
    parts += [struct.pack("<q", count) + raw for count, raw in storages.values()]
    path.write_bytes(b"".join(parts))
    return path


def refused(path, id="unsafe-file", match=None, read=checkpoints.read_torch):
    """Check that `path` is refused, and within 8 MB of memory."""
    tracemalloc.start()
    try:
        with pytest.raises(ModelError, match=match) as caught:
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert caught.value.id == f"model.{id}"
    assert caught.value.exit_code == 4
    assert str(path) in str(caught.value)
