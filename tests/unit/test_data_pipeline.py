"""The pipeline: deterministic, stateless, resumable; one resize rule (pains 1, 2, 42, 43)."""

import numpy as np
import pytest
import tensorflow as tf
from dlzoo import load_data
from dlzoo.data.augment import mixed
from dlzoo.data.pipeline import (
    Part,
    batches,
    class_weights,
    load_image,
    permutation,
    resize_rule,
)
from dlzoo.data.records import Record
from dlzoo.data.resize import reduce_pixels
from dlzoo.errors import DataError, UsageError
from dlzoo.zoo.spec import Preprocess
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

P = Preprocess(size=16, crop=0.875)


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("DLZOO_HOME", str(tmp_path / "home"))


def smooth(number, size=(24, 30)):
    """An image with structure, so that resizing it is well defined."""
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
    return np.asarray(small.resize(size[::-1], Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def data():
    """52 images of several sizes, 40 of them to train on."""
    images = [smooth(i, (20 + i % 7, 20 + i % 5)) for i in range(52)]
    return load_data((images, np.arange(52) % 4), val_split=0.1, test_split=0.1)


def collect(dataset):
    return [tuple(part.numpy() for part in parts) for parts in dataset]


def equal(first, second):
    assert len(first) == len(second)
    for one, two in zip(first, second, strict=True):
        for a, b in zip(one, two, strict=True):
            np.testing.assert_array_equal(a, b)


@settings(max_examples=80)
@given(n=st.integers(1, 200), seed=st.integers(-(2**63), 2**63), epoch=st.integers(0, 10**6))
def test_permutation(n, seed, epoch):
    order = permutation(n, seed, epoch)
    np.testing.assert_array_equal(np.sort(order), np.arange(n))
    np.testing.assert_array_equal(order, permutation(n, seed, epoch))


def test_permutation_is_pinned_and_uniform():
    # a run that is resumed under another NumPy must find its place again
    assert permutation(10, 0, 0).tolist() == [2, 1, 3, 8, 0, 7, 6, 4, 5, 9]
    first = [int(permutation(5, 7, epoch)[0]) for epoch in range(2000)]
    assert np.bincount(first, minlength=5).min() > 330
    assert permutation(50, 0, 1).tolist() != permutation(50, 1, 0).tolist()


def test_shapes_epochs_and_the_smaller_last_batch(data):
    dataset = batches(data, "train", P, batch=16, epochs=2, shuffle=True)
    found = collect(dataset)
    n = data.splits["train"]
    assert len(dataset) == len(found) == 2 * 3
    assert [len(x) for x, _, _ in found] == [16, 16, n - 32] * 2
    x, y, w = found[0]
    assert x.shape == (16, 16, 16, 3) and y.shape == (16, 4) and w.shape == (16,)
    assert x.dtype == y.dtype == w.dtype == np.float32 and (w == 1).all()
    assert x.min() >= 0 and 1 < x.max() <= 255
    assert dataset.element_spec[0].shape == (None, 16, 16, 3)


@pytest.mark.parametrize("change", [{}, {"augment": "medium", "epochs": 3}, {"part": Part(0, 2)}])
def test_nothing_tunes_that_an_iterator_would_wait_for_at_its_end(data, change):
    dataset = batches(data, "train", P, batch=16, **change)
    for it in (dataset, mixed(dataset, 0.2, 0).prefetch(2)):
        assert it.options().autotune.enabled is False


def test_each_epoch_shows_each_sample_once_in_another_order(data):
    n = data.splits["train"]
    found = collect(batches(data, "train", P, batch=7, epochs=2, shuffle=True, seed=5))
    images = np.concatenate([x for x, _, _ in found])
    labels = np.concatenate([y for _, y, _ in found])
    plain = np.concatenate([x for x, _, _ in collect(batches(data, "train", P, batch=50))])
    for epoch in (0, 1):
        order = permutation(n, 5, epoch)
        np.testing.assert_array_equal(images[epoch * n : (epoch + 1) * n], plain[order])
        np.testing.assert_array_equal(
            labels[epoch * n : (epoch + 1) * n], data.labels("train")[order]
        )


@pytest.mark.parametrize("augment", ["none", "strong"])
def test_starting_anywhere_gives_the_rest_of_the_run(data, augment):
    options = {"batch": 9, "augment": augment, "shuffle": True, "seed": 3, "epochs": 3}
    whole = collect(batches(data, "train", P, **options))
    steps = len(whole) // 3
    for epoch, step in ((0, 2), (1, steps), (2, 3)):
        rest = batches(data, "train", P, **options, start_epoch=epoch, start_step=step)
        assert len(rest) == (3 - epoch) * steps - step
        equal(collect(rest), whole[epoch * steps + step :])


def test_threads_and_memory_do_not_matter(data, monkeypatch):
    options = {"batch": 9, "augment": "medium", "shuffle": True}
    usual = collect(batches(data, "train", P, **options))
    single = tf.data.Options()
    single.threading.private_threadpool_size = 1
    equal(collect(batches(data, "train", P, **options).with_options(single)), usual)
    monkeypatch.setattr("dlzoo.data.pipeline._budget", lambda: 0)  # nothing is held
    data.memory = None
    equal(collect(batches(data, "train", P, **options)), usual)
    data.memory = None


def test_what_comes_once_is_not_held(data, monkeypatch):
    real, read = Record.pixels, []

    def counted(self, *args):
        read.append(self.key)
        return real(self, *args)

    monkeypatch.setattr(Record, "pixels", counted)
    data.memory, n = None, len(data.records("val"))
    for hold, reads in ((False, n), (True, 2 * n), (True, 2 * n), (False, 2 * n)):
        collect(batches(data, "val", P, batch=9, view=0, hold=hold))
        assert len(read) == reads


def test_epochs_and_seeds_augment_differently(data):
    def first(**kwargs):
        options = {"batch": 8, "augment": "light", **kwargs}
        return collect(batches(data, "train", P, **options))[0][0]

    assert (first() == first()).all()
    assert (first() != first(seed=1)).any()
    assert (first() != first(epochs=2, start_epoch=1)).any()


def test_views(data):
    def pass_of(view, **kwargs):
        options = {"batch": 50, "augment": "medium", "shuffle": True, **kwargs}
        return collect(batches(data, "train", P, view=view, **options))[0]

    plain = collect(batches(data, "train", P, batch=50))[0]
    for a, b in zip(pass_of(0), plain, strict=True):  # record order, not augmented
        np.testing.assert_array_equal(a, b)
    one, two = pass_of(1), pass_of(2)
    assert (one[0] != plain[0]).any() and (one[0] != two[0]).any()
    np.testing.assert_array_equal(one[1], plain[1])
    np.testing.assert_array_equal(pass_of(1, epochs=5)[0], one[0])
    np.testing.assert_array_equal(pass_of(1, seed=9)[0], one[0])  # the same in every run


def test_a_pass_over_some_records(data):
    every = collect(batches(data, "train", P, batch=50, augment="medium", view=2))[0]
    rows = np.array([7, 3, 11])
    options = {"batch": 2, "augment": "medium", "view": 2, "rows": rows}
    some = [collect(batches(data, "train", P, **options))]
    x = np.concatenate([part[0] for part in some[0]])
    y = np.concatenate([part[1] for part in some[0]])
    np.testing.assert_array_equal(x, every[0][rows])
    np.testing.assert_array_equal(y, every[1][rows])


@pytest.mark.parametrize("augment", ["light", "medium", "strong"])
def test_levels_keep_the_range(data, augment):
    for x, _, _ in collect(batches(data, "train", P, batch=50, augment=augment)):
        assert np.isfinite(x).all() and x.min() >= 0 and 50 < x.max() <= 255


def test_mirroring_can_be_switched_off():
    ramp = np.repeat(np.linspace(0, 255, 40).astype(np.uint8)[None, :, None], 40, 0)
    images = [np.minimum(ramp, 255 - i) for i in range(40)]
    data = load_data((images, np.arange(40) % 2))

    def mirrored():
        [(x, _, _)] = collect(batches(data, "train", P, batch=40, augment="light"))
        return int((x[:, :, :4].mean((1, 2, 3)) > x[:, :, -4:].mean((1, 2, 3))).sum())

    assert 8 <= mirrored() <= 24  # of 32
    data.flip = False
    assert mirrored() == 0
    assert load_data("digits").flip is False


@pytest.mark.parametrize("kind", ["bilinear", "bicubic", "lanczos3"])
@pytest.mark.parametrize("size", [(24, 30), (31, 20), (16, 16), (9, 40), (50, 36), (1, 3)])
def test_rule_is_resize_then_centre_crop(kind, size):
    rule = Preprocess(size=16, crop=0.8, interpolation=kind)
    image = smooth(1, size)
    height, width = (n * 20 // min(size) for n in size)
    method = {"lanczos3": "lanczos3"}.get(kind, kind)
    whole = tf.image.resize(image, (height, width), method, antialias=True).numpy()
    y, x = (height - 16) // 2, (width - 16) // 2
    expected = np.clip(whole[y : y + 16, x : x + 16], 0, 255)
    np.testing.assert_allclose(resize_rule(tf.constant(image), rule), expected, atol=2e-3)


def test_rule_agrees_with_pillow():
    for kind, method in (("bilinear", 2), ("bicubic", 3), ("lanczos3", 1)):
        rule = Preprocess(size=32, crop=1.0, interpolation=kind)
        image = smooth(2, (60, 60))
        expected = np.asarray(Image.fromarray(image).resize((32, 32), method), np.float32)
        found = resize_rule(tf.constant(image), rule).numpy()
        assert np.abs(found - expected).mean() < 0.6 and np.abs(found - expected).max() < 4


def test_rule_takes_any_type_and_size_in_a_graph():
    rule = Preprocess(size=16, crop=1.0, interpolation="bicubic")
    spec = tf.TensorSpec((None, None, 3), tf.uint8)
    graph = tf.function(lambda image: resize_rule(image, rule), input_signature=[spec])
    for size in ((16, 16), (7, 90), (100, 130)):
        image = smooth(3, size)
        expected = resize_rule(tf.constant(image, tf.float32), rule)
        np.testing.assert_allclose(graph(tf.constant(image)), expected, atol=1e-3)
        assert float(tf.reduce_min(expected)) >= 0 and float(tf.reduce_max(expected)) <= 255
    same = smooth(4, (16, 16))
    np.testing.assert_allclose(graph(tf.constant(same)), same, atol=1e-3)
    assert graph.experimental_get_tracing_count() == 1


def test_nearest_and_unknown_interpolation():
    image = smooth(5, (8, 8))
    rule = Preprocess(size=16, crop=1.0, interpolation="nearest")
    expected = image.repeat(2, 0).repeat(2, 1)
    np.testing.assert_array_equal(resize_rule(tf.constant(image), rule), expected)
    with pytest.raises(UsageError, match="did you mean 'bicubic'"):
        resize_rule(tf.constant(image), Preprocess(interpolation="bicubi"))


@pytest.mark.parametrize("size", [(64, 64), (131, 97), (200, 70), (63, 500)])
def test_large_images_are_averaged_first_and_it_hardly_shows(size):
    image = smooth(6, size)
    rule = Preprocess(size=14, crop=0.875)
    found = resize_rule(tf.constant(image), rule).numpy()
    reduced = reduce_pixels(image, 16)
    k = min(size) // 32
    assert reduced.shape[:2] == ((size[0] // k, size[1] // k) if k > 1 else size)
    # held images are reduced ones: that must change nothing at all
    np.testing.assert_array_equal(resize_rule(tf.constant(reduced), rule), found)
    np.testing.assert_array_equal(reduce_pixels(reduced, 16), reduced)
    straight = tf.image.resize(image, [n * 16 // min(size) for n in size], antialias=True).numpy()
    y, x = ((n - 14) // 2 for n in straight.shape[:2])
    assert np.abs(straight[y : y + 14, x : x + 14] - found).mean() < 4


def test_load_image_is_what_evaluation_sees(tmp_path):
    for k, name in enumerate("ab"):
        (tmp_path / "d" / name).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(smooth(10 * k + i, (90, 70))).save(tmp_path / "d" / name / f"{i}.png")
    data = load_data(tmp_path / "d")
    seen = {}
    for split in data.splits:
        [(x, _, _)] = collect(batches(data, split, P, batch=9))
        seen |= dict(zip(data.keys(split), x, strict=True))
    for key, expected in seen.items():
        path = tmp_path / "d" / key
        for source in (path, str(path), path.read_bytes(), np.asarray(Image.open(path))):
            np.testing.assert_array_equal(load_image(source, P), expected)


def test_pain_43_balanced_weights_equal_weighting_by_hand():
    images = [smooth(i) for i in range(40)]
    y = np.array([0] * 25 + [1] * 10 + [2] * 5)
    data = load_data((images, y), val_split=0.2, test_split=0)
    counts = data.labels("train").sum(0)
    weights = class_weights(data, "balanced")
    np.testing.assert_allclose(weights, counts.sum() / (3 * counts), rtol=1e-6)
    for _, label, weight in collect(batches(data, "train", P, batch=8, weights=weights)):
        np.testing.assert_allclose(weight, weights[label.argmax(1)], rtol=1e-6)
    two = load_data((images, y > 0), val_split=0.2, test_split=0)
    assert two.task == "binary"
    weights = class_weights(two)
    assert weights.shape == (2,) and weights[0] < 1 < weights[1]
    for _, label, weight in collect(batches(two, "val", P, batch=3, weights=weights)):
        np.testing.assert_allclose(weight, weights[label[:, 0].astype(int)], rtol=1e-6)
    with pytest.raises(UsageError, match="2 classes"):
        batches(two, "val", P, batch=3, weights=np.ones(3))


def test_weights_of_several_labels_are_their_mean():
    y = np.array([[1, 0], [1, 1], [0, 0], [1, 0]] * 10)
    data = load_data(([smooth(i) for i in range(40)], y), classes=["a", "b"])
    assert data.task == "multilabel"
    weights = class_weights(data)
    counts = data.labels("train").sum(0)
    np.testing.assert_allclose(weights, counts.sum() / (2 * counts), rtol=1e-6)
    means = {(1, 0): weights[0], (1, 1): weights.mean(), (0, 0): 1.0}
    for _, label, weight in collect(batches(data, "train", P, batch=9, weights=weights)):
        np.testing.assert_allclose(weight, [means[tuple(row)] for row in label.astype(int)])


def test_arguments_are_checked(data):
    with pytest.raises(UsageError, match="did you mean 'strong'"):
        batches(data, "train", P, batch=4, augment="stron")
    with pytest.raises(UsageError, match="batch 0"):
        batches(data, "train", P, batch=0)
    empty = load_data("digits", test_split=0)
    with pytest.raises(DataError, match="test split is empty"):
        batches(empty, "test", P, batch=4)
