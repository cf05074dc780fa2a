"""Readers of foreign bytes: hostile files are read or refused, and nothing in them is run.

tools/hostile.py makes the files; benchmarks/fuzz.py does the same for minutes and watches time,
memory and what is started, too.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from dlzoo.data import decode
from dlzoo.data.archive import unpack
from dlzoo.errors import DataError, DlzooError, ModelError
from dlzoo.zoo import checkpoints
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import hostile

# A few files of Keras only, of those test_checkpoints_keras.py lacks: each takes a process.
SLOW = ("h5", "keras")
FEW = ("soft-loop.w", "layers-x.pipe", "control", "null", "twice")
QUICK = [name for name in hostile.READERS if name not in (*SLOW, "run")]
LARGE = 1 << 17  # and more is left to the fuzzer


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Return what has a reader read some bytes, and fails on what should not happen."""
    monkeypatch.setenv("DLZOO_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(checkpoints, "PATIENCE", 5)
    readers = {}

    def check(reader: str, content: bytes, name: str = "") -> str:
        if reader not in readers:
            readers[reader] = hostile.reading(reader, tmp_path)
        path = tmp_path / {"config": "x.toml", "table": "x.csv"}.get(reader, f"x.{reader}")
        path.write_bytes(content)
        try:
            readers[reader](path)
        except DlzooError as error:
            assert error.exit_code == hostile.EXIT.get(reader, 4), (name, str(error))
            return error.id
        finally:
            assert not (tmp_path / "x").exists(), name  # the canary
        return "read"

    return check


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("reader", QUICK)
def test_hostile_files_are_read_or_refused(tmp_path, read, reader):
    for name, content in hostile.corpus(reader, tmp_path / "x").items():
        if len(content) < LARGE and not name.startswith("bomb"):
            answer = read(reader, content, name)
            assert answer == "read" or not name.startswith("good-") or reader == "table", name


@pytest.mark.parametrize("reader", SLOW)
def test_hostile_files_of_keras_are_read_or_refused(tmp_path, read, reader):
    for name, content in hostile.corpus(reader, tmp_path / "x").items():
        if name.startswith(FEW):
            assert read(reader, content, name) != "read" or name.startswith(("control", "twice"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("reader", "cases"),
    [
        *(("pth", 300), ("safetensors", 300), ("config", 150), ("image", 300)),
        *(("archive", 150), ("table", 40), ("h5", 3), ("keras", 3)),
    ],
)
def test_files_changed_at_random_are_read_or_refused(tmp_path, read, reader, cases):
    made = hostile.corpus(reader, tmp_path / "x")
    small = [c for n, c in made.items() if len(c) < 1 << 14 and not n.startswith("bomb")]
    assert small

    @settings(max_examples=cases)
    @given(st.integers(0, 2**32))
    def check(seed):
        chance = random.Random(seed)
        read(reader, hostile.mutate(chance, chance.choice(small), small))

    check()


# ---------------------------------------------------------------- what fuzzing found


def peak(function, *args) -> tuple[str, int]:
    """Return the id of the error that a call raises, and the bytes it took at most."""
    tracemalloc.start()
    try:
        with pytest.raises(DlzooError) as caught:
            function(*args)
        return caught.value.id, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_that_is_unpacked_in_one_piece_is_refused(tmp_path, kind):
    (tmp_path / "x.zip").write_bytes(hostile.zipped({"a/x.png": bytes(1 << 23)}, kind))
    id, memory = peak(unpack, tmp_path / "x.zip")
    assert id == "data.unsafe-archive" and memory < 1 << 22


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_tar_whose_header_is_vast_is_refused(tmp_path, kind):
    info = tarfile.TarInfo("a")
    info.type, info.size = kind, 1 << 26
    (tmp_path / "x.tar.gz").write_bytes(hostile._gzip(info.tobuf(), 1 << 26))
    id, memory = peak(unpack, tmp_path / "x.tar.gz")
    assert id == "data.archive" and memory < 1 << 22


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.DIRTYPE])
def test_a_tar_of_endless_empty_members_is_refused(tmp_path, kind):
    info = tarfile.TarInfo("a/x")
    info.type = kind
    (tmp_path / "x.tar.gz").write_bytes(hostile._gzip(b"", 4 << 20, info.tobuf()))
    id, memory = peak(unpack, tmp_path / "x.tar.gz")
    assert id == "data.unsafe-archive" and memory < 1 << 22


def test_a_large_image_lies_in_memory_twice_and_not_six_times(tmp_path):
    side = 4000
    content = hostile.zeros(side * (side * 4 + 1))
    (tmp_path / "x.png").write_bytes(hostile.png(side, side, (b"IDAT", content), kind=6))
    program = """
import resource, sys
from dlzoo.data import decode
used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = used()
image = decode.decode(sys.argv[1])
print(used() - before, image.min())
"""
    command = [sys.executable, "-c", program, str(tmp_path / "x.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    memory, least = map(int, done.stdout.split())
    assert least == 255 and memory < 14 * side * side


def test_an_image_inside_an_icon_is_not_unpacked(tmp_path):
    inside = hostile.png(30_000, 30_000, (b"IDAT", hostile.zeros(1 << 20)), kind=0)
    for icon in (hostile._ico(inside), hostile._icns(inside)):
        with pytest.raises(DataError, match="not an image of a known format"):
            decode.decode(icon)


def test_a_jpeg_of_thousands_of_scans_is_refused():
    with pytest.raises(DataError, match="scans"):
        decode.decode(hostile.scans(3000))
    assert decode.decode(hostile.scans(3, 80, 80)).shape == (80, 80, 3)


def test_names_that_are_nested_to_far_more_than_the_file_are_refused(tmp_path):
    def ladder(file):  # every name holds all those above it
        group = file.create_group("layers")
        for _ in range(100):
            group = group.create_group("n" * 30_000)

    path = tmp_path / "x.h5"
    path.write_bytes(hostile.hdf5(ladder))
    with pytest.raises(ModelError, match="names are together longer"):
        checkpoints.read_keras(path)


# ---------------------------------------------------------------- the directory of a run


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return the model/ folder of a small classifier, and the weights' hash."""
    from dlzoo.transfer.classifier import Classifier, rebuild
    from dlzoo.zoo.spec import Preprocess

    create = {"name": "lenet5", "num_classes": 3, "in_chans": 3}
    rule = Preprocess(size=28)
    model = rebuild(create, rule)
    folder = tmp_path_factory.mktemp("run") / "model"
    Classifier(model, ("a", "b", "c"), "multiclass", rule, {"create": create}).save(folder)
    return folder


def test_a_hostile_model_json_is_refused(saved, tmp_path, monkeypatch):
    from dlzoo.transfer.classifier import Classifier

    monkeypatch.setenv("DLZOO_OFFLINE", "1")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.weights.h5").write_bytes((saved / "model.weights.h5").read_bytes())
    good = json.loads((saved / "model.json").read_text("utf-8"))
    for name, content in hostile.corpus("run", tmp_path / "x").items():
        if name.startswith(("create-", "good")):  # these get as far as the model: with our hashes
            hashes = {key: good[key] for key in good if key.endswith("sha256")}
            content = json.dumps(json.loads(content) | hashes).encode()
        (folder / "model.json").write_bytes(content)
        try:
            Classifier.load(folder)
            assert name in ("good.json", "create-weights.json")  # whose weights are our file's
        except DlzooError as error:
            assert error.exit_code in (2, 4) and name != "good.json", name
        assert not (tmp_path / "x").exists(), name


def test_a_run_that_names_a_model_on_the_hub_asks_nobody(saved, tmp_path, monkeypatch):
    from dlzoo.transfer.classifier import Classifier
    from dlzoo.zoo import sources

    monkeypatch.setattr(sources, "_json", lambda *where: pytest.fail("it asked the hub"))
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    saying = json.loads((folder / "model.json").read_text("utf-8"))
    plain, uri = saying["create"], {"name": "hf://timm/resnet18.a1_in1k"}
    for create in (plain | uri, {"members": [{"create": plain | uri, "preprocess": {}}]}):
        (folder / "model.json").write_text(json.dumps(saying | {"create": create}), "utf-8")
        with pytest.raises(ModelError, match="names a model on the hub"):
            Classifier.load(folder)


def test_weights_of_a_run_with_links_are_refused_before_keras_opens_them(saved, tmp_path):
    from dlzoo import files
    from dlzoo.transfer.classifier import Classifier

    folder, weights = tmp_path / "model", tmp_path / "model" / "model.weights.h5"
    folder.mkdir()
    weights.write_bytes(hostile.corpus("h5", tmp_path / "x")["layers-x.pipe.weights.h5"])
    saying = json.loads((saved / "model.json").read_text("utf-8"))
    saying["weights_sha256"] = files.sha256(weights)
    (folder / "model.json").write_text(json.dumps(saying), "utf-8")
    with pytest.raises(ModelError) as caught:
        Classifier.load(folder)
    assert caught.value.id == "model.unsafe-file"


# ---------------------------------------------------------------- what dlzoo writes


def named(config, key: str) -> set[str]:
    """Return all that is called `key` anywhere in a JSON value."""
    inside = config.values() if isinstance(config, dict) else config
    found = {str(config[key])} if isinstance(config, dict) and config.get(key) else set()
    deeper = [named(value, key) for value in inside if isinstance(value, dict | list)]
    return found.union(*deeper)


def test_what_is_written_holds_no_code_no_pickle_and_no_class_but_keras_own(saved, tmp_path):
    from dlzoo.export import export
    from dlzoo.transfer.classifier import Classifier

    chance = np.random.default_rng(0)
    photos = [
        hostile.encoded(Image.fromarray(chance.integers(0, 256, (28, 28), np.uint8)), "PNG")
        for _ in range(4)
    ]
    path = tmp_path / "export" / "model.keras"
    export(Classifier.load(saved), path, "keras", images=photos)
    kinds = {file.suffix for folder in (saved, path.parent) for file in folder.iterdir()}
    assert kinds <= {".json", ".txt", ".h5", ".keras", ".py"}
    with zipfile.ZipFile(path) as archive:
        members = set(archive.namelist())
        config = json.loads(archive.read("config.json"))
        assert {Path(name).suffix for name in members} <= {".json", ".h5"}
    assert {module.split(".")[0] for module in named(config, "module")} <= {"keras", "builtins"}
    assert not named(config, "class_name") & {"Lambda", "__lambda__", "TFSMLayer"}
    assert not named(config, "registered_name") & {"Lambda"}
    # nothing but numbers, and none of it by a link, a filter or from another file
    assert checkpoints.read_keras(path) and checkpoints.read_keras(saved / "model.weights.h5")
