"""The range test of learning rates: what it suggests, and that it leaves no trace."""

import csv

import keras
import numpy as np
import pytest
import tensorflow as tf
from dlzoo.callbacks import LRFinder
from dlzoo.errors import DivergedError, UsageError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 8)).astype("float32")
Y = (X[:, :1] - 2 * X[:, 1:2] > 0).astype("float32")


def batches(size=16, repeat=True):
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(size)
    return data.repeat() if repeat else data


def make(optimizer="adam", **options):
    """Return a compiled net with everything in it that training changes."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8,)),
            layers.Dense(16, activation="relu"),
            layers.BatchNormalization(),
            layers.Dropout(0.3),
            layers.Dense(1),
        ]
    )
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile(optimizer, loss, jit_compile=False, **options)
    return model


def state(model):
    """Return every variable's bytes: weights, statistics, seeds, slots, step count and rate."""
    return [np.array(v).tobytes() for v in (*model.variables, *model.optimizer.variables)]


def find(model, finder, **options):
    options = {"steps_per_epoch": 200, "verbose": 0, **options}
    return model.fit(batches(), callbacks=[finder], **options)


def optimizers():
    yield lambda: keras.optimizers.SGD(0.1, momentum=0.9)
    yield lambda: keras.optimizers.Adam(1e-3, amsgrad=True)
    yield lambda: keras.optimizers.Adam(1e-3, use_ema=True, ema_overwrite_frequency=None)
    yield lambda: keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
    yield lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(1e-3))


@pytest.mark.parametrize("optimizer", optimizers())
def test_pain_47_nothing_is_changed_to_the_bit(optimizer):
    model = make(optimizer())
    model.fit(batches(), steps_per_epoch=5, verbose=0)  # slots that are not zero
    before = state(model)
    finder = LRFinder(high=100, steps=30)
    find(model, finder)
    assert len(finder.lrs) > 10
    assert state(model) == before


def test_the_next_fit_goes_as_if_there_had_been_no_test():
    """Dropout draws the same, the optimizer has counted nothing, slots start from zero."""
    plain, tried = make(), make()
    find(tried, LRFinder(steps=30))
    for model in (plain, tried):
        model.fit(batches(), steps_per_epoch=6, epochs=2, verbose=0)
    assert state(plain) == state(tried)


def test_an_error_in_the_fit_leaves_no_trace_either():
    class Breaks(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 7:
                raise RuntimeError("the cable")

    model = make()
    model.optimizer.build(model.trainable_variables)
    before = state(model)
    with pytest.raises(RuntimeError, match="cable"), LRFinder(high=10) as finder:
        model.fit(batches(), steps_per_epoch=20, callbacks=[finder, Breaks()], verbose=0)
    assert len(finder.lrs) == 8
    assert state(model) == before


def test_the_rate_rises_by_the_same_factor_over_epochs():
    finder = LRFinder(1e-5, 1e-1, steps=21)
    model = make()
    history = model.fit(batches(repeat=False), epochs=9, callbacks=[finder], verbose=0)
    np.testing.assert_allclose(finder.lrs, np.geomspace(1e-5, 1e-1, 21), rtol=1e-5)
    assert len(history.epoch) == 6  # of 4 steps: ended by the finder, not by the data


def test_the_loss_is_that_of_each_batch():
    """Keras' own logs hold the mean over the epoch so far."""
    model = make(keras.optimizers.SGD(1.0))
    model.layers[2].rate = 0.0
    finder = LRFinder(1e-12, 2e-12, steps=10)  # nothing moves
    find(model, finder)
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    for i in range(4):
        x, y = X[16 * i : 16 * i + 16], Y[16 * i : 16 * i + 16]
        expected = float(loss(y, model(x, training=True)))
        assert finder.losses[i] == pytest.approx(expected, abs=1e-5)


def test_it_stops_when_the_loss_diverges():
    finder = LRFinder(1e-4, 1e6, steps=100)
    find(make(keras.optimizers.SGD()), finder)
    assert finder.stopped and len(finder.lrs) < 100
    assert finder.losses[-1] > 2 * min(finder.losses)


def test_it_stops_at_a_loss_that_is_no_number():
    model = make(keras.optimizers.SGD())
    before = [np.array(v) for v in model.variables]
    bad = tf.data.Dataset.from_tensor_slices((X, Y * np.nan)).batch(16).repeat()
    finder = LRFinder()
    model.fit(bad, steps_per_epoch=50, callbacks=[finder], verbose=0)
    assert finder.stopped and len(finder.lrs) == 1
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)
    with pytest.raises(DivergedError) as error:
        finder.suggestion()
    assert error.value.id == "train.no-rate"


@pytest.mark.full
def test_it_suggests_a_rate_that_trains():
    finder = LRFinder(1e-5, 10, steps=120)
    model = make("adam")
    find(model, finder)
    found = finder.suggestion()
    assert found.lr == min(found.steepest, found.tenth)
    assert 1e-3 < found.lr < 0.3
    losses = []
    for lr in (found.lr, found.lr / 300):
        model = make(keras.optimizers.Adam(lr))
        model.fit(batches(), steps_per_epoch=40, verbose=0)
        losses.append(model.evaluate(X, Y, verbose=0))
    assert losses[0] < 0.5 < losses[1]


def test_a_valley_is_read_where_it_lies():
    """loss = (log lr + 3)^2 up to noise: the lowest at 1e-3, and a spike at the end is nothing."""
    finder = LRFinder(1e-6, 1, steps=61)
    finder.lrs = np.geomspace(1e-6, 1, 61).tolist()
    finder.losses = [(np.log10(lr) + 3) ** 2 / 9 + 0.1 for lr in finder.lrs[:45]] + [1e20] * 16
    found = finder.suggestion()
    assert found.tenth == pytest.approx(1e-4, rel=0.6)
    assert found.steepest < 1e-4


def test_noise_is_no_fall():
    """A loss that only ever wavers, and then rises, says nothing about the rate to take."""
    finder = LRFinder(1e-6, 1, steps=60)
    finder.lrs = np.geomspace(1e-6, 1, 60).tolist()
    wavering = 0.52 + 0.01 * np.random.default_rng(0).normal(size=45)
    finder.losses = [*wavering, *np.geomspace(0.6, 30, 15)]
    with pytest.raises(DivergedError) as error:
        finder.suggestion()
    assert error.value.id == "train.no-rate"


@pytest.mark.full
def test_rows_and_file_agree(tmp_path):
    finder = LRFinder(steps=12, path=tmp_path / "rates.csv")
    find(make(), finder)
    with (tmp_path / "rates.csv").open() as file:
        rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    assert rows == finder.rows
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert [row["lr"] for row in rows] == finder.lrs


def test_several_steps_at_once_count_as_several():
    finder = LRFinder(steps=20)
    find(make(steps_per_execution=4), finder, steps_per_epoch=40)
    assert len(finder.lrs) == len(finder.losses) == 20


def test_a_second_test_starts_anew():
    model, finder = make(), LRFinder(steps=15)
    find(model, finder)
    first = finder.rows
    find(model, finder)
    assert finder.rows == first


@pytest.mark.parametrize("options", [{"low": 1, "high": 0.1}, {"low": 0}, {"steps": 3}])
def test_a_senseless_range_is_refused(options):
    with pytest.raises(UsageError) as error:
        LRFinder(**options)
    assert error.value.id == "train.lr-range"


def test_two_learning_rate_policies_are_refused():
    model = make(keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 10)))
    with pytest.raises(UsageError) as error:
        find(model, LRFinder())
    assert error.value.id == "train.two-schedules"
