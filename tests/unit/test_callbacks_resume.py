"""`Resume` with a plain Keras model and `fit`: for those who use nothing else of dlzoo."""

import os
import shutil
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf
from dlzoo.callbacks import (
    BestModel,
    EarlyStopping,
    GradientWatch,
    History,
    LRFinder,
    Resume,
    StopOnSignal,
    WarmupCosine,
)
from dlzoo.errors import ResourceError, ResumeError, UsageError
from rows import rows

EPOCHS, STEPS = 4, 6


class _Killed(Exception):
    pass


class KillAt(keras.callbacks.Callback):
    """Ends the fit after so many steps, before anybody can save."""

    def __init__(self, step):
        super().__init__()
        self.left = step

    def on_train_batch_end(self, batch, logs=None):
        self.left -= bool(logs)  # a step that was passed over has none
        if self.left == 0:
            raise _Killed


def build(seed=0, steps_per_execution=1):
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((5,)),
            layers.Dense(8, activation="relu"),
            layers.BatchNormalization(),
            layers.Dropout(0.4),
            layers.Dense(3),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"], steps_per_execution=steps_per_execution)
    return model


def samples():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(48, 5)).astype("float32")
    return x, (x[:, 0] * 3).astype(int) % 3


def fit(model, folder, *, kill=None, epochs=EPOCHS, patience=9, **options):
    kept = [WarmupCosine(0.05, EPOCHS * STEPS), EarlyStopping(patience=patience), BestModel()]
    resume = Resume(folder, kept, every=2, **options)
    x, y = samples()
    first = [KillAt(kill)] if kill else []
    history = model.fit(
        x, y, batch_size=8, epochs=epochs, initial_epoch=resume.epoch, shuffle=False, verbose=0,
        validation_data=(x[:16], y[:16]), callbacks=[*first, *kept, resume],
    )  # fmt: skip
    return history.history, kept, resume


def state(model):
    return [np.asarray(v) for v in (*model.variables, *model.optimizer.variables)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    model = build()
    history, kept, _ = fit(model, tmp_path_factory.mktemp("whole"))
    return state(model), history, [callback.state_dict() for callback in kept]


@pytest.mark.parametrize("step", rows([1, 6, 9], {6}))
def test_a_fit_goes_on_in_the_middle_of_an_epoch(whole, tmp_path, step):
    expected, whole_history, states = whole
    with pytest.raises(_Killed):
        fit(build(), tmp_path, kill=step)
    model = build(seed=1)  # what it starts from does not matter once something is saved
    if step < 3:
        model = build()
    history, kept, resume = fit(model, tmp_path)
    assert resume.step == EPOCHS * STEPS
    for mine, theirs in zip(state(model), expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert [callback.state_dict() for callback in kept] == states
    for name, values in history.items():
        assert values == whole_history[name][-len(values) :], name


@pytest.mark.full
def test_several_steps_in_one_execution(tmp_path):
    whole = build(steps_per_execution=2)
    fit(whole, tmp_path / "whole")
    with pytest.raises(_Killed):
        fit(build(steps_per_execution=2), tmp_path / "cut", kill=5)
    model = build(seed=1, steps_per_execution=2)
    fit(model, tmp_path / "cut")
    for mine, theirs in zip(state(model), state(whole), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("step", [9, 15, 19], ids=["first", "second", "between two epochs"])
def test_fits_that_follow_one_another_go_on(tmp_path, step):
    """A fit that is past its last epoch leaves the rest to the next; Keras averages at its end."""

    def go(folder, *first):
        model, resume = build(), Resume(folder, every=2)
        model.optimizer = keras.optimizers.Adam(use_ema=True)
        x, y = samples()
        for epochs in (2, 4):
            model.fit(
                x, y, batch_size=8, epochs=epochs, initial_epoch=resume.epoch, shuffle=False,
                verbose=0, callbacks=[*first, resume],
            )  # fmt: skip
        return state(model)

    whole = go(tmp_path / "whole")
    with pytest.raises(_Killed):
        go(tmp_path / "cut", KillAt(step))
    for mine, theirs in zip(go(tmp_path / "cut"), whole, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def dense(loss="mse", **options):
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(1)])
    model.compile("adam", loss, run_eagerly=True, **options)
    return model


def mixed_precision():
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(1, dtype="mixed_float16")])
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam())
    model.compile(optimizer, "mse", run_eagerly=True)
    return model


def two_answers():
    x = keras.Input((5,), name="x")
    answers = {name: keras.layers.Dense(1, name=name)(x) for name in "ab"}
    model = keras.Model({"x": x}, answers)
    model.compile("adam", "mse", metrics={"a": ["mae"]}, run_eagerly=True)
    return model


def without_labels():
    class Compared(keras.layers.Layer):
        def call(self, x, answer):
            self.add_loss(keras.ops.mean((x - answer) ** 2))
            return answer

    x = keras.Input((5,))
    model = keras.Model(x, Compared()(x, keras.layers.Dense(5)(x)))
    model.compile("adam", run_eagerly=True)
    return model


class OwnStep(keras.Model):
    """A model that is never built and cannot be called."""

    def __init__(self):
        super().__init__()
        self.inner, self.mean = dense(), keras.metrics.Mean(name="loss")
        self.compile("adam", run_eagerly=True)

    def train_step(self, data):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(self.inner(data[0]) ** 2)
        variables = self.trainable_weights
        self.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        self.mean.update_state(loss)
        return {"loss": self.mean.result()}


def batches(*parts):
    return tf.data.Dataset.from_tensor_slices(parts).batch(8).take(5)


X, Y = samples()


class TwoOptimizers(OwnStep):
    """A model whose layers have optimizers of their own."""

    def __init__(self):
        super().__init__()
        self.low, self.high = keras.optimizers.Adam(0.01), [keras.optimizers.Adam(0.02)]
        self.low.build(self.inner.trainable_variables[:2])
        self.high[0].build(self.inner.trainable_variables[2:])

    def train_step(self, data):
        variables = self.inner.trainable_variables
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(self.inner(data[0]) ** 2)
        gradients = tape.gradient(loss, variables)
        self.low.apply(gradients[:2], variables[:2])
        self.high[0].apply(gradients[2:], variables[2:])
        self.mean.update_state(loss)
        return {"loss": self.mean.result()}


KINDS = {
    "two answers": (2, two_answers, lambda: batches({"x": X}, {"a": Y, "b": Y})),
    "mixed precision": (2, mixed_precision, lambda: batches(X, Y)),
    "no labels": (2, without_labels, lambda: batches(X).map(lambda x: x)),
    "a tuple of one": (2, without_labels, lambda: batches(X)),
    "a step of its own": (2, OwnStep, lambda: batches(X)),
    "two optimizers": (2, TwoOptimizers, lambda: batches(X)),
    "of unknown length": (6, dense, lambda: batches(X, Y).filter(lambda *batch: True)),
    "two of five steps": (2, lambda: dense(steps_per_execution=2), lambda: batches(X, Y)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_any_model_and_any_data_go_on(tmp_path, kind):
    kill, make, data = KINDS[kind]

    def go(folder, kill=0, every=100):
        keras.utils.set_random_seed(0)
        model, kept = make(), [WarmupCosine(0.05, 10), History()]
        resume = Resume(folder, kept, every=every)
        callbacks = [*([KillAt(kill)] if kill else []), *kept, resume]
        model.fit(data(), epochs=2, initial_epoch=resume.epoch, callbacks=callbacks, verbose=0)
        rows = [{k: v for k, v in row.items() if k != "seconds"} for row in kept[1].rows]
        return state(model), rows, kept[0].step, resume.step

    whole = go(tmp_path / "whole")
    assert whole[2:] == (10, 10)
    with pytest.raises(_Killed):
        go(tmp_path / "cut", kill, every=1)
    again = go(tmp_path / "cut")
    assert again[1:] == whole[1:]
    for mine, theirs in zip(again[0], whole[0], strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize(
    ("size", "at_once"), [(24, 1), (8, 2)], ids=["larger batches", "two at a time"]
)
@pytest.mark.parametrize("known", [True, False])
def test_other_batches_are_refused(tmp_path, size, at_once, known):
    def go(model, size, *first):
        resume, data = Resume(tmp_path, every=3), tf.data.Dataset.from_tensor_slices((X, Y))
        data = data.batch(size) if known else data.batch(size).filter(lambda *batch: True)
        model.fit(data, initial_epoch=resume.epoch, callbacks=[*first, resume], verbose=0)

    with pytest.raises(_Killed):
        go(dense(), 8, KillAt(4))
    with pytest.raises(ResumeError, match=r"resume\.config-changed\]: 3 steps of epoch 1 are done"):
        go(dense(steps_per_execution=at_once), size)


@pytest.mark.parametrize("kind", [LRFinder, GradientWatch, Resume])
def test_a_model_without_variables_is_told_before_its_first_batch(tmp_path, kind):
    callback = kind(tmp_path) if kind is Resume else kind()
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("sgd", "mse", run_eagerly=True)
    with pytest.raises(UsageError, match=r"train\.not-built[\s\S]*keras\.Input"):
        model.fit(X, Y, callbacks=[callback], verbose=0)
    assert not model.built and not model.optimizer.built


def test_an_optimizer_without_variables_is_told_before_the_first_batch(tmp_path):
    model = OwnStep()
    model.other = keras.optimizers.Adam(name="other")
    with pytest.raises(UsageError, match=r"train\.not-built\]: other, an optimizer of "):
        model.fit(batches(X), callbacks=[Resume(tmp_path)], verbose=0)


def test_callbacks_behind_it_are_refused_and_those_it_was_not_given_told(tmp_path):
    stop = EarlyStopping("loss")
    with pytest.raises(
        UsageError, match=r"resume\.callback\]: EarlyStopping would be saved before"
    ):
        dense().fit(batches(X, Y), callbacks=[Resume(tmp_path, [stop]), stop], verbose=0)
    with pytest.warns(UserWarning, match=r"Resume does not save History"):
        kept = [stop, History(), Resume(tmp_path, [stop])]
        dense().fit(batches(X, Y), callbacks=kept, verbose=0)


def test_going_on_from_the_wrong_epoch_is_an_error(tmp_path):
    with pytest.raises(_Killed):
        fit(build(), tmp_path, kill=9)
    resume = Resume(tmp_path)
    assert (resume.epoch, resume.batch) == (1, 2)
    x, y = samples()
    with pytest.raises(UsageError, match=r"resume\.initial-epoch.*begins with epoch 0, but 1"):
        build().fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0, callbacks=[resume])


def test_another_network_is_refused(tmp_path):
    with pytest.raises(_Killed):
        fit(build(), tmp_path, kill=9)
    other = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3)])
    other.compile("adam", build().loss)
    with pytest.raises(ResumeError, match=r"resume\.config-changed"):
        fit(other, tmp_path)


def test_after_early_stopping_nothing_is_left_to_do(tmp_path):
    history, _, _ = fit(build(), tmp_path, patience=1, epochs=50)
    assert 1 < len(history["loss"]) < 50
    model = build(seed=1)
    again, _, _ = fit(model, tmp_path, patience=1, epochs=50)
    assert not again


def test_a_signal_saves_and_is_no_end(tmp_path, whole):
    stop = StopOnSignal()

    class Send(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    def going(*more):
        kept = [stop, WarmupCosine(0.05, EPOCHS * STEPS), EarlyStopping(patience=9), BestModel()]
        resume = Resume(tmp_path, kept, every=100)
        x, y = samples()
        model = build()
        model.fit(
            x, y, batch_size=8, epochs=EPOCHS, initial_epoch=resume.epoch, shuffle=False,
            verbose=0, validation_data=(x[:16], y[:16]), callbacks=[*more, *kept, resume],
        )  # fmt: skip
        return model

    going(Send())
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]
    for mine, theirs in zip(state(going()), whole[0], strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_what_stands_still_is_written_once(tmp_path):
    model = build()
    model.layers[0].trainable = False
    model.compile("adam", model.loss)
    fit(model, tmp_path)
    first, second = sorted(tmp_path.iterdir())
    assert (first / "still.npz").stat().st_ino == (second / "still.npz").stat().st_ino
    assert (first / "model.npz").stat().st_ino != (second / "model.npz").stat().st_ino
    shutil.rmtree(first)  # the other does not need it
    assert Resume(tmp_path).found


@pytest.mark.parametrize(
    "callback",
    [
        keras.callbacks.EarlyStopping(),
        keras.callbacks.ReduceLROnPlateau(),
        keras.callbacks.ModelCheckpoint("best.keras"),
    ],
)
def test_callbacks_that_forget_are_refused(tmp_path, callback):
    with pytest.raises(UsageError, match=r"resume\.callback.*forgets its state"):
        Resume(tmp_path, [callback])


@pytest.mark.parametrize("every", [0, -1, "often", "3d"])
def test_an_interval_must_make_sense(tmp_path, every):
    with pytest.raises(UsageError, match=r"resume\.every"):
        Resume(tmp_path, every=every)


def test_a_disk_too_small_is_found_before_training(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ResourceError, match=r"resume\.disk.*need 0 MB, free 0 MB"):
        fit(build(), tmp_path / "ckpt")
