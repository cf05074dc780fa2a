"""The reader of Keras' HDF5 files, and the layouts in which torch's tensors become Keras'."""

from __future__ import annotations

import gzip
import io
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from dlzoo.zoo import checkpoints
from torch_writer import refused

GOLDEN = Path(__file__).parents[1] / "golden"


# ---------------------------------------------------------------- Keras


def write_legacy(file, layers, chunks=None):
    """Fill an HDF5 group as keras.applications' files are: `{layer: {weight: array}}`."""
    names = [name.encode() for name in layers]
    for i, part in enumerate(np.array_split(names, chunks) if chunks else [names]):
        file.attrs[f"layer_names{i}" if chunks else "layer_names"] = part
    for layer, arrays in layers.items():
        group = file.create_group(layer)
        group.attrs["weight_names"] = [name.encode() for name in arrays]
        for name, array in arrays.items():
            group[name] = array


LAYERS = {
    "zz_conv": {
        "zz_conv/zz_conv_W:0": np.ones((3, 3, 1, 2), "f4"),
        "zz_conv_b:0": np.zeros(2, "f4"),
    },
    "pool": {},
    "aa_dense": {"aa_dense/kernel:0": np.arange(6, dtype="f4").reshape(2, 3)},
}


@pytest.mark.parametrize("inside", ["/", "model_weights"])
@pytest.mark.parametrize("chunks", [None, 2])
def test_legacy_keras_files_keep_their_order(tmp_path, inside, chunks):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        write_legacy(file.require_group(inside), LAYERS, chunks)
    layers = checkpoints.read_keras(tmp_path / "x.h5")
    assert [name for name, _ in layers] == ["zz_conv", "aa_dense"]
    with_empty = checkpoints.read_keras(tmp_path / "x.h5", empty=True)
    assert [name for name, _ in with_empty] == list(LAYERS)
    for name, arrays in layers:
        for got, wanted in zip(arrays, LAYERS[name].values(), strict=True):
            np.testing.assert_array_equal(got, wanted, strict=True)


def test_a_model_inside_the_model_keeps_its_layers_together(tmp_path):
    """Keras 3 writes all weights that are trained before all that are not."""
    norm, part = keras.layers.BatchNormalization, np.arange(8, dtype="f4").reshape(4, 2)
    inside = keras.Sequential([keras.Input((2,)), norm(name="one"), norm(name="two")], name="in")
    model = keras.Sequential([keras.Input((2,)), inside, keras.layers.Dense(1)])
    inside.layers[0].set_weights(part)
    inside.layers[1].set_weights(part + 10)
    model.save(tmp_path / "x.h5")
    found = dict(checkpoints.read_keras(tmp_path / "x.h5"))
    assert np.array_equal(found["one"], part) and np.array_equal(found["two"], part + 10)


def weights_h5(target):
    with h5py.File(target, "w") as file:
        for i in range(11):
            file[f"layers/conv2d/vars/{i}"] = np.full(2, i, "f4")
        file["layers/conv2d/vars"].attrs["name"] = "block1_conv1"
        file["layers/attention/query/vars/0"] = np.ones(3, "f4")
        file.create_group("layers/dropout/vars")
        file["optimizer/vars/0"] = np.ones(9, "f4")


@pytest.mark.parametrize("archive", [False, True])
def test_keras_3_files(tmp_path, archive):
    path = tmp_path / "x.weights.h5"
    weights_h5(path)
    if archive:
        stored, path = path.read_bytes(), tmp_path / "x.keras"
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("config.json", "{}")
            file.writestr("model.weights.h5", stored)
    layers = dict(checkpoints.read_keras(path))
    assert sorted(layers) == ["attention/query", "block1_conv1"]
    assert [array[0] for array in layers["block1_conv1"]] == list(range(11))


def hostile_h5(folder):
    """Yield (name, what makes the file hostile) for HDF5 files; w/k is the weight."""
    other = folder / "other.h5"
    with h5py.File(other, "w") as file:
        file["k"] = np.zeros(3, "f4")
    (folder / "raw.bin").write_bytes(bytes(12))
    layout = h5py.VirtualLayout((3,), "f4")
    layout[:] = h5py.VirtualSource(other, "k", (3,))
    big, chunk = (1 << 20, 1 << 20), (1 << 10, 1 << 10)
    external = [(str(folder / "raw.bin"), 0, 12)]
    yield "external link", lambda g: g.update(k=h5py.ExternalLink(other, "k"))
    yield "soft link", lambda g: g.update(k=h5py.SoftLink("/elsewhere"))
    yield "virtual", lambda g: g.create_virtual_dataset("k", layout)
    yield "external storage", lambda g: g.create_dataset("k", (3,), "f4", external=external)
    yield "shape bomb", lambda g: g.create_dataset("k", big, "f4", chunks=chunk)
    yield "never written", lambda g: g.create_dataset("k", (1 << 28,), "f4")
    yield "text", lambda g: g.create_dataset("k", data="text")
    yield "objects", lambda g: g.create_dataset("k", (3,), h5py.vlen_dtype(np.int32))
    yield "references", lambda g: g.create_dataset("k", data=g.ref, dtype=h5py.ref_dtype)
    yield "a group", lambda g: g.create_group("k")
    yield "a type", lambda g: g.update(k=np.dtype("f4"))


@pytest.mark.parametrize("layout", ["legacy", "keras3"])
def test_hostile_hdf5(tmp_path, layout):
    cases = list(hostile_h5(tmp_path))
    for name, make in cases if layout == "legacy" else cases[::4]:
        path = tmp_path / f"{name}.h5"
        with h5py.File(path, "w") as file:
            if layout == "legacy":
                write_legacy(file, {"w": {}})
                make(file["w"])
                file["w"].attrs["weight_names"] = [b"k"]
            else:
                make(file.create_group("layers/w/vars"))
                file.move("layers/w/vars/k", "layers/w/vars/0")
        elsewhere = "another file" if name in ("virtual", "external storage") else None
        refused(path, match=elsewhere, read=checkpoints.read_keras)


@pytest.mark.parametrize("name", ["/elsewhere/k", "../w/k", "./k", "k//k", ""])
def test_weight_names_that_are_paths_elsewhere(tmp_path, name):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        write_legacy(file, LAYERS)
        file["elsewhere/k"] = np.zeros(3, "f4")
        file["zz_conv"].attrs["weight_names"] = [name]
    refused(tmp_path / "x.h5", read=checkpoints.read_keras)


def test_hdf5_links_that_lead_elsewhere_or_round(tmp_path):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["layers/a/b/vars/0"] = np.zeros(3, "f4")
        file["layers/a/b/again"] = file["layers/a"]
    refused(path, match="circle", read=checkpoints.read_keras)
    with h5py.File(path, "w") as file:
        write_legacy(file, {"w": {"k": np.zeros(1000)}})
        file["w"].attrs["weight_names"] = ["k"] * 4000
    refused(path, match="larger than the file", read=checkpoints.read_keras)


def test_compressed_weights_are_refused_because_they_can_grow(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        write_legacy(file, {"w": {}})
        file["w"].create_dataset("k", data=np.zeros((2048, 2048), "f4"), compression="gzip")
        file["w"].attrs["weight_names"] = ["k"]
    refused(tmp_path / "x.h5", "format", "compressed", read=checkpoints.read_keras)


def test_hdf5_without_weights_and_other_files(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["measurements"] = np.zeros(3)
    refused(tmp_path / "x.h5", "format", read=checkpoints.read_keras)
    refused(tmp_path / "x.h5", "format", "HDF5", read=checkpoints.read_torch)
    refused(GOLDEN / "torch_legacy.pth", "format", read=checkpoints.read_keras)
    refused(GOLDEN / "torch_zip.pth", "corrupt-file", read=checkpoints.read_keras)


def test_a_keras_file_cut_short_is_refused(tmp_path):
    stored = io.BytesIO()
    with h5py.File(stored, "w") as file:
        write_legacy(file, LAYERS)
    raw, path = stored.getvalue(), tmp_path / "x.h5"
    for end in (8, 100, 1000, len(raw) // 2, len(raw) - 1):
        path.write_bytes(raw[:end])
        refused(path, "corrupt-file", read=checkpoints.read_keras)


@pytest.mark.parametrize("damage", ["hangs", "crashes"])
def test_a_file_on_which_the_hdf5_library_hangs_or_crashes(tmp_path, monkeypatch, damage):
    """Two small files with some bytes changed, kept as found."""
    monkeypatch.setattr(checkpoints, "PATIENCE", 3)
    path = tmp_path / "x.h5"
    path.write_bytes(gzip.decompress((GOLDEN / f"hdf5_{damage}.h5.gz").read_bytes()))
    refused(path, "corrupt-file", read=checkpoints.read_keras)


# ---------------------------------------------------------------- layouts


def test_convolutions():
    rng = np.random.default_rng(0)
    tensors = {"c.weight": rng.normal(size=(5, 2, 3, 4)), "c.bias": rng.normal(size=5)}
    kernel, bias = checkpoints.torch_arrays("Conv2D", "c", tensors)
    patch = rng.normal(size=(3, 4, 2))  # height, width, channels
    wanted = np.einsum("oihw,hwi->o", tensors["c.weight"], patch)
    np.testing.assert_allclose(np.einsum("hwio,hwi->o", kernel, patch), wanted)
    assert kernel.flags.c_contiguous and bias is tensors["c.bias"]
    [kernel] = checkpoints.torch_arrays("DepthwiseConv2D", "d", {"d.weight": np.ones((6, 1, 3, 5))})
    assert kernel.shape == (3, 5, 6, 1)


def test_a_dense_layer_after_a_flattened_map():
    rng = np.random.default_rng(0)
    tensors = {"f.weight": rng.normal(size=(7, 2 * 3 * 4)), "f.bias": rng.normal(size=7)}
    image = rng.normal(size=(3, 4, 2))
    kernel, _ = checkpoints.torch_arrays("Dense", "f", tensors, flattened=(3, 4, 2))
    wanted = tensors["f.weight"] @ image.transpose(2, 0, 1).ravel()
    np.testing.assert_allclose(image.ravel() @ kernel, wanted)
    kernel, _ = checkpoints.torch_arrays("Dense", "f", tensors)
    np.testing.assert_array_equal(kernel, tensors["f.weight"].T)


def test_batch_normalization_and_what_is_missing():
    parts = ("weight", "bias", "running_mean", "running_var")
    tensors = {f"bn.{part}": np.full(2, i) for i, part in enumerate(parts)}
    arrays = checkpoints.torch_arrays("BatchNormalization", "bn", tensors)
    assert [array[0] for array in arrays] == [0, 1, 2, 3]
    with pytest.raises(KeyError, match=r"other\.weight"):
        checkpoints.torch_arrays("BatchNormalization", "other", tensors)
    for kind in ("Conv2D", "DepthwiseConv2D", "Dense"):
        with pytest.raises(ValueError, match=r"bn\.weight"):
            checkpoints.torch_arrays(kind, "bn", tensors)
    with pytest.raises(ValueError, match="inputs"):
        checkpoints.torch_arrays("Dense", "f", {"f.weight": np.ones((2, 5))}, flattened=(2, 2, 1))
    with pytest.raises(ValueError, match="LSTM"):
        checkpoints.torch_arrays("LSTM", "bn", tensors)
