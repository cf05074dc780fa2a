"""`GradientWatch` in a plain `fit`: its norms are those of the gradients, and nothing changes."""

import csv

import keras
import numpy as np
import pytest
import tensorflow as tf
from dlzoo.callbacks import GradientWatch, Resume
from dlzoo.errors import UsageError

X = np.random.default_rng(0).normal(size=(12, 3)).astype("float32")
Y = X @ np.array([[1.0], [-2.0], [0.5]], "float32")


def make(optimizer="sgd", **options):
    keras.utils.set_random_seed(0)
    layers = [keras.Input((3,)), keras.layers.Dense(4, "tanh", name="low")]
    model = keras.Sequential([*layers, keras.layers.Dense(1, name="high")])
    model.compile(optimizer, "mse", **options)
    return model


def fit(model, *callbacks, epochs=1, **options):
    return model.fit(
        X, Y, batch_size=4, epochs=epochs, shuffle=False, verbose=0, callbacks=[*callbacks],
        **options,
    )  # fmt: skip


def weights(model):
    return [np.array(v) for v in model.variables]


def by_hand(model, x, y):
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(model(x) - y))
    kernel, bias, *high = tape.gradient(loss, model.trainable_variables)
    norm = lambda *parts: float(np.sqrt(sum(np.sum(np.square(p)) for p in parts)))  # noqa: E731
    return {"low": norm(kernel, bias), "high": norm(*high)}


@pytest.mark.parametrize("eager", [False, True])
def test_each_row_has_the_norms_of_the_gradients(eager):
    watched, stepped, watch = make(run_eagerly=eager), make(), GradientWatch()
    fit(watched, watch)
    for i in range(3):
        x, y = X[4 * i : 4 * i + 4], Y[4 * i : 4 * i + 4]
        expected = by_hand(stepped, x, y)
        assert watch.rows[i]["step"] == i + 1
        assert {n: watch.rows[i][n] for n in expected} == pytest.approx(expected, rel=1e-5)
        stepped.train_on_batch(x, y)


def test_training_is_the_same_with_it_and_after_it():
    watched, alone, watch = make("adam"), make("adam"), GradientWatch(every=2)
    for _ in range(2):  # the second fit would find the first one's compiled step
        fit(watched, watch)
        fit(alone)
    fit(watched)
    fit(alone)
    assert [row["step"] for row in watch.rows] == [1, 2, 4, 6]
    for got, expected in zip(weights(watched), weights(alone), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_frozen_layers_have_none_and_stages_add_rows(tmp_path):
    model, watch = make(), GradientWatch(path=tmp_path / "g.csv")
    model.get_layer("low").trainable = False
    model.compile("sgd", "mse")
    fit(model, watch)
    model.get_layer("low").trainable = True
    model.compile("sgd", "mse")
    fit(model, watch)
    assert [sorted(row) for row in watch.rows] == 3 * [["high", "step"]] + 3 * [
        ["high", "low", "step"]
    ]
    with (tmp_path / "g.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "2", "3", "4", "5", "6"]
    assert rows[0]["low"] == "" and float(rows[5]["low"]) == watch.rows[5]["low"]


def test_mixed_precision_does_not_scale_the_norms():
    plain, scaled = GradientWatch(), GradientWatch()
    fit(make(), plain)
    fit(make(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.01))), scaled)
    assert scaled.rows[0]["low"] == pytest.approx(plain.rows[0]["low"], rel=1e-4)


def test_it_goes_on_with_a_resumed_fit(tmp_path):
    class Killed(Exception):
        pass

    def kill(batch, logs):
        if logs and batch == 1:  # after the second of three steps
            raise Killed

    whole = GradientWatch()
    fit(make(), whole)
    first, killer = GradientWatch(), keras.callbacks.LambdaCallback(on_train_batch_end=kill)
    with pytest.raises(Killed):
        fit(make(), first, Resume(tmp_path, [first], every=1), killer)
    again = GradientWatch()
    resume = Resume(tmp_path, [again], every=1)
    fit(make(), again, resume, initial_epoch=resume.epoch)
    assert [row["step"] for row in again.rows] == [1, 2, 3]
    assert again.rows == whole.rows


@pytest.mark.parametrize("parts", [[slice(None, None, -1)], [slice(2, 4), slice(2)], [slice(2)]])
def test_a_step_of_its_own_trains_in_its_own_order(parts):
    class OwnStep(keras.Sequential):
        def train_step(self, data):
            with tf.GradientTape(persistent=True) as tape:
                loss = tf.reduce_mean(tf.square(self(data[0]) - data[1]))
            for part in parts:
                variables = self.trainable_variables[part]
                self.optimizer.apply(tape.gradient(loss, variables), variables)
            return {"loss": loss}

    plain, watch = make(), GradientWatch()
    own = OwnStep(plain.layers)
    own.compile("sgd")
    own.optimizer.build(own.trainable_variables)
    expected = by_hand(plain, X[:4], Y[:4])
    if sum(len(own.trainable_variables[part]) for part in parts) == 2:
        expected["high"] = 0.0
    fit(own, watch)
    assert {n: watch.rows[0][n] for n in expected} == pytest.approx(expected, rel=1e-5)


def test_two_watch_one_model():
    watches = GradientWatch(), GradientWatch(every=2)
    fit(make(run_eagerly=True), *watches)
    assert [len(watch.rows) for watch in watches] == [3, 2]


def test_no_rows_every_0_steps():
    with pytest.raises(UsageError, match="every 0"):
        GradientWatch(every=0)
