"""Layer-wise learning rates, losses on logits, penalties on kernels."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from dlzoo.callbacks import Constant
from dlzoo.errors import UsageError
from dlzoo.transfer.losses import (
    activation,
    make_loss,
    make_metrics,
    regularize,
)
from dlzoo.transfer.optim import OPTIMIZERS, layer_multipliers, make_optimizer

X = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
Y = np.eye(3, dtype="float32")[np.arange(8) % 3]
STOCK = {
    "sgd": lambda decay: keras.optimizers.SGD(0.1, weight_decay=decay),
    "momentum": lambda decay: keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=decay),
    "nesterov": lambda decay: keras.optimizers.SGD(0.1, 0.9, nesterov=True, weight_decay=decay),
    "adam": lambda decay: keras.optimizers.Adam(0.1, weight_decay=decay),
    "adamw": lambda decay: keras.optimizers.AdamW(0.1, weight_decay=decay),
}


def make():
    keras.utils.set_random_seed(1)
    x = image = keras.Input((4,))
    x = keras.layers.BatchNormalization(name="norm")(keras.layers.Dense(5, name="low")(x))
    x = keras.layers.Dense(3, name="head")(keras.layers.Dense(4, "tanh", name="mid")(x))
    return keras.Model(image, x)


def weights(model):
    return {w.path: w.numpy() for w in model.trainable_weights}


def train(model, optimizer, steps=3, callbacks=(), graph=False):
    """Train by `fit`, in a tf.function if `graph`; return each variable's change."""
    before = weights(model)
    model.compile(optimizer, make_loss("multiclass"), run_eagerly=not graph, jit_compile=False)
    model.fit(X, Y, batch_size=8, epochs=steps, verbose=0, callbacks=list(callbacks))
    return {path: after - before[path] for path, after in weights(model).items()}


def apply(optimizer, steps=3):
    """Apply a few given gradients, with no fit around; return the weights."""
    model, rng = make(), np.random.default_rng(2)
    optimizer.build(model.trainable_variables)
    for _ in range(steps):
        optimizer.apply(
            [rng.normal(size=w.shape).astype("float32") for w in model.trainable_weights]
        )
    return weights(model)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_without_multipliers_it_is_keras_own(name):
    stock = STOCK[name](0.05)
    stock.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    same = apply(make_optimizer(name, 0.1, weight_decay=0.05))
    for path, expected in apply(stock).items():
        np.testing.assert_allclose(same[path], expected, rtol=1e-6, atol=1e-7, err_msg=path)


@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_pain_46_the_multiplier_is_the_ratio_of_the_first_updates(name):
    # Decay is of the size of the gradient's step here, so it must scale along.
    factors = {"low/kernel": 0.25, "low/bias": 0.25, "norm/gamma": 0.5, "norm/beta": 0.0}
    whole = apply(make_optimizer(name, 1e-3, weight_decay=1.0), steps=1)
    scaled = apply(make_optimizer(name, 1e-3, weight_decay=1.0, multipliers=factors), steps=1)
    for path, before in weights(make()).items():
        expected = before + factors.get(path, 1.0) * (whole[path] - before)
        np.testing.assert_allclose(scaled[path], expected, atol=1e-7, err_msg=path)
        assert np.abs(whole[path] - before).max() > 1e-4


def test_decay_spares_vectors_and_follows_the_multiplier():
    model = make()
    optimizer = make_optimizer("sgd", 0.1, weight_decay=0.5, multipliers={"mid/kernel": 0.1})
    before = weights(model)
    optimizer.build(model.trainable_variables)
    optimizer.apply([np.zeros(w.shape, "float32") for w in model.trainable_weights])
    for path, after in weights(model).items():
        shrink = {"low/kernel": 0.95, "mid/kernel": 0.995, "head/kernel": 0.95}.get(path, 1.0)
        np.testing.assert_allclose(after, before[path] * shrink, rtol=1e-6, err_msg=path)


def test_schedules_still_move_the_one_rate():
    optimizer = make_optimizer("sgd", 9.0, multipliers={"low/kernel": 0.5})
    changes = train(make(), optimizer, steps=1, callbacks=[Constant(0.1)], graph=True)
    expected = train(make(), make_optimizer("sgd", 0.1), steps=1)
    np.testing.assert_allclose(changes["low/kernel"], expected["low/kernel"] / 2, rtol=1e-4)
    assert float(optimizer.learning_rate) == pytest.approx(0.1)


def test_config_and_state_round_trip():
    factors = {"low/kernel": 0.5}
    model, optimizer = make(), make_optimizer("adamw", 0.01, multipliers=factors, clipnorm=1.0)
    train(model, optimizer)
    config = json.loads(json.dumps(keras.optimizers.serialize(optimizer)))
    again = keras.optimizers.deserialize(config)
    other = make()
    other.set_weights(model.get_weights())
    again.build(other.trainable_variables)
    store = {}
    optimizer.save_own_variables(store)
    again.load_own_variables(store)
    expected = train(model, optimizer)
    for path, change in train(other, again).items():
        np.testing.assert_array_equal(change, expected[path], err_msg=path)
    assert again.multipliers == factors and again.clipnorm == 1.0


@pytest.mark.parametrize("accumulate", [2, 8])
def test_a_moving_average_reaches_as_far_where_gradients_are_accumulated(accumulate):
    """Keras moves it in every step; it must not forget the sooner the more of them make one."""
    means = []
    for steps in (1, accumulate):
        variable = keras.Variable(np.float32([0.0]))
        optimizer = make_optimizer("sgd", 0.1, ema=0.9, accumulate=steps)
        optimizer.build([variable])
        for _ in range(20 * steps):
            optimizer.apply([keras.ops.convert_to_tensor(np.float32([-1.0]))])
        assert float(variable[0]) == pytest.approx(2.0)
        means.append(float(optimizer._model_variables_moving_average[0][0]))
    assert means[1] == pytest.approx(means[0], abs=0.1)  # a step is 0.1


def test_ema_and_loss_scaling_go_on_working():
    model, optimizer = make(), make_optimizer("sgd", 0.1, ema=0.5, multipliers={"low/kernel": 0.0})
    changes = train(model, keras.optimizers.LossScaleOptimizer(optimizer), steps=2)
    assert np.all(changes["low/kernel"] == 0) and np.any(changes["mid/kernel"] != 0)
    assert optimizer.use_ema and optimizer.ema_momentum == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("adamm", 0.1), r"train\.unknown-optimizer.*did you mean 'adam"),
        (("adam", 0.0), r"train\.lr"),
        (("adam", float("nan")), r"train\.lr"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(UsageError, match=message):
        make_optimizer(*arguments)


def test_multipliers_that_name_nothing():
    with pytest.raises(UsageError, match=r"train\.multipliers"):
        make_optimizer("sgd", 0.1, multipliers={"low": 0.5}).build(make().trainable_variables)


def test_layer_multipliers_count_groups_with_weights():
    model = make()
    _, low, norm, mid, head = model.layers
    groups = {"C1": [low, norm], "C2": [keras.layers.ReLU()], "C3": [mid], "head": [head]}
    factors = layer_multipliers(groups, 0.5)
    assert set(factors) == {w.path for w in model.weights}
    assert factors["head/bias"] == 1.0 and factors["mid/kernel"] == 0.5
    assert factors["low/kernel"] == factors["norm/gamma"] == 0.25
    with pytest.raises(UsageError, match=r"train\.decay"):
        layer_multipliers(groups, 0.0)


REPLICAS = """
import keras, numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from dlzoo.transfer.losses import make_loss, regularize
from dlzoo.transfer.optim import make_optimizer
factors = {"low/kernel": 0.1}
x = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
y = np.eye(3, dtype="float32")[np.arange(16) % 3]
for devices in (["CPU:0"], ["CPU:0", "CPU:1"]):
    keras.utils.set_random_seed(0)
    with tf.distribute.MirroredStrategy(devices).scope():
        low, head = keras.layers.Dense(5, "tanh", name="low"), keras.layers.Dense(3)
        image = keras.Input((4,))
        model = keras.Model(image, head(low(image)))
        optimizer = make_optimizer("adamw", 0.05, weight_decay=0.1, multipliers=factors)
        regularize([low], l2=0.01)
        model.compile(optimizer, make_loss("multiclass"), jit_compile=False)
    history = model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    print(*history.history["loss"], *np.concatenate([w.ravel() for w in model.get_weights()]))
"""


@pytest.mark.full
def test_two_replicas_train_as_one():
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-c", REPLICAS], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert done.returncode == 0
    one, two = (np.array(line.split(), float) for line in done.stdout.splitlines())
    assert len(one) == 2 + 4 * 5 + 5 + 5 * 3 + 3
    np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-5)


def test_losses_and_metrics_are_on_logits():
    logits = np.array([[2.0, -1.0, 0.5], [0.3, -0.2, -3.0]], "float32")
    one_hot = np.array([[1, 0, 0], [0, 1, 0]], "float32")
    softmax = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    loss = float(make_loss("multiclass")(one_hot, logits))
    assert loss == pytest.approx(-np.log(softmax[[0, 1], [0, 1]]).mean(), rel=1e-5)
    smooth = one_hot * 0.7 + 0.1
    assert float(make_loss("multiclass", 0.3)(one_hot, logits)) == pytest.approx(
        -(smooth * np.log(softmax)).sum(1).mean(), rel=1e-5
    )
    many = np.array([[1, 0, 0], [1, 1, 0]], "float32")
    sigmoid = 1 / (1 + np.exp(-logits))
    expected = -np.where(many > 0, np.log(sigmoid), np.log(1 - sigmoid)).mean()
    assert float(make_loss("multilabel")(many, logits)) == pytest.approx(expected, rel=1e-5)

    def acc(task, labels, logits):
        (metric,) = make_metrics(task)
        assert metric.name == "acc"
        metric.update_state(labels, logits)
        return float(metric.result())

    assert acc("multiclass", one_hot, logits) == 0.5
    assert acc("multilabel", many, logits) == pytest.approx(4 / 6)
    assert acc("binary", [[1.0], [0.0], [0.2]], [[0.2], [0.3], [-4.0]]) == pytest.approx(2 / 3)
    assert [activation(t) for t in ("binary", "multiclass", "multilabel")] == [
        "sigmoid", "softmax", "sigmoid",
    ]  # fmt: skip
    for function in (make_loss, make_metrics, activation):
        with pytest.raises(UsageError, match=r"train\.unknown-task"):
            function("regression")


def test_class_weights_are_sample_weights():
    labels = np.eye(3, dtype="float32")[[0, 0, 0, 0, 1, 1, 0, 1]]  # class 2 is absent
    sample = np.array([0.8, 0.8, 0.8, 0.8, 4 / 3, 4 / 3, 0.8, 4 / 3], "float32")
    model = make()
    model.compile(make_optimizer("sgd", 0.1), make_loss("multiclass"), run_eagerly=True)
    logits = model.predict(X, verbose=0)
    losses = -np.log((np.exp(logits) * labels).sum(1) / np.exp(logits).sum(1))
    told = model.evaluate(X, labels, sample_weight=sample, batch_size=8, verbose=0)
    assert told == pytest.approx((sample * losses).mean(), rel=1e-5)
    by_class = {0: 0.8, 1: 4 / 3, 2: 0.0}
    one, other = make(), make()
    for net, weighting in ((one, {"sample_weight": sample}), (other, {"class_weight": by_class})):
        net.compile(make_optimizer("sgd", 0.1), make_loss("multiclass"), run_eagerly=True)
        net.fit(X, labels, batch_size=8, verbose=0, **weighting)
    np.testing.assert_allclose(one.get_weights()[0], other.get_weights()[0], rtol=1e-5)


def test_penalty_joins_the_loss_is_replaced_and_ends_in_no_artefact(tmp_path):
    model = make()
    own = keras.regularizers.L2(0.5)
    model.layers[1].kernel.regularizer = own
    kernels = [layer.kernel.numpy() for layer in model.layers if hasattr(layer, "kernel")]

    def told():
        model.compile("sgd", lambda labels, logits: 0.0 * logits, run_eagerly=True)
        return model.evaluate(X, Y, verbose=0)

    alone = 0.5 * np.sum(kernels[0] ** 2)
    squares = sum(np.sum(k**2) for k in kernels)
    absolutes = sum(np.sum(np.abs(k)) for k in kernels)
    assert told() == pytest.approx(alone, rel=1e-5)
    regularize(model.layers, l1=0.1, l2=0.2)
    assert told() == pytest.approx(alone + 0.1 * absolutes + 0.2 * squares, rel=1e-5)
    regularize(model.layers, l2=0.3)
    assert told() == pytest.approx(alone + 0.3 * squares, rel=1e-5)
    model.layers[4].trainable = False
    assert told() == pytest.approx(alone + 0.3 * (squares - np.sum(kernels[2] ** 2)), rel=1e-5)
    clone = keras.Model.from_config(model.get_config())
    assert clone.losses == []
    regularize(model.layers)
    assert told() == pytest.approx(alone, rel=1e-5) and model.layers[1].kernel.regularizer is own
