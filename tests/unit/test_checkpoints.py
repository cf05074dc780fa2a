"""The reader of torch's files: what it gives, and that a hostile or damaged file gets nowhere.

torch is not needed: tests/torch_writer.py writes both of its formats, instruction by instruction.
"""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from dlzoo.errors import ModelError
from dlzoo.zoo import checkpoints
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_writer import Call, Global, Persistent, Raw, code, program, refused, save, tensor

GOLDEN = Path(__file__).parents[1] / "golden"
BASE = np.arange(24, dtype="<f4").reshape(4, 6)
BASE_STORAGE = {"0": (24, BASE.tobytes())}
both_forms = pytest.mark.parametrize("form", ["zip", "legacy"])


# ---------------------------------------------------------------- torch: good files


@pytest.mark.parametrize("name", ["torch_zip.pth", "torch_legacy.pth"])
def test_files_made_by_torch(name):
    wanted = {
        "base": BASE,
        "view": BASE[1:3, ::2],
        "transposed": BASE.T,
        "half": np.array([0.5, -2], "f2"),
        "bfloat16": np.array([1.5, -3], "f4"),
        "double": np.array([1e-300]),
        "parameter": np.ones((2, 1), "f4"),
        "empty": np.zeros((0, 3), "f4"),
        "flags": np.array([True, False]),
        "count": np.array(7),
    }
    tensors = checkpoints.read_torch(GOLDEN / name)
    assert list(tensors) == list(wanted)
    for key, array in wanted.items():
        np.testing.assert_array_equal(tensors[key], array, err_msg=key, strict=True)


@both_forms
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "model_state_dict"])
def test_wrapped_state_dicts_and_shared_storages(tmp_path, form, wrapper):
    content = {
        "module.a": tensor("0", (4, 6)),
        "module.b": tensor("0", (2, 3), (6, 2), size=24, offset=6),
        "module.c": Call(Global("torch._utils._rebuild_parameter"), (tensor("0", (24,)), True, ())),
        "note": "any text",
    }
    content = {wrapper: content, "epoch": 90, "best": 71.3} if wrapper else content
    tensors = checkpoints.read_torch(save(tmp_path / "x.pth", content, BASE_STORAGE, form))
    assert list(tensors) == ["a", "b", "c"]
    np.testing.assert_array_equal(tensors["b"], BASE[1:3, ::2])
    assert tensors["b"].base is not None and np.shares_memory(tensors["a"], tensors["c"])


@pytest.mark.parametrize("key", ["model_ema", "state_dict_ema", "net", None])
def test_a_training_programs_file_gives_its_network(tmp_path, key):
    """The averaged one, as timm takes it, or the only one there is."""
    own, other = tensor("0", (4, 6)), tensor("1", (2,))
    content = {"n_averaged": other, "module._orig_mod.a": own, "module._orig_mod.b": own}
    if key:
        rest = {} if key == "net" else {"model": {"a": other}}
        content = rest | {key: content, "optimizer": {"state": {0: {"sum": other}}}, "epoch": 3}
    storages = BASE_STORAGE | {"1": (2, bytes(8))}
    tensors = checkpoints.read_torch(save(tmp_path / "x.pth", content, storages))
    assert list(tensors) == ["a", "b"] and np.array_equal(tensors["a"], BASE)


def test_two_networks_of_unknown_names_are_refused(tmp_path):
    content = {"one": {"a": tensor("0", (4, 6))}, "two": {"a": tensor("0", (4, 6))}}
    refused(save(tmp_path / "x.pth", content, BASE_STORAGE), "format", match="no tensors")


def test_names_in_safetensors_lose_what_wrappers_put_before_them(tmp_path):
    from safetensors.numpy import save_file

    save_file({"model.module1.a": BASE, "model.m": BASE}, tmp_path / "x.safetensors")
    assert set(checkpoints.read_torch(tmp_path / "x.safetensors")) == {"module1.a", "m"}


def test_a_state_dict_of_python_2_and_torch_before_0_4(tmp_path):
    old = tensor("0", (4, 6), version="")
    parameter = Call(Global("torch.nn.parameter.Parameter"), (old,))
    built = Raw(code(parameter) + code((True, False, None)) + b"b")  # BUILD sets its attributes
    name = Raw(b"U\x01w")  # a byte string
    content = Call(Global("collections.OrderedDict"), ([[name, built]],))
    path = save(tmp_path / "x.pth", content, BASE_STORAGE, "legacy")
    np.testing.assert_array_equal(checkpoints.read_torch(path)["w"], BASE)


def test_protocol_4_is_understood(tmp_path):
    names = ["torch._utils", "_rebuild_tensor_v2", "torch", "FloatStorage"]
    call = tensor("0", (24,))
    short = [b"\x8c" + bytes([len(name)]) + name.encode() + b"\x94" for name in names]
    body = code(call.args).replace(
        code(Global("torch.FloatStorage")), short[2] + short[3] + b"\x93"
    )
    content = {"w": Raw(short[0] + short[1] + b"\x93" + body + b"R")}
    assert checkpoints.read_torch(save(tmp_path / "x.pth", content, BASE_STORAGE))["w"].shape == (
        24,
    )


def test_safetensors(tmp_path):
    from safetensors.numpy import save_file

    arrays = {"a": BASE, "n": np.array(7), "h": np.array([0.5], "f2"), "e": np.zeros((0, 2))}
    save_file(arrays, tmp_path / "x.safetensors")
    tensors = checkpoints.read_torch(tmp_path / "x.safetensors")
    assert set(tensors) == set(arrays)
    for key, array in arrays.items():
        np.testing.assert_array_equal(tensors[key], array, strict=True)


def test_safetensors_of_bfloat16(tmp_path):
    header = b'{"w":{"dtype":"BF16","shape":[1,2],"data_offsets":[0,4]}}'
    raw = (np.array([1.5, -3], "<f4").view("<u4") >> 16).astype("<u2").tobytes()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + raw)
    wanted = np.array([[1.5, -3]], "f4")
    np.testing.assert_array_equal(checkpoints.read_torch(path)["w"], wanted, strict=True)


@pytest.mark.parametrize("cut", [0, 4, 8, 30, -1])
def test_safetensors_cut_short_or_too_large(tmp_path, cut):
    header = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    path = tmp_path / "x.safetensors"
    path.write_bytes((struct.pack("<Q", len(header)) + header + bytes(8))[:cut])
    refused(path, "corrupt-file")
    path.write_bytes(struct.pack("<Q", 1 << 62) + header)
    refused(path, "corrupt-file")


# ---------------------------------------------------------------- torch: hostile files


class Payload:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


class Attribute:
    """Asks for an object to be made and its attributes set."""

    def __init__(self, canary):
        self.canary = canary


def hostile(canary):
    """Yield programs that would create `canary`, or reach for something to do it with."""
    command = f"touch {canary}"
    python = f"open({str(canary)!r}, 'w')"
    ordered, rebuild = Global("collections.OrderedDict"), Global("torch._utils._rebuild_tensor_v2")
    for protocol in range(6):
        yield f"os.system, protocol {protocol}", pickle.dumps(Payload(os.system, command), protocol)
        yield f"eval, protocol {protocol}", pickle.dumps(Payload(eval, python), protocol)
        yield f"an instance, protocol {protocol}", pickle.dumps(Attribute(canary), protocol)
    yield "a mention", program({"w": tensor("0", (24,)), "x": Global("os.system")})
    yield "getattr", program(Call(Global("builtins.getattr"), (ordered, "fromkeys")))
    yield "dotted", b"\x80\x04" + code("collections") + code("OrderedDict.fromkeys") + b"\x93)R."
    yield "module path", program(Call(Global("torch._utils.os.system"), (command,)))
    yield "a name's own call", program(Call(ordered, (Call(rebuild, (command,)), 1, 2)))
    yield "call of a call", program(Call(Call(ordered, ()), (command,)))
    yield "call of text", program(Call("os.system", (command,)))
    yield "no tensor", program(Call(rebuild, (command, 0, (1,), (1,))))
    yield "attributes of a name", program(Raw(code(rebuild) + code({"__code__": command}) + b"b"))
    yield "attributes of text", program(Raw(code("x") + code({"a": 1}) + b"b"))
    yield "NEWOBJ", program(Raw(code(ordered) + b")\x81"))
    yield "INST", b"(X" + struct.pack("<I", len(command)) + command.encode() + b"ios\nsystem\n."
    yield "OBJ", b"\x80\x02(" + code(ordered) + b"o."
    yield "EXT1", b"\x80\x02\x82\x01."
    yield "a list as a dict", program(Raw(b"]" + code("a") + code(1) + b"s"))
    yield "a dict as a list", program(Raw(b"}" + code("a") + b"a"))
    yield "a storage by path", program({"w": tensor("../../x", (24,))})
    yield "an unknown storage", program({"w": tensor("0", (24,), kind="Object")})
    yield "another persistent id", program({"w": Persistent(("module", command, "0", "cpu", 1))})


def test_a_hostile_pickle_runs_nothing(tmp_path):
    canary, path = tmp_path / "canary", tmp_path / "x.pth"
    head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    for name, content in hostile(canary):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("net/data.pkl", content)
            archive.writestr("net/data/0", bytes(96))
        for raw in (path.read_bytes(), content, b"".join(map(program, head)) + content):
            path.write_bytes(raw)
            with pytest.raises(ModelError) as caught:
                checkpoints.read_torch(path)
            unsafe = caught.value.id == "model.unsafe-file"
            assert unsafe or (caught.value.id == "model.corrupt-file" and raw is content), name
            assert not canary.exists(), name


def test_the_message_says_what_the_file_wants(tmp_path):
    path = save(tmp_path / "x.pth", Call(Global("os.system"), ("x",)), {})
    refused(path, match=r"(?s)it wants to call 'os\.system'.*state_dict\(\)")


@both_forms
@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [
        ((1 << 20, 1 << 20), (0, 0), 0),
        ((1 << 40,), (1,), 0),
        ((1 << 62, 4), (1 << 62, 1), 0),
        ((25,), (0,), 0),
        ((24,), (2,), 0),
        ((24,), (1,), 1),
        ((24,), (-1,), 23),
        ((2,), (1,), -1),
        ((-2, -3), (1, 1), 0),
        ((4, 6), (6,), 0),
        ((1,) * 40, (1,) * 40, 0),
        ((2.0,), (1,), 0),
        ((True,), (1,), 0),
        (((1, 1),), (1,), 0),
        ([24], [1], 0),
        ((24,), (1,), "0"),
        ((1,), (1,), 1 << 70),
    ],
)
def test_a_tensor_that_its_storage_does_not_hold(tmp_path, form, shape, strides, offset):
    content = {"w": tensor("0", shape, strides, size=24, offset=offset)}
    refused(save(tmp_path / "x.pth", content, BASE_STORAGE, form))


@both_forms
@pytest.mark.parametrize("size", [23, 25, 1 << 40, 1 << 80])
def test_a_storage_of_another_size_than_declared(tmp_path, form, size):
    content = {"w": tensor("0", (1,), size=size)}
    refused(save(tmp_path / "x.pth", content, BASE_STORAGE, form), "corrupt-file")
    if size < 1 << 60:
        path = save(tmp_path / "y.pth", content, {"0": (size, BASE.tobytes())}, "legacy")
        refused(path, "corrupt-file") if size > 24 else None


@both_forms
def test_one_storage_declared_in_two_ways(tmp_path, form):
    content = {"a": tensor("0", (24,)), "b": tensor("0", (12,), kind="Double")}
    refused(save(tmp_path / "x.pth", content, BASE_STORAGE, form), match="two ways")


@both_forms
def test_a_missing_storage(tmp_path, form):
    content = {"a": tensor("0", (24,)), "b": tensor("1", (24,))}
    refused(save(tmp_path / "x.pth", content, BASE_STORAGE, form), "corrupt-file")


def nested(depth=200):
    """Return a tuple of 2 ** depth leaves in a few bytes: endless to hash, print or compare."""
    return Raw(b"N" + b"".join(b"q%cq%ch%c\x86" % (i, i, i) for i in range(depth)))


@both_forms
def test_pickles_that_grow(tmp_path, form):
    many = Raw(code([["k", 1]] * 5000) + b"q\x00")
    copies = [Call(Global("collections.OrderedDict"), (Raw(b"h\x00"),)) for _ in range(500)]
    for content in (
        {"w": tensor(nested(), (24,))},
        {"w": tensor("0", (nested(), 24), (1, 1), size=24)},
        {"w": tensor("0", (24,), offset=nested())},
        Raw(b"}" + nested().code + b"Ns"),
        Raw(nested().code + code("x") + b"\x93"),
        [many, *copies],
        Raw(b"(" + b"N" * 1_000_001 + b"t"),
    ):
        with pytest.raises(ModelError) as caught:
            checkpoints.read_torch(save(tmp_path / "x.pth", content, BASE_STORAGE, form))
        assert caught.value.id == "model.unsafe-file"
    memo = Raw(b"Nr\xff\xff\xff\xff0")  # CPython's own unpickler takes 64 GB for this
    refused(save(tmp_path / "x.pth", memo, BASE_STORAGE, form))


def test_zip_files_that_grow_or_leave(tmp_path):
    path, good = tmp_path / "x.pth", {"w": tensor("0", (1 << 20,))}
    zeros = {"0": (1 << 20, bytes(4 << 20))}
    refused(save(path, good, zeros, compression=zipfile.ZIP_DEFLATED), match="compressed")
    for name in ("../data/0", "/etc/x", "net/../../x", "..\\x"):
        save(path, {"w": tensor("0", (24,))}, BASE_STORAGE)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(name, b"x")
        refused(path, match="leaves the archive")
    save(path, {"w": tensor("0", (24,))}, BASE_STORAGE)
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"PK\x01\x02")  # the last member's entry in the directory
    content[entry + 20 : entry + 28] = struct.pack("<II", 1 << 30, 1 << 30)
    path.write_bytes(content)
    refused(path, match="larger than the file")


@both_forms
def test_a_big_endian_file_is_refused_clearly(tmp_path, form):
    content = {"w": tensor("0", (24,))}
    path = save(tmp_path / "x.pth", content, BASE_STORAGE, form, little=False)
    refused(path, "format", "big-endian")


def test_files_of_another_kind(tmp_path):
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("holiday.txt", "")
    refused(path, "format", "state dict")
    refused(save(path, {"epoch": 3}, {}), "format", "no tensors")
    refused(save(path, [1, 2], {}), "format", "no state dict")
    for content in (b"", b"<html>not found</html>", pickle.dumps({}), bytes(1000)):
        path.write_bytes(content)
        refused(path, "corrupt-file")
    refused(tmp_path / "nothing.pth", "file-missing")
    refused(tmp_path, "file-missing")
    refused(tmp_path / "nothing.h5", "file-missing", read=checkpoints.read_keras)


SMALL = {"w": tensor("0", (2, 3), size=8), "n": tensor("1", (), kind="Long", size=1)}
SMALL_STORAGES = {"0": (8, bytes(32)), "1": (1, bytes(8))}


@pytest.mark.parametrize("form", ["zip", "legacy", "hostile"])
def test_a_file_cut_or_changed_anywhere_is_read_or_refused(tmp_path, form):
    path, canary = tmp_path / "x.pth", tmp_path / "canary"
    content = SMALL
    if form == "hostile":
        content = Call(Global("posix.system"), (f"touch {canary}",))
    raw = save(path, content, SMALL_STORAGES, "zip" if form == "zip" else "legacy").read_bytes()

    def check(changed):
        path.write_bytes(changed)
        try:
            tensors = checkpoints.read_torch(path)
            assert form != "hostile"
            assert sum(array.nbytes for array in tensors.values()) <= len(raw)
        except ModelError:
            pass
        assert not canary.exists()

    for end in range(len(raw)):
        with pytest.raises(ModelError):
            path.write_bytes(raw[:end])
            checkpoints.read_torch(path)

    @settings(max_examples=100)
    @given(st.integers(0, len(raw)), st.integers(0, 8), st.binary(max_size=8))
    def change(start, length, new):
        check(raw[:start] + new + raw[start + length :])

    change()
