"""Fashion-MNIST from IDX files, parts of data, and data as arrays."""

import gzip
import struct

import numpy as np
import pytest
from dlzoo import load_data
from dlzoo.errors import DataError

RNG = np.random.default_rng(0)
IMAGES = {"train": RNG.integers(0, 256, (60, 28, 28), "uint8"),
          "t10k": RNG.integers(0, 256, (20, 28, 28), "uint8")}  # fmt: skip


def idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Give a folder like the one that Keras keeps, with a few images of noise."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    place = tmp_path / "datasets" / "fashion-mnist"
    place.mkdir(parents=True)
    for part, images in IMAGES.items():
        labels = np.arange(len(images), dtype="uint8") % 10
        (place / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (place / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    return place


def test_fashion_mnist_keeps_its_own_test_part(folder):
    data = load_data("fashion-mnist", val_split=0.2)
    assert data.splits == {"train": 50, "val": 10, "test": 20}
    assert (data.classes[0], data.classes[9], data.flip) == ("T-shirt/top", "Ankle boot", True)
    images, labels = data.arrays("test", 32, channels=1)
    np.testing.assert_array_equal(images[:, 2:-2, 2:-2, 0], IMAGES["t10k"])
    np.testing.assert_array_equal(labels.argmax(1), np.arange(20) % 10)


@pytest.mark.parametrize(
    ("part", "content"),
    [
        ("labels-idx1", idx(np.zeros(59, "uint8"))),  # one too few
        ("labels-idx1", idx(np.full(60, 10, "uint8"))),  # no such class
        ("images-idx3", idx(IMAGES["train"])[:-1]),
        ("images-idx3", idx(IMAGES["train"]) + b"x"),
        ("images-idx3", idx(IMAGES["train"])[:9]),
        ("images-idx3", idx(IMAGES["train"].astype("uint8").reshape(-1))),
        ("images-idx3", struct.pack(">BBBBIII", 0, 0, 8, 3, 2**31, 2**10, 2**10)),
        ("images-idx3", b""),
    ],
)
def test_damaged_files_are_named(folder, part, content):
    path = folder / f"train-{part}-ubyte.gz"
    path.write_bytes(gzip.compress(content))
    with pytest.raises(DataError) as error:
        load_data("fashion-mnist")
    assert error.value.id == "data.idx" and str(folder) in str(error.value.where)


def test_what_is_no_gzip_or_torn_or_missing_is_named(folder):
    path = folder / "train-labels-idx1-ubyte.gz"
    for content in (b"hello", path.read_bytes()[:-9], None):
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(DataError, match=r"data\.idx"):
            load_data("fashion-mnist")
        path.write_bytes(b"")


def test_some_of_the_data_is_a_part_of_each_split():
    data = load_data("digits", seed=1)
    few = data.some(train=30, test=0)
    assert few.splits == {"train": 30, "val": data.splits["val"], "test": 0}
    assert set(few.keys("train")) < set(data.keys("train"))
    assert few.keys("train") == data.some(train=30).keys("train")
    assert few.fingerprint != data.fingerprint


def test_arrays_are_what_training_sees():
    data = load_data("digits").some(train=20)
    images, labels = data.arrays("train", 32)
    assert images.shape == (20, 32, 32, 3) and images.dtype == "float32"
    np.testing.assert_array_equal(images[7], data.read("train", 7))
    np.testing.assert_array_equal(labels, data.labels("train"))
    with pytest.raises(DataError, match="no split"):
        data.arrays("valid", 32)
