"""The auxiliary classifiers of GoogLeNet and Inception v3: built when asked for, and only then."""

import keras
import numpy as np
import pytest
from dlzoo import zoo
from dlzoo.errors import UsageError
from equality import read
from golden import random_weights as rw
from rows import rows
from safetensors.numpy import save_file

HEADS = {"googlenet": ["logits", "aux1", "aux2"], "inception_v3_tv": ["logits", "aux1"]}
SIZE = {"googlenet": 64, "inception_v3_tv": 299}


@pytest.mark.parametrize("name", rows(HEADS, {"googlenet"}))
def test_they_are_there_when_asked_for(name):
    options = {"num_classes": 7, "input_shape": SIZE[name]}
    whole = zoo.create_model(name, aux=True, **options)
    assert {head: tensor.shape for head, tensor in whole.output.items()} == dict.fromkeys(
        HEADS[name], (None, 7)
    )
    usual = zoo.create_model(name, **options)
    extra = [la.name for la in whole.layers if la.name not in {la.name for la in usual.layers}]
    assert extra and all(layer.startswith("aux") for layer in extra)
    assert not any(layer.name.startswith("aux") for layer in usual.layers)


@pytest.mark.full
def test_training_moves_them():
    model = zoo.create_model("googlenet", aux=True, num_classes=3, input_shape=64)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(
        "sgd",
        loss=dict.fromkeys(HEADS["googlenet"], loss),
        loss_weights={"logits": 1.0, "aux1": 0.3, "aux2": 0.3},
        jit_compile=False,
    )
    before = {la.name: la.get_weights() for la in model.layers if la.name.startswith("aux")}
    x = np.rint(rw.uniform("x", (4, 64, 64, 3), 0, 255))
    y = np.arange(4) % 3
    model.train_on_batch(x, dict.fromkeys(HEADS["googlenet"], y))
    for name, weights in before.items():
        after = model.get_layer(name).get_weights()
        assert not weights or not np.array_equal(weights[0], after[0]), name


def test_images_too_small_for_them_are_refused():
    with pytest.raises(UsageError, match=r"too small.*inception_v3") as caught:
        zoo.create_model("inception_v3", aux=True, input_shape=128)
    assert caught.value.id == "model.size" and "299" in caught.value.hint


@pytest.mark.parametrize("name", ["googlenet"])
def test_a_file_of_torchvision_has_them_too(name, tmp_path):
    tensors = rw.state_dict(read(name)[0])
    assert any(tensor.startswith("aux") for tensor in tensors)
    save_file(tensors, tmp_path / "x.safetensors")
    model = zoo.create_model(name, weights=tmp_path / "x.safetensors", aux=True)
    kernel = model.get_layer("aux2_logits").kernel.numpy()
    assert np.array_equal(kernel.T, tensors["aux2.fc2.weight"])
    first = model.get_layer("aux1_fc1").kernel.numpy()  # behind a map that torch flattens its way
    expected = tensors["aux1.fc1.weight"].reshape(1024, 128, 4, 4).transpose(2, 3, 1, 0)
    assert np.array_equal(first, expected.reshape(2048, 1024))


def test_other_models_have_none():
    with pytest.raises(UsageError, match="no auxiliary classifiers"):
        zoo.create_model("resnet18", aux=True)
    for none in ({"num_classes": 0}, {"features_only": True}):
        with pytest.raises(UsageError, match="beside logits"):
            zoo.create_model("googlenet", aux=True, **none)
