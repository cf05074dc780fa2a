"""The building blocks that a course names are options of every model that allows them."""

import re

import keras
import numpy as np
import pytest
from dlzoo import zoo
from dlzoo.errors import UsageError
from dlzoo.zoo import graph
from golden import random_weights as rw

SMALL = {"input_shape": 64, "num_classes": 5}


def photos(n=2, size=64):
    return np.rint(rw.uniform("photos", (n, size, size, 3), 0, 255))


def names(model):
    return [layer.name for layer in model.layers]


@pytest.mark.parametrize("name", ["lenet5", "resnet18", "mobilenet_v3_small"])
def test_activation_takes_the_place_of_every_hidden_one(name, tmp_path):
    usual = zoo.create_model(name, num_classes=5, in_chans=3, input_shape=64)
    other = zoo.create_model(name, num_classes=5, in_chans=3, input_shape=64, activation="gelu")
    assert names(usual) == names(other)
    for before, after in zip(usual.layers, other.layers, strict=True):
        old = getattr(before, "activation", keras.activations.linear)
        if old is not keras.activations.linear:
            stays = before.name.endswith("_gate")
            assert after.activation is (old if stays else keras.activations.gelu), before.name
    rw.fill(other)
    other.save(tmp_path / "x.keras")
    again = keras.models.load_model(tmp_path / "x.keras", safe_mode=True)
    assert np.array_equal(again(photos()), other(photos()))
    rw.fill(usual)
    assert np.abs(np.asarray(usual(photos())) - other(photos())).max() > 1e-2


def test_an_unknown_activation_is_refused():
    with pytest.raises(UsageError, match="reluu"):
        zoo.create_model("lenet5", activation="reluu")


def test_penalties_count_every_kernel_and_nothing_else(tmp_path):
    model = zoo.create_model("mobilenet_v2", l1=1e-3, l2=1e-2, **SMALL)
    kernels = [w.numpy() for la in model.layers for w in la.weights if "kernel" in w.name]
    expected = sum(1e-3 * np.abs(k).sum() + 1e-2 * (k**2).sum() for k in kernels)
    assert len(kernels) == 53
    assert float(sum(model.losses)) == pytest.approx(expected, rel=1e-4)
    assert not zoo.create_model("mobilenet_v2", **SMALL).losses
    model.save(tmp_path / "x.keras")
    again = keras.models.load_model(tmp_path / "x.keras", safe_mode=True)
    assert float(sum(again.losses)) == pytest.approx(expected, rel=1e-4)


def test_padding_is_the_one_asked_for():
    same, torch = (zoo.create_model("mobilenet_v2", padding=p, **SMALL) for p in ("same", "torch"))
    assert len(torch.layers) == len(same.layers) + 5  # one pad for each stride
    rw.fill(same)
    for layer in graph.weighted(same.layers):
        torch.get_layer(layer.name).set_weights(layer.get_weights())
    x = photos()
    assert np.abs(np.asarray(same(x)) - torch(x)).max() > 1e-3
    assert graph.built(torch).create["padding"] == "torch"


def test_dropped_paths_are_dropped_in_training_only():
    model = zoo.create_model("efficientnet_b0", drop_path=0.5, dropout=0, **SMALL)
    rates = [la.rate for la in model.layers if isinstance(la, keras.layers.Dropout)]
    assert rates == sorted(rates) and 0 < rates[0] < rates[-1] < 0.5
    assert all(
        la.noise_shape == (None, 1, 1, 1) for la in model.layers if hasattr(la, "noise_shape")
    )
    none = zoo.create_model("efficientnet_b0", drop_path=0, dropout=0, **SMALL)
    assert not any(isinstance(layer, keras.layers.Dropout) for layer in none.layers)
    for layer in graph.weighted(model.layers):
        none.get_layer(layer.name).set_weights(layer.get_weights())
    assert np.array_equal(model(photos(), training=False), none(photos(), training=False))


@pytest.mark.parametrize(
    ("option", "has"), [({"padding": "torch"}, "mobilenet_v2"), ({"drop_path": 0.1}, "convnext")]
)
def test_an_option_that_the_architecture_lacks_is_refused(option, has):
    with pytest.raises(UsageError, match=r"model\.option") as caught:
        zoo.create_model("vgg11", pool="avg", **option)
    assert has in caught.value.hint
    zoo.create_model("lenet5", drop_path=0)  # nothing asked for


@pytest.mark.parametrize(
    "option",
    [
        *({"padding": "sane"}, {"drop_path": 1.5}, {"l2": -1.0}, {"dropout": 1.0}),
        *({"dropout": -0.1}, {"in_chans": 0}, {"in_chans": -1}, {"num_classes": -1}),
    ],
)
def test_an_impossible_value_is_refused(option):
    [(name, value)] = option.items()
    with pytest.raises(UsageError, match=re.escape(f"impossible: {name}={value!r}")) as caught:
        zoo.create_model("efficientnet_b0", **{**SMALL, **option})
    assert caught.value.id == "model.option"


def test_options_are_kept_with_a_model_so_that_it_can_be_built_again():
    options = {"activation": "relu", "l2": 1e-4, "padding": "torch", "dropout": 0.3}
    first = zoo.create_model("mobilenet_v2", **options, **SMALL)
    create = dict(graph.built(first).create)
    create["input_shape"] = tuple(create["input_shape"])
    again = zoo.create_model(**create)
    assert [la.get_config() for la in again.layers] == [la.get_config() for la in first.layers]


@pytest.mark.full
def test_grouped_convolutions_are_computed_as_keras_does(tmp_path):
    model = zoo.create_model("resnext50_32x4d", **SMALL)
    rw.fill(model)
    grouped = [la for la in model.layers if getattr(la, "groups", 1) > 1]
    assert len(grouped) == 16 and {type(la) for la in grouped} == {keras.layers.Conv2D}
    model.save(tmp_path / "x.keras")
    plain = keras.models.load_model(tmp_path / "x.keras", safe_mode=True)  # Keras' own kernels
    x = photos()
    expected = np.asarray(plain(x))
    assert np.abs(np.asarray(model(x)) - expected).max() < 1e-4 * expected.std()
