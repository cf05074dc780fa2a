"""Faults 19 to 24: weights that cannot be had, are damaged, hostile or of another model."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from dlzoo.errors import ModelError
from dlzoo.zoo import checkpoints, registry, weights
from dlzoo.zoo.spec import Preprocess, Weights
from photos import folder

BODY = b"weights " * (1 << 19)
FETCH = """
import sys
from dlzoo.zoo import weights
from dlzoo.zoo.spec import Preprocess, Weights
row = Weights("tag", sys.argv[1], Preprocess(), "keras", "MIT", "test", sha256=sys.argv[2])
print(weights.locate(row, "net"))
"""


def row(uri, content=BODY):
    sha256 = hashlib.sha256(content).hexdigest()
    return Weights("tag", uri, Preprocess(), "keras", "MIT", "a test", sha256=sha256)


def fetch_elsewhere(wanted):
    """Start another process that locates `wanted`."""
    command = [sys.executable, "-c", FETCH, wanted.uri, wanted.sha256]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def kept(wanted):
    """Return the endings of what lies in the cache for `wanted`, locks apart."""
    path = weights.place(wanted)
    found = {p.name.removeprefix(path.name) for p in path.parent.glob("*")}
    return sorted(found - {".lock"})


@pytest.fixture(autouse=True)
def no_wait(monkeypatch):
    monkeypatch.setattr(weights, "BACKOFF", 0)


# ---------------------------------------------------------------- 19 no network


def test_fault_19_network_down_names_url_place_and_what_works(file_server, raises):
    wanted = row(file_server.url)
    file_server.shutdown()
    file_server.server_close()
    with raises("model.offline", 4) as caught:
        weights.locate(wanted, "vgg16")
    text = str(caught.value)
    for part in ("vgg16.tag", wanted.uri, str(weights.place(wanted)), "refused"):
        assert part in text
    for way_out in ("efficientnet_lite0", "--weights none", "--weights PATH"):
        assert way_out in text


def test_fault_19_as_a_user_of_vgg16_without_internet_meets_it(tmp_path, refused):
    """Before the photos are looked for, and no run is begun."""
    told = refused(
        *("model.offline", 4, "finetune", "--backbone", "vgg16", "--offline"),
        *("--data", "no/such", "--out", tmp_path / "runs"),
    )
    assert "https://storage.googleapis.com/tensorflow/keras-applications/vgg16/" in told
    assert str(tmp_path / "home") in told and "--backbone efficientnet_lite0" in told
    refused("model.offline", 4, "fetch", "vgg16", "--offline")


def test_fault_19_three_tries(file_server):
    file_server.failing = 99
    with pytest.raises(ModelError, match="500") as caught:
        weights.locate(row(file_server.url), "net")
    assert caught.value.id == "model.offline"
    assert len(file_server.requests) == 3


@pytest.mark.parametrize("how", ["environment", "argument"])
def test_fault_19_offline_opens_no_socket(file_server, monkeypatch, how):
    def refuse(*args, **kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr("socket.socket", refuse)
    monkeypatch.setattr("socket.create_connection", refuse)
    if how == "environment":
        monkeypatch.setenv("DLZOO_OFFLINE", "1")
    with pytest.raises(ModelError, match="offline mode") as caught:
        weights.locate(row(file_server.url), "net", offline=None if how == "environment" else True)
    assert caught.value.id == "model.offline"
    assert not file_server.requests


# ---------------------------------------------------------------- 20 killed, 22 two at once


def test_fault_20_killed_at_half_of_a_download(file_server):
    wanted = row(file_server.url)
    file_server.cut = 3 << 20
    file_server.held.clear()
    process = fetch_elsewhere(wanted)
    assert file_server.sent.wait(30)
    part = weights.place(wanted).with_name(weights.place(wanted).name + ".part")
    while not (part.exists() and part.stat().st_size):
        assert process.poll() is None, process.stderr.read()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert kept(wanted) == [".part"]
    file_server.cut = None
    file_server.held.set()
    assert weights.locate(wanted, "net").read_bytes() == BODY
    assert file_server.requests[1].startswith("bytes=")


def test_fault_22_two_processes_download_once(file_server):
    wanted = row(file_server.url)
    file_server.cut = len(BODY)  # all is sent, but the connection is held open
    file_server.held.clear()
    both = [fetch_elsewhere(wanted) for _ in range(2)]
    assert file_server.sent.wait(30)
    file_server.held.set()
    for process in both:
        out, err = process.communicate(timeout=30)
        assert process.returncode == 0, err
        assert out.strip() == str(weights.place(wanted))
    assert file_server.requests == [None]


# ---------------------------------------------------------------- 21 damaged


def test_fault_21_a_wrong_file_is_put_aside_and_fetched_once_more(
    file_server, refused, monkeypatch
):
    wanted = row(file_server.url, b"another file")
    variant = replace(registry.variants()["lenet5"], weights=(wanted,))
    monkeypatch.setitem(registry._VARIANTS, "lenet5", variant)
    told = refused("model.hash", 4, "fetch", "lenet5")
    assert f"expected {wanted.sha256} got {hashlib.sha256(BODY).hexdigest()}" in told
    assert len(file_server.requests) == 2
    assert kept(wanted) == [".bad"]


def test_fault_21_a_flipped_bit_in_the_cache_is_found_and_healed(file_server):
    wanted = row(file_server.url)
    path = weights.locate(wanted, "net")
    content = bytearray(BODY)
    content[12345] ^= 1
    path.write_bytes(content)
    assert weights.locate(wanted, "net").read_bytes() == BODY
    assert len(file_server.requests) == 2
    assert path.with_name(path.name + ".bad").read_bytes() == content


def test_fault_21_a_flipped_bit_offline_is_never_loaded(file_server, raises):
    wanted = row(file_server.url)
    path = weights.locate(wanted, "net")
    path.write_bytes(BODY[:-1] + b"!")
    with raises("model.hash", 4):
        weights.locate(wanted, "net", offline=True)
    assert not path.exists()


# ---------------------------------------------------------------- 23 hostile


class Payload:
    def __init__(self, canary):
        self.canary = str(canary)

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def hostile_zip(path, canary):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps(Payload(canary), 2))


def hostile_legacy(path, canary):
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
    path.write_bytes(magic + pickle.dumps(1001, 2) + pickle.dumps(Payload(canary), 2))


def escaping_names(path, canary):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps({}, 2))
        archive.writestr(f"../{canary.name}", b"")


def external_link(path, canary):
    with h5py.File(canary.with_suffix(".h5"), "w") as other:
        other["w/kernel"] = np.zeros(3, "f4")
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = ["w"]
        file["w"] = h5py.ExternalLink(canary.with_suffix(".h5"), "/w")


def shape_bomb(path, canary):
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = ["w"]
        file.create_dataset("w/kernel", (1 << 20, 1 << 20), "f4", chunks=(1024, 1024))
        file["w"].attrs["weight_names"] = ["kernel"]


def vast_tensor(path, canary):
    header = json.dumps({"w": {"dtype": "F32", "shape": [1 << 20] * 3, "data_offsets": [0, 4]}})
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(4))


def lambda_archive(path, canary):
    """An archive of Keras whose model would run code, with weights as a path elsewhere."""
    code = {"class_name": "Lambda", "config": {"function": f"open({str(canary)!r}, 'w')"}}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps(code))
        archive.writestr("../model.weights.h5", b"")


@pytest.mark.parametrize(
    ("file", "make", "id"),
    [
        ("zip.pth", hostile_zip, "unsafe-file"),
        ("legacy.pth", hostile_legacy, "unsafe-file"),
        ("legacy.pt", hostile_legacy, "unsafe-file"),
        ("escaping.pth", escaping_names, "unsafe-file"),
        ("escaping.keras", escaping_names, "unsafe-file"),
        ("lambda.keras", lambda_archive, "unsafe-file"),
        ("link.h5", external_link, "unsafe-file"),
        ("bomb.h5", shape_bomb, "unsafe-file"),
        ("bomb.weights.h5", shape_bomb, "unsafe-file"),
        ("pickle.safetensors", hostile_legacy, "corrupt-file"),
        ("vast.safetensors", vast_tensor, "corrupt-file"),
    ],
)
def test_fault_23_a_hostile_file_is_refused_and_runs_nothing(tmp_path, file, make, id):
    from dlzoo import zoo

    canary, path = tmp_path / "canary", tmp_path / file
    make(path, canary)
    with pytest.raises(ModelError) as caught:
        zoo.create_model("resnet50", weights=path, input_shape=32)
    assert (caught.value.id, caught.value.exit_code) == (f"model.{id}", 4)
    assert not canary.exists()


def test_fault_23_finetune_refuses_it_and_begins_no_run(tmp_path, refused):
    canary, path = tmp_path / "canary", tmp_path / "weights.pth"
    hostile_zip(path, canary)
    refused(
        *("model.unsafe-file", 4, "finetune", "--backbone", "resnet18", "--weights", path),
        *("--data", folder(tmp_path / "p", each=3), "--size", "32", "--out", tmp_path / "runs"),
    )
    assert not canary.exists()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for the peak")
@pytest.mark.parametrize("make", [shape_bomb, vast_tensor])
def test_fault_23_memory_stays_bounded(tmp_path, make):
    """The files promise 4 TB and more."""
    path = tmp_path / ("bomb.h5" if make is shape_bomb else "vast.safetensors")
    make(path, tmp_path / "canary")
    code = f"""
from pathlib import Path
from dlzoo.errors import ModelError
from dlzoo.zoo import checkpoints
read = checkpoints.{"read_keras" if make is shape_bomb else "read_torch"}
try:
    read(Path({str(path)!r}))
except ModelError:
    print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert int(done.stdout) < 400_000  # kB


def test_fault_23_a_keras_archive_gives_its_weights_and_its_code_is_not_looked_at(tmp_path):
    stored = io.BytesIO()
    with h5py.File(stored, "w") as file:
        file["layers/dense/vars/0"] = np.ones((2, 3), "f4")
    config = {"class_name": "Lambda", "config": {"function": "__import__('os').system('false')"}}
    with zipfile.ZipFile(tmp_path / "x.keras", "w") as archive:
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("model.weights.h5", stored.getvalue())
    [(name, [kernel])] = checkpoints.read_keras(tmp_path / "x.keras")
    assert (name, kernel.shape) == ("dense", (2, 3))


# ---------------------------------------------------------------- 24 another model's


def test_fault_24_a_part_is_never_loaded(tmp_path, raises):
    """Most of the file fits, and yet no layer of the model has changed."""
    from dlzoo import zoo
    from dlzoo.zoo.load import load, row_for_file

    path, variant = tmp_path / "half.weights.h5", zoo.variants()["lenet5"]
    zoo.create_model("lenet5").save_weights(path)
    with h5py.File(path, "r+") as file:
        places = [f"layers/{name}/vars" for name in file["layers"]]
        kernels = [place for place in places if "0" in file[place]]
        for layer in kernels[-2:]:
            del file[layer]["0"]
        file[kernels[-1]]["0"] = np.zeros((3, 3), "f4")
    model = zoo.create_model("lenet5")
    before = model.get_weights()
    with raises("model.weights-mismatch", 4) as caught:
        load(model, variant, row_for_file(variant, None, path), path)
    assert "2 of 5 layers of lenet5 do not fit" in caught.value.message
    assert all(map(np.array_equal, before, model.get_weights()))


@pytest.mark.parametrize("backbone", ["efficientnet_lite0", "efficientnet_lite0.tf_in1k"])
def test_fault_24_the_first_five_misfits_are_listed_and_no_run_is_begun(
    backbone, tmp_path, refused
):
    tensor = np.zeros((64, 3, 11, 11), "f4")
    about = {"dtype": "F32", "shape": tensor.shape, "data_offsets": [0, tensor.nbytes]}
    header = json.dumps({"features.0.weight": about}).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + tensor.tobytes())
    told = refused(
        *("model.weights-mismatch", 4, "finetune", "--weights", path, "--size", "32"),
        *("--data", folder(tmp_path / "p", each=3), "--out", tmp_path / "runs"),
        *("--backbone", backbone),
    )
    assert "_conv_stem.weight is not in the file" in told and "more" in told
    assert sum("is not in the file" in line for line in told.splitlines()) == 5
