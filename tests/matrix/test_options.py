"""Any legal size, number of channels and number of classes builds; any illegal one is refused."""

from __future__ import annotations

import re

import numpy as np
import pytest
from dlzoo import zoo
from dlzoo.errors import UsageError
from dlzoo.zoo import graph
from golden import random_weights as rw
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import VARIED, rows

SLOW = {"convnext_tiny", "shufflenet_v2_x0_5"}  # to build: three times here


@settings(max_examples=12)
@given(st.data())
@pytest.mark.parametrize("name", ["mlp", "lenet5"])
def test_any_legal_shape_builds(name, data):
    least = zoo.resolve(name)[0].min_size
    side = st.integers(least, least + 40)
    shape = data.draw(st.tuples(side, side, st.integers(1, 6)))
    classes = data.draw(st.integers(0, 50))
    model = zoo.create_model(name, input_shape=shape, num_classes=classes)
    assert model.input_shape == (None, *shape)
    assert model.get_layer("normalize").output.shape == (None, *shape)
    if classes:
        assert model.output_shape == (None, classes)
    assert sum(map(len, graph.groups(model).values())) == len(model.layers)


@settings(max_examples=3)
@given(
    height=st.integers(32, 200),
    width=st.integers(32, 200),
    in_chans=st.integers(1, 6),
    classes=st.integers(1, 50),
)
@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0"])
def test_any_legal_shape_builds_a_convnet(name, height, width, in_chans, classes):
    model = zoo.create_model(
        name, input_shape=(height, width), in_chans=in_chans, num_classes=classes
    )
    assert model.output_shape == (None, classes)
    for tap, tensor in graph.taps(model).items():
        stride = 2 ** int(tap[1:])
        assert tensor.shape[1:3] == (-(-height // stride), -(-width // stride)), tap


@settings(max_examples=3)
@given(st.data())
@pytest.mark.parametrize("name", rows(zoo.list_models(), VARIED - SLOW))
def test_any_legal_shape_answers(name, data):
    """At any size from the least on, odd or even, square or not, grey or colour."""
    variant = zoo.variants()[name]
    side = st.integers(variant.min_size, variant.min_size + 60)
    shape = data.draw(st.tuples(side, side, st.sampled_from([1, 3, 4])))
    classes = data.draw(st.integers(1, 9))
    pool = "avg" if variant.params > 1e8 else None
    model = zoo.create_model(name, input_shape=shape, num_classes=classes, pool=pool)
    logits = np.asarray(model(rw.uniform("x", (2, *shape), 0, 255), training=False))
    assert logits.shape == (2, classes) and np.isfinite(logits).all()
    assert sum(map(len, graph.groups(model).values())) == len(model.layers)


@settings(max_examples=40)
@given(st.data())
def test_any_size_below_the_least_is_refused(data):
    name = data.draw(st.sampled_from([n for n in zoo.list_models(max_params=1e7) if n != "mlp"]))
    variant, _ = zoo.resolve(name)
    good, bad = st.integers(variant.min_size, 500), st.integers(-3, variant.min_size - 1)
    sides = data.draw(st.tuples(good, bad) | st.tuples(bad, good) | bad)
    weights = variant.tags[0] if variant.tags else None  # refused before any file is looked for
    with pytest.raises(UsageError, match=rf"at least {variant.min_size} pixels") as caught:
        zoo.create_model(name, input_shape=sides, weights=weights, offline=True)
    assert caught.value.id == "model.size" and re.search(r"--size \d+", caught.value.hint)


@pytest.mark.parametrize("shape", [(63, 63), (63, 130), (96, 250)])
def test_dense_layers_of_a_paper_take_any_size_inside_a_graph(shape):
    """Their input is averaged to the paper's size, whatever the last map's."""
    model = zoo.create_model("alexnet", input_shape=shape, num_classes=2)
    x = rw.uniform("images", (2, *shape, 3), 0, 255)
    assert np.abs(model.predict(x, verbose=0) - model(x, training=False)).max() < 1e-5
