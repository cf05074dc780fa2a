"""Activations on disk: computed once, found by content, whole or not there."""

import multiprocessing
import os
import re
import resource
import signal
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from dlzoo import create_model, load_data
from dlzoo.data.pipeline import batches
from dlzoo.errors import ResourceError, UsageError
from dlzoo.transfer import cache, shelf
from dlzoo.transfer.cache import Activations, Frozen
from dlzoo.zoo import graph

SIZE = 32


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("DLZOO_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def pictures(n=24, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 255, (n, SIZE, SIZE, 3)).astype("uint8"), np.arange(n) % 3


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return create_model("vgg11", num_classes=3, input_shape=SIZE, pool="avg")


@pytest.fixture
def data():
    return load_data(pictures(), val_split=0.25, test_split=0.0)


def make(model, data, **options):
    return Frozen(model, data, graph.built(model).preprocess, **options)


def computed(frozen, places, split, **options):
    """Return the activations and how many images were computed for them."""
    before = frozen.speed.images
    found = frozen.activations(places, split, **{"work": 0, **options})
    return found, frozen.speed.images - before


def test_activations_are_those_of_the_network_and_come_once(model, data):
    frozen = make(model, data)
    found, n = computed(frozen, ["C4", "features"], "train")
    assert n == len(found["C4"]) == data.splits["train"]
    ((x, y, _),) = batches(data, "train", frozen.rule, batch=64)
    for place, activations in found.items():
        expected = np.asarray(graph.cut(model, place)[0](x, training=False))
        np.testing.assert_allclose(activations[:], expected, rtol=2e-3, atol=1e-3)
    np.testing.assert_array_equal(found["C4"].labels, y)
    again, n = computed(make(model, data), ["C4", "features"], "train")  # as another run would
    assert n == 0
    np.testing.assert_array_equal(again["C4"][:], found["C4"][:])


def test_every_view_is_a_row(model, data):
    found = computed(make(model, data, augment="light"), ["features"], "train", views=3)[0]
    found, n = found["features"], data.splits["train"]
    rows = cache.EveryView(found)
    assert len(rows) == len(rows.labels) == len(rows.weights) == 3 * n
    np.testing.assert_array_equal(rows[:n], found[:])
    assert (rows[n : 2 * n] != rows[2 * n :]).any(axis=1).all()
    np.testing.assert_array_equal(rows[n + 2 : n + 4], found.take(np.array([2, 3]), 1))
    np.testing.assert_array_equal(rows.labels[2 * n :], found.labels)


def resident(folder):
    """Return the kilobytes of files in a folder that count as memory of this process."""
    found, here = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match("[0-9a-f]+-[0-9a-f]+ ", line):
            here = str(folder) in line
        elif here and line.startswith("Rss:"):
            found += int(line.split()[1])
    return found


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="how Linux tells it")
def test_what_was_read_is_let_go(model, data, home, monkeypatch):
    found = computed(make(model, data), ["C4"], "train")[0]["C4"]
    before = found[:]
    assert resident(home)
    monkeypatch.setattr(cache, "MAPPED", 0)
    np.testing.assert_array_equal(found[:], before)
    assert not resident(home)
    np.testing.assert_array_equal(found[:], before)


def test_a_few_more_photos_cost_a_few_photos(model):
    x, y = pictures(24)
    few, more = (
        load_data({"train": (x[:n], y[:n]), "val": pictures(3, seed=1)}, test_split=0.0)
        for n in (18, 22)
    )
    assert computed(make(model, few), ["C4"], "train")[1] == 18
    found, n = computed(make(model, more), ["C4"], "train")
    assert n == 4
    assert len(found["C4"]) == 22


def test_what_is_steady_does_not_tell_what_was_there(model, data, monkeypatch):
    """Little work takes another engine, whose last bits are others; so may any other run."""
    asked, real = [], cache.fastest

    def fastest(*args, work, **options):
        asked.append(work)
        return real(*args, work=0, **options)

    monkeypatch.setattr(cache, "fastest", fastest)
    steady = make(model, data, steady=True)
    for split, work in (("val", 1.0), ("train", 1e6)):
        steady._engines.clear()
        assert computed(steady, ["features"], split, work=work)[1] == data.splits[split]
        assert computed(make(model, data), ["features"], split)[1] == data.splits[split]
    assert asked[0] == asked[-2] is None


def test_the_same_image_twice_is_computed_once(model):
    x, y = pictures(6)
    x, y = np.concatenate([x, x]), np.concatenate([y, y])
    data = load_data({"train": (x, y), "val": pictures(3, seed=1)}, test_split=0.0)
    found, n = computed(make(model, data), ["C4"], "train")
    assert n == 6
    np.testing.assert_array_equal(found["C4"][:][:6], found["C4"][:][6:])


def test_another_place_alone_is_computed_for_what_it_lacks(model, data):
    computed(make(model, data), ["C4"], "train")
    frozen = make(model, data)
    found, n = computed(frozen, ["C4", "C5"], "train")
    assert n == data.splits["train"]
    assert set(found) == {"C4", "C5"}
    assert computed(make(model, data), ["C5"], "train")[1] == 0


def test_whatever_they_depend_on_makes_them_new(data):
    keras.utils.set_random_seed(0)
    model = create_model("vgg11", num_classes=3, input_shape=SIZE, pool="avg")
    place, n = ["C2"], data.splits["train"]
    assert computed(make(model, data), place, "train")[1] == n
    cropped = make(model, data)
    cropped.rule = replace(cropped.rule, crop=0.5)
    assert computed(cropped, place, "train")[1] == n
    assert computed(make(model, data, augment="light"), place, "train", views=2)[1] == n
    assert computed(make(model, data, augment="strong"), place, "train", views=2)[1] == n
    assert computed(make(model, data, augment="strong"), place, "train", views=2)[1] == 0
    data.flip = not data.flip
    assert computed(make(model, data, augment="strong"), place, "train", views=2)[1] == n
    above = model.get_layer("logits")
    above.set_weights([w + 1 for w in above.get_weights()])
    assert computed(make(model, data), place, "train")[1] == 0
    first = next(layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D))
    first.set_weights([w + 0.01 for w in first.get_weights()])
    assert computed(make(model, data), place, "train")[1] == n


def test_views_differ_and_do_not_depend_on_the_split(model):
    x, y = pictures(24)
    found = []
    for seed in (0, 1):
        data = load_data((x, y), val_split=0.25, test_split=0.0, seed=seed)
        frozen = make(model, data, augment="strong")
        (activations,), n = computed(frozen, ["C2"], "train", views=3)[0].values(), frozen.speed
        every = np.arange(len(activations))
        plain, varied = activations.take(every, 0), activations.take(every, 1)
        assert not np.allclose(plain, varied)
        found.append(dict(zip(data.keys("train"), varied, strict=True)))
    both = found[0].keys() & found[1].keys()
    assert 0 < n.images < 3 * data.splits["train"]  # most were there
    for key in both:
        np.testing.assert_array_equal(found[0][key], found[1][key])


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_shard_is_computed_anew(model, data, home, damage):
    before = computed(make(model, data), ["C5"], "train")[0]["C5"][:]
    (path,) = (home / "activations").glob("*/*.npy")
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    {
        "flip": lambda: path.write_bytes(content),
        "cut": lambda: path.write_bytes(content[:-9]),
        "gone": path.unlink,
    }[damage]()
    after, n = computed(make(model, data), ["C5"], "train")
    assert n == data.splits["train"]
    np.testing.assert_array_equal(after["C5"][:], before)


def _fill(home, pause):
    os.environ["DLZOO_HOME"] = str(home)
    keras.utils.set_random_seed(0)
    model = create_model("vgg11", num_classes=3, input_shape=SIZE, pool="avg")
    shelf.SHARD = 1  # a shard for every batch
    data = load_data(pictures(), val_split=0.25, test_split=0.0)
    make(model, data, batch=3, leave=lambda n: time.sleep(pause)).activations(
        ["C5"], "train", work=0
    )


@pytest.mark.full
def test_a_kill_in_the_middle_keeps_what_was_done(model, data, home):
    child = multiprocessing.get_context("spawn").Process(target=_fill, args=(home, 1.0))
    child.start()
    while not len(list(home.glob("activations/*/*.ids"))) >= 2:
        assert child.is_alive()
        time.sleep(0.05)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    frozen = make(model, data)
    lacking = frozen.missing(["C5"], ["train"])
    assert 0 < lacking < data.splits["train"]
    assert computed(frozen, ["C5"], "train")[1] == lacking
    assert not list(home.glob("activations/*/.*.part"))


@pytest.mark.full
def test_two_processes_share_one_pass(model, data, home):
    child = multiprocessing.get_context("spawn").Process(target=_fill, args=(home, 0.1))
    child.start()
    while not list(home.glob("activations/*/*.ids")):
        assert child.is_alive()
        time.sleep(0.05)
    said = []
    _, n = computed(make(model, data, say=said.append), ["C5"], "train")
    child.join()
    assert child.exitcode == 0
    assert n == 0
    assert "waiting for another process" in said[0]


def test_a_process_that_waits_for_another_can_leave(model, data):
    """A signal is heard there: the other one may compute for hours."""
    said, other = [], ExitStack()

    def say(line):
        said.append(line)
        other.close()  # or the test would wait for ever where nobody can leave

    def leave(images):
        if not images:
            raise KeyboardInterrupt

    with other, pytest.raises(KeyboardInterrupt):
        other.enter_context(make(model, data).shelf("C5", 0).writing(lambda: None))
        computed(make(model, data, say=say, leave=leave), ["C5"], "train")
    assert len(said) == 1


def test_the_shelf_not_used_for_longest_goes_first(model, data, home, monkeypatch):
    for place in ("C3", "C4", "C5"):
        computed(make(model, data), [place], "train")
    sizes = {entry["place"]: entry["bytes"] for entry in shelf.entries()}
    for number, place in enumerate(("C4", "C5", "C3")):  # in this order they were used
        entry = next(e for e in shelf.entries() if e["place"] == place)
        os.utime(entry["path"] / "about.json", (number, number))
    monkeypatch.setenv("DLZOO_CACHE_LIMIT", str(sum(sizes.values())))
    assert shelf.make_room(sizes["C4"])
    assert [entry["place"] for entry in shelf.entries()] == ["C5", "C3"]
    assert not shelf.make_room(10**9)
    every = [entry["path"] for entry in shelf.entries()]
    assert not shelf.make_room(sizes["C4"] + 1, keep=every)  # beside what has to stay
    monkeypatch.setenv("DLZOO_CACHE_LIMIT", "abc")
    with pytest.raises(UsageError, match=r"usage\.size.*'abc' is no size"):
        shelf.limit()
    assert shelf.clear() == sizes["C5"] + sizes["C3"]
    assert shelf.entries() == []


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_cache_that_is_cleared_meanwhile_is_computed_again(model, data, home, monkeypatch, when):
    """Also between two views, and between a look at what is there and its use."""
    options = {"views": 2}
    expected = computed(make(model, data, augment="light"), ["C5"], "train", **options)[0]["C5"]
    rows = np.arange(len(expected))
    values = [expected.take(rows, view) for view in range(2)]
    locate = shelf.Shelf.locate

    def cleared(self, ids):
        monkeypatch.setattr(shelf.Shelf, "locate", locate)
        found = locate(self, ids) if when == "after" else None
        shelf.clear()
        return locate(self, ids) if when == "before" else found

    monkeypatch.setattr(shelf.Shelf, "locate", cleared)
    found, n = computed(make(model, data, augment="light"), ["C5"], "train", **options)
    assert n == len(rows) * (2 if when == "before" else 1)
    for view in range(2):
        np.testing.assert_array_equal(found["C5"].take(rows, view), values[view])


def test_a_full_disk_is_said_and_what_was_there_stays(model, data):
    computed(make(model, data), ["C5"], "train")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    try:
        with pytest.raises(ResourceError, match=r"resource\.disk.*activations: File too large"):
            make(model, data).activations(["C4"], "train")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert make(model, data).missing(["C5"], ["train"]) == 0


def test_mixup_mixes_activations_and_labels_alike():
    rng = np.random.default_rng(0)
    labels = np.eye(4, dtype="float32")[np.arange(40) % 4]
    values = (labels @ rng.normal(size=(4, 6))).astype("float16")  # a linear code of the label
    places = np.stack([np.zeros(40, int), np.arange(40)], axis=1)[None]
    activations = Activations([values], places, labels, np.ones(40, "float32"))
    x, y, _ = next(iter(activations.batches(40, shuffle=True, mixup=0.4)))
    assert np.allclose(y.numpy().sum(1), 1) and (y.numpy().max(1) < 1).any()
    code = np.linalg.lstsq(labels, values.astype("float32"), rcond=None)[0]
    np.testing.assert_allclose(x, y.numpy() @ code, atol=5e-3)


def test_batches_go_on_from_any_step():
    values = np.arange(20, dtype="float16")[:, None]
    places = np.stack([np.zeros(20, int), np.arange(20)], axis=1)[None]
    activations = Activations([values], places, np.ones((20, 1), "float32"), np.ones(20, "float32"))
    options = {"seed": 3, "epochs": 2, "shuffle": True, "mixup": 0.2}
    every = [x.numpy() for x, *_ in activations.batches(6, **options)]
    rest = [x.numpy() for x, *_ in activations.batches(6, start_epoch=1, start_step=2, **options)]
    assert len(every) == 8
    for a, b in zip(every[6:], rest, strict=True):
        np.testing.assert_array_equal(a, b)
    # else an iterator would wait at its end, see `data.pipeline.untuned`
    assert activations.batches(6, **options).options().autotune.enabled is False
