"""The view that trains a tail faster: same variables, outputs, gradients, seeds and penalties."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from dlzoo import create_model
from dlzoo.transfer.freeze import frozen_part, unfreeze
from dlzoo.transfer.losses import make_loss, regularize
from dlzoo.transfer.optim import make_optimizer
from dlzoo.transfer.tail import trainable_view

L = keras.layers
LABELS = np.eye(5, dtype="float32")[np.arange(4) % 5]


def stir(model):
    """Give normalisations something to do: fresh ones multiply by one and add nothing."""
    rng = np.random.default_rng(1)
    for layer in model.layers:
        if isinstance(layer, L.BatchNormalization):
            for weight in layer.weights:
                weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    return model


def tail(name, **options):
    model = stir(create_model(name, num_classes=5, input_shape=64, **options))
    unfreeze(model, "C5")
    return frozen_part(model).top


def some(model):
    shape = (4, *model.input.shape[1:])
    return np.random.default_rng(0).uniform(0, 1, shape).astype("float32")


def test_dropout_drops_the_same_in_training_alone():
    (top, other), outputs = (small(), small()), {}
    view = trainable_view(other)
    for training in (True, False):
        outputs[training] = view(some(top), training=training)
        near(outputs[training], top(some(top), training=training))
    assert np.abs(np.asarray(outputs[True]) - np.asarray(outputs[False])).max() > 0.01


def results(model, variables, training=False):
    """Return outputs and the gradient of each variable."""

    x = tf.constant(some(getattr(model, "top", model)))
    with tf.GradientTape() as tape:
        logits = model(x, training=training)
        loss = make_loss("multiclass")(LABELS, logits) + sum(model.losses)
    return logits, tape.gradient(loss, [variable.value for variable in variables])


def near(found, expected):
    found, expected = np.asarray(found), np.asarray(expected)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def small(twice=False, activation=None, branch=False, dtype=None, padding="same"):
    """A convolution, strided and 1x1, with its normalisation, in front of a head."""
    keras.utils.set_random_seed(3)
    image = keras.Input((7, 7, 6))
    convolution = L.Conv2D(6, 1, 2, padding, activation=activation, name="conv", dtype=dtype)
    norm = L.BatchNormalization(name="norm", trainable=False)
    x = y = convolution(image)
    x = norm(x)
    if twice:
        x = norm(x)
    x = L.Add()([x, y]) if branch else x
    x = L.Dropout(0.5, seed=4)(L.GlobalAveragePooling2D()(L.ReLU()(x)))
    return stir(keras.Model(image, L.Dense(5, name="logits")(x)))


@pytest.mark.parametrize("name", ["efficientnet_lite0", "mobilenet_v3_small", "resnet18"])
def test_every_family_gives_the_same_outputs_and_gradients(name):
    # a smooth activation: rounding may put a value on the other side of a ReLU's corner
    top = tail(name, pool="avg", activation="swish")
    view = trainable_view(top)
    assert view is not top
    variables = top.trainable_variables
    assert [id(v) for v in view.trainable_variables] == [id(v) for v in variables]
    (logits, gradients), (expected, exact) = results(view, variables), results(top, variables)
    near(logits, expected)
    for gradient, other in zip(gradients, exact, strict=True):
        near(gradient, other)


@pytest.mark.parametrize("options", [{}, {"activation": "relu"}, {"branch": True}])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_a_strided_pointwise_convolution(options, padding):
    top = small(padding=padding, **options)
    view = trainable_view(top)
    assert view is not top
    found, expected = (results(model, top.trainable_variables) for model in (view, top))
    near(found[0], expected[0])
    for gradient, other in zip(found[1], expected[1], strict=True):
        near(gradient, other)


def test_what_it_does_not_understand_stays_as_it_is():
    assert isinstance(trainable_view(small()), keras.Model)
    for top in (small(twice=True), small(dtype="mixed_float16")):
        assert trainable_view(top) is top
    vgg = tail("vgg11")  # its convolutions are 3x3, with nothing behind them
    assert trainable_view(vgg) is vgg


def test_grouped_convolutions_stay_as_they_are():
    image = keras.Input((7, 7, 6))
    x = L.Conv2D(6, 3, groups=3, name="conv")(image)
    top = keras.Model(image, L.BatchNormalization(trainable=False)(x))
    assert trainable_view(top) is top


def test_a_norm_that_trains_is_left_to_keras():
    top = small()
    top.get_layer("norm").trainable = True
    view = trainable_view(top)
    before = top.get_layer("norm").moving_mean.numpy()
    view(some(top), training=True)
    assert (top.get_layer("norm").moving_mean.numpy() != before).all()


def test_fit_trains_the_flat_model_as_before_with_dropout_and_penalty():
    ended = []
    for wrap in (lambda top: top, trainable_view):
        top = small()
        regularize(top.layers, l2=0.1)
        model, statistics = wrap(top), top.get_layer("norm").get_weights()
        model.compile(make_optimizer("momentum", 0.1), make_loss("multiclass"), jit_compile=False)
        history = model.fit(some(top), LABELS, epochs=3, shuffle=False, verbose=0).history
        for now, then in zip(top.get_layer("norm").get_weights(), statistics, strict=True):
            np.testing.assert_array_equal(now, then)
        ended.append((history["loss"], top.get_weights()))
    np.testing.assert_allclose(ended[1][0], ended[0][0], rtol=1e-5)
    for found, expected in zip(ended[1][1], ended[0][1], strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_statistics_that_a_checkpoint_brings_later_count():
    top = small()
    view = trainable_view(top)
    top.get_layer("norm").moving_mean.assign(np.full(6, 3.0))
    near(view(some(top)), top(some(top)))
