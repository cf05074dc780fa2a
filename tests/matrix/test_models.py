"""The rows that every registered model must pass (docs/ARCHITECTURE.md, tests).

Rows 12 and 15 are in test_golden.py and test_keras_applications.py, row 14 in test_replicas.py.
"""

from __future__ import annotations

import json
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from dlzoo import zoo
from dlzoo.errors import UsageError
from dlzoo.transfer.memory import traced_graphs_let_go
from dlzoo.zoo import graph
from equality import GOLDEN
from golden import random_weights as rw
from rows import VARIED, rows

VARIANTS = zoo.variants()
LAYER_NAME = re.compile(r"[A-Za-z0-9.][A-Za-z0-9_.\\/>-]*")
SPDX = {"Apache-2.0", "BSD-3-Clause", "CC-BY-4.0", "CC-BY-NC-4.0", "MIT"}

NO_HASH = {
    uri
    for files in json.loads((GOLDEN / "keras_applications.json").read_text()).values()
    for uri, digest in files.values()
    if digest is None
}
# SavedModels take long to write, and other tests write some
FEW = {"lenet5", "resnet18"}
# a training step for each group of layers takes seconds
STEPPED = {"mlp", "lenet5", "resnet18", "convnext_tiny", "efficientnet_lite0"}
some = pytest.mark.parametrize("name", rows(zoo.list_models(), FEW), indirect=True)
varied = pytest.mark.parametrize("name", rows(zoo.list_models(), VARIED), indirect=True)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def channels(name: str) -> dict[str, int]:
    return dict(VARIANTS[name].taps)


def run(model, x):
    return keras.ops.convert_to_numpy(model(x, training=False))


def numbers(variables) -> int:
    return sum(int(np.prod(v.shape)) for v in variables)


@pytest.fixture
def restored(build):
    """Give the light model, and undo afterwards what the test did to it."""
    model = build(light=True)
    yield model
    rw.fill(model)
    for layer in model.layers:
        layer.trainable = True


def is_norm(layer) -> bool:
    return isinstance(layer, keras.layers.BatchNormalization)


def test_01_forward_at_the_smallest_size(name, build, images):
    model = build(light=True, input_shape=VARIANTS[name].min_size)
    logits = run(model, images(model))
    assert logits.shape == (2, 7) and logits.dtype == np.float32
    assert np.isfinite(logits).all()
    assert np.abs(logits[0] - logits[1]).max() > 1e-4  # the images matter
    assert [layer.name for layer in model.layers[:2]] == ["image", "normalize"]
    assert not any(isinstance(layer, keras.Model) for layer in model.layers)  # flat


def test_02_every_trainable_variable_has_a_gradient(build, images):
    model = build(light=True)
    with tf.GradientTape() as tape:
        logits = model(images(model), training=True)
        loss = LOSS(np.array([1, 4]), logits)
    variables = model.trainable_variables
    for variable, gradient in zip(
        variables, tape.gradient(loss, [v.value for v in variables]), strict=True
    ):
        assert gradient is not None, variable.path
        assert np.isfinite(gradient).all() and np.any(gradient), variable.path


@varied
def test_03_head_swap(name, build):
    taps = channels(name)
    assert build(light=True, num_classes=5, in_chans=4).output_shape == (None, 5)
    bare = build(num_classes=0)
    assert "logits" not in {layer.name for layer in bare.layers}
    if not taps:
        assert len(bare.output_shape) == 2
        with pytest.raises(UsageError, match=r"model\.taps"):
            build(num_classes=0, pool="avg")
        return
    last = list(taps)[-1]
    assert bare.output is graph.taps(bare)[last]
    assert bare.output_shape[-1] == taps[last]


def test_04_taps(name, build):
    expected = channels(name)
    assert {tap: tensor.shape[-1] for tap, tensor in graph.taps(build(light=True)).items()} == (
        expected
    )
    if not expected:
        with pytest.raises(UsageError, match=r"model\.no-taps"):
            build(features_only=True)
        return
    model = build(features_only=True, input_shape=(None, None))
    assert list(model.output) == list(expected)
    size, step = VARIANTS[name].size, 64
    small, large = (model.compute_output_shape((1, s, s, model.input_shape[3])) for s in
                    (size, size + step))  # fmt: skip
    for tap in expected:  # so many pixels more in the image are one more in the map
        assert large[tap][1] - small[tap][1] == step / 2 ** int(tap[1:]), tap


def test_05_figures_are_those_of_the_model(name, build):
    variant = VARIANTS[name]
    model = build(whole=True)
    statistics = sum(numbers(layer.weights[-2:]) for layer in model.layers if is_norm(layer))
    assert numbers(model.weights) - statistics == variant.params
    found = graph.gmacs(model)
    assert round(found, 3 if found > 0.01 else 4) == variant.gmacs
    assert model.input_shape == (None, variant.size, variant.size, variant.in_chans)
    assert model.output_shape == (None, variant.num_classes)
    assert [n for n in (layer.name for layer in model.layers) if not LAYER_NAME.fullmatch(n)] == []


def test_05_papers_are_named(name):
    variant = VARIANTS[name]
    assert re.fullmatch(r"[a-z][a-z0-9_]*", name)
    assert re.match(r"arXiv:\d{4}\.\d{4,5}$|.* doi:10\.\S+$", variant.family.paper)
    assert 1980 < variant.family.year < 2100
    assert variant.preprocess.std and min(variant.preprocess.std) > 0


def test_05_checkpoints_are_described(name):
    for row in VARIANTS[name].weights:
        assert re.fullmatch(r"[a-z][a-z0-9_]*", row.tag)
        assert re.match(r"(https|pkg|file|hf)://\S+$", row.uri)
        assert row.licence in SPDX and row.origin and row.reader in ("torch", "keras")
        assert (row.top1 is None) == (row.classes == 0)
        assert row.top1 is None or 40 < row.top1 < 100
        assert row.top5 is None or row.top1 < row.top5 < 100
        hashes = [(64, 64, row.sha256), (32, 32, row.md5), (8, 10, row.sha256_prefix)]
        for least, most, value in hashes:
            assert value is None or re.fullmatch(rf"[0-9a-f]{{{least},{most}}}", value)
        # For MobileNets the origin publishes none: such a file must be fetched by hand.
        assert any(value for *_, value in hashes) or row.uri in NO_HASH, row.tag


def test_06_groups_partition_the_layers_in_order(name, build):
    model = build(whole=True)
    groups = graph.groups(model)
    assert list(groups) == [*channels(name), "head"]
    place = {layer.name: i for i, group in enumerate(groups.values()) for layer in group}
    assert sum(map(len, groups.values())) == len(model.layers) == len(place)
    assert all(groups.values())
    for layer in model.layers[1:]:
        assert all(place[source.name] <= place[layer.name] for source in graph.sources(layer))
    assert model.get_layer("logits") in groups["head"]


@pytest.mark.parametrize("name", rows(zoo.list_models(), STEPPED), indirect=True)
def test_07_freezing(restored, images):
    model = restored
    groups = list(graph.groups(model).values())
    x, y = images(model), np.array([1, 4])
    start = model.get_weights()
    for k in range(len(groups) + 1):
        model.set_weights(start)  # after one step a large network may have no gradients left
        for i, group in enumerate(groups):
            for layer in group:
                layer.trainable = i >= k and not is_norm(layer)
        free = [layer for group in groups[k:] for layer in group if not is_norm(layer)]
        assert numbers(model.trainable_variables) == numbers(v for la in free for v in la.weights)
        free_variables = {w.path for layer in free for w in layer.weights}
        if free_variables:
            sgd = keras.optimizers.SGD(0.01, clipnorm=1.0)
            model.compile(sgd, LOSS, run_eagerly=True)
            model.train_on_batch(x, y)
        before = zip(model.weights, start, strict=True)
        moved = {w.path for w, value in before if not np.array_equal(w.numpy(), value)}
        assert moved == free_variables, f"the first {k} groups frozen"


@varied
def test_08_pain_21_keras_file_keeps_outputs_and_frozen_layers(restored, images, tmp_path):
    model = restored
    first = next(iter(graph.groups(model).values()))
    for layer in first:
        layer.trainable = False
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    x = images(model)
    # a reloaded grouped convolution is Keras' own, of another kernel than that of the zoo
    grouped = any(getattr(layer, "groups", 1) > 1 for layer in model.layers)
    np.testing.assert_allclose(run(again, x), run(model, x), rtol=0, atol=1e-5 if grouped else 0)
    frozen = [
        [la.name for la in graph.weighted(m.layers) if not la.trainable] for m in (model, again)
    ]
    assert frozen[0] == frozen[1]
    (tmp_path / "model.keras").unlink()


@pytest.fixture
def as_it_is():
    """Let TensorFlow compute graphs unchanged: it rewrites them, and rounding grows with layers."""
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    yield
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": False})


@some
@pytest.mark.usefixtures("as_it_is")
def test_08_saved_model_answers_the_same(build, images, tmp_path):
    model = build(light=True)
    with traced_graphs_let_go():  # else each is kept, and the weights with it
        model.export(tmp_path / "saved", verbose=False)
        loaded = tf.saved_model.load(str(tmp_path / "saved"))  # its functions die with it
    x = images(model)
    assert np.abs(loaded.serve(x) - run(model, x)).max() < 1e-5


def test_09_layer_names_stay(build):
    first, second = build(light=True), build(light=True, num_classes=5, in_chans=4)
    assert [layer.name for layer in first.layers] == [layer.name for layer in second.layers]


@pytest.fixture
def mixed(build):
    """Give the light model, computing in float16."""
    keras.config.set_dtype_policy("mixed_float16")
    try:
        return build(light=True, dropout=0.1)  # an option of its own: not the cached float32 one
    finally:
        keras.config.set_dtype_policy("float32")


@varied
def test_10_mixed_precision(mixed, images):
    model = mixed
    kernels = [layer for layer in model.layers if hasattr(layer, "kernel")]
    assert {layer.compute_dtype for layer in kernels[:-1]} == {"float16"}
    assert model.get_layer("normalize").compute_dtype == "float32"
    logits = run(model, images(model))
    assert logits.dtype == np.float32 and np.isfinite(logits).all()


@varied
def test_10_mixed_precision_in_training(mixed, images):
    logits = keras.ops.convert_to_numpy(mixed(images(mixed), training=True))
    assert logits.dtype == np.float32 and np.isfinite(logits).all()


@varied
@pytest.mark.parametrize("options", [{"in_chans": 1}, {"num_classes": 5, "in_chans": 4}])
def test_11_other_channels(build, images, options):
    model = build(light=True, **options)
    assert model.input_shape[3] == options["in_chans"]
    assert np.isfinite(run(model, images(model))).all()


def test_13_preprocessing_in_numpy(name, images):
    variant = VARIANTS[name]
    for rule in {variant.preprocess, *(row.preprocess for row in variant.weights)}:
        small = zoo.create_model("lenet5", in_chans=len(rule.mean), preprocess=rule)
        x = images(small)
        ours = run(keras.Model(small.input, small.get_layer("normalize").output), x)
        mean, std = np.array(rule.mean), np.array(rule.std)
        expected = (x.astype("float64") - mean) / std
        assert np.abs(ours - expected).max() < 1e-4 / std.min()


@varied
def test_cut_anywhere(name, build, images):
    model = build(light=True)
    whole = run(model, x := images(model))
    for place in [*channels(name), "features"]:
        bottom, top = graph.cut(model, place)
        assert np.allclose(run(top, bottom(x, training=False)), whole, atol=1e-6), place
        together = {id(v) for half in (bottom, top) for v in half.weights}
        assert together == {id(v) for v in model.weights}
