"""Divergence and signals."""

import json
import math
import os
import signal
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
from dlzoo.callbacks import (
    BestModel,
    EarlyStopping,
    History,
    ReduceLROnPlateau,
    StopOnDivergence,
    StopOnSignal,
    chance,
)
from dlzoo.errors import DivergedError

X = np.random.default_rng(0).normal(size=(12, 3)).astype("float32")
Y = np.eye(3, dtype="float32")[np.arange(12) % 3]


@pytest.fixture(autouse=True)
def interruptible():
    """Listen to Ctrl-C, which a shell makes its background jobs ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def make(lr=0.1, frozen=False, **dense):
    layer = keras.layers.Dense(3, kernel_initializer="zeros", trainable=not frozen, **dense)
    scale = keras.layers.Rescaling(1.0)
    model = keras.Sequential([keras.Input((3,)), scale, layer])
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(lr), loss, metrics=["acc"], run_eagerly=True)
    return model


def batches(x=X):
    return tf.data.Dataset.from_tensor_slices((x, Y)).batch(4)


def fit(model, epochs, *callbacks, x=X, **kwargs):
    return model.fit(
        batches(x), epochs=epochs, verbose=0, shuffle=False, callbacks=callbacks, **kwargs
    )


class At(keras.callbacks.Callback):
    """Do something in the hook of one batch, and count the batches."""

    def __init__(self, batch, action):
        super().__init__()
        self.batch, self.action, self.count = batch, action, 0

    def on_train_batch_begin(self, batch, logs=None):
        if self.count == self.batch:
            self.action()
        self.count += 1


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_nan_and_inf_stop_at_the_step_and_name_its_files(poison):
    x = X.copy()
    x[5] = poison  # batch 1 of each epoch
    guard = StopOnDivergence(
        3, files=lambda epoch, batch: [f"e{epoch}b{batch}n{n}" for n in range(7)]
    )
    with pytest.raises(DivergedError) as caught:
        fit(make(0.1), 3, guard, x=x)
    error = caught.value
    assert error.id == "train.diverged" and error.exit_code == 6 and guard.step == 2
    assert "lr 0.1 at step 2" in error.message and error.hint == "try --lr 0.01"
    assert error.where == "e0b1n0, e0b1n1, e0b1n2, e0b1n3, e0b1n4 and 2 more"


def test_the_step_counts_over_fits_and_restarts():
    guard, again = StopOnDivergence(3), StopOnDivergence(3)
    fit(make(), 2, guard)
    again.load_state_dict(json.loads(json.dumps(guard.state_dict())))
    with pytest.raises(DivergedError, match="at step 7"):
        fit(make(), 1, again, x=X * math.nan)


def test_stuck_at_chance_for_whole_epochs():
    dead = make(0.1, frozen=True, kernel_regularizer=keras.regularizers.L2(1.0))
    dead.layers[-1].bias.assign([1e-4, 0, 0])
    guard = StopOnDivergence(3, patience=3)
    with pytest.raises(
        DivergedError, match=r"loss 1.099 is no better than chance for 3 epochs, lr"
    ):
        fit(dead, 9, guard)
    assert guard.step == 9


def test_at_chance_survives_a_restart_and_a_stage_starts_afresh():
    guard = StopOnDivergence(3, patience=2)
    fit(make(frozen=True), 1, guard)
    assert guard.at_chance == 1
    again = StopOnDivergence(3, patience=2)
    again.load_state_dict(json.loads(json.dumps(guard.state_dict())))
    with pytest.raises(DivergedError):
        fit(make(frozen=True), 1, again)
    guard.new_stage("top")
    fit(make(frozen=True), 1, guard)


def test_the_penalty_on_weights_hides_no_collapse():
    model = make(1e-9)
    kernel = model.layers[-1].kernel
    kernel.regularizer = lambda k: 5.0 + 0.0 * k[0, 0]
    model.compile(keras.optimizers.SGD(1e-9), model.loss, metrics=["acc"], run_eagerly=True)
    with pytest.raises(DivergedError) as caught:
        fit(model, 9, StopOnDivergence(3, chance_acc=1.0, patience=2))
    assert caught.value.hint == "try --lr 1e-08"  # so low already: more is the remedy


def test_a_penalty_on_answers_is_none_on_weights():
    model = make(activity_regularizer="l2")
    model.compile(keras.optimizers.SGD(0.1), model.loss, jit_compile=False)
    fit(model, 1, guard := StopOnDivergence(3))
    assert guard.at_chance == 1


def test_a_net_that_learns_is_left_alone():
    guard = StopOnDivergence(3, patience=1)
    fit(make(0.5), 3, guard, x=Y * 3)
    assert guard.at_chance == 0


def test_accuracy_above_chance_is_not_stuck():
    guard = StopOnDivergence(3, patience=1)
    fit(make(1e-4), 2, guard, x=Y)  # the loss has hardly moved, every answer is right
    guard = StopOnDivergence(3, patience=1, chance_acc=1.0)
    with pytest.raises(DivergedError):
        fit(make(1e-4), 2, guard, x=Y)


def test_chance_knows_the_frequencies():
    one_hot = np.eye(4)[[0] * 7 + [1, 2, 3]]
    loss, acc = chance(one_hot)
    assert acc == 0.7 and loss == pytest.approx(-(0.7 * math.log(0.7) + 0.3 * math.log(0.1)))
    assert chance(np.eye(5)) == (pytest.approx(math.log(5)), pytest.approx(0.2))
    assert chance(np.array([[0.0], [1.0]])) == (pytest.approx(math.log(2)), pytest.approx(0.5))
    weights = 10 / 4 / np.array([7] * 7 + [1] * 3)  # every class weighs the same
    assert chance(one_hot, weights) == (pytest.approx(math.log(4)), 0.7)
    loss, acc = chance(np.array([[1, 1, 0], [0, 1, 0.0]]))
    assert (loss, acc) == (pytest.approx(math.log(2) / 3), pytest.approx(2.5 / 3))


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_stops_after_the_step(name):
    number, ended = getattr(signal, name), []
    usual = signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL
    found = signal.signal(number, usual)  # under nohup it would be ignored
    end = keras.callbacks.LambdaCallback(on_train_end=lambda logs: ended.append(True))
    stop, kill = StopOnSignal(), At(1, lambda: os.kill(os.getpid(), number))
    try:
        fit(make(), 5, stop, kill, end)
        assert stop.received == number and kill.count == 2 and ended
        assert signal.getsignal(number) is usual
    finally:
        signal.signal(number, found)


class InValidation(keras.callbacks.Callback):
    """Send SIGTERM in the first batch of a validation, and count the batches."""

    count = 0

    def on_test_batch_begin(self, batch, logs=None):
        self.count += 1
        if self.count == 1:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(("cut", "seen", "rows"), [(False, 3, 1), (True, 1, 0)])
def test_a_signal_in_validation_ends_it_or_the_epoch(cut, seen, rows):
    stop, kill, history = StopOnSignal(cut_validation=cut), InValidation(), History()
    fit(make(), 5, stop, kill, history, validation_data=batches())
    assert kill.count == seen and len(history.rows) == rows


@pytest.mark.parametrize(("batch", "rows"), [(4, 1), (5, 2)])  # three batches an epoch
def test_an_epoch_cut_short_is_not_counted(batch, rows):
    model, kill = make(), At(batch, lambda: os.kill(os.getpid(), signal.SIGTERM))
    history, best = History(), BestModel(monitor="loss")
    early, plateau = EarlyStopping("loss"), ReduceLROnPlateau("loss")
    counted = [history, best, early, plateau, StopOnDivergence(3)]
    fit(model, 5, StopOnSignal(), kill, *counted)
    assert kill.count == batch + 1
    assert len(history.rows) == best.epochs_seen == rows
    assert early.best == plateau.best == best.best == history.rows[-1]["loss"]
    fit(model, 1, history)  # what was cut is over
    assert len(history.rows) == rows + 1


def test_one_manager_covers_several_fits_and_gives_the_handlers_back():
    before = signal.getsignal(signal.SIGINT)
    with StopOnSignal() as stop:
        fit(make(), 1, stop)
        assert signal.getsignal(signal.SIGINT) is not before
        fit(make(), 2, stop, At(0, lambda: os.kill(os.getpid(), signal.SIGINT)))
        assert stop.received == signal.SIGINT
        last = At(9, list)
        fit(make(), 2, stop, last)  # a fit begun after the signal ends at its first step
        assert last.count == 1
    assert signal.getsignal(signal.SIGINT) is before


def test_the_second_ctrl_c_leaves_at_once():
    def twice():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # a supervisor may repeat itself
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    stop, kill = StopOnSignal(), At(1, twice)
    with pytest.raises(KeyboardInterrupt), stop:
        fit(make(), 5, stop, kill)
    assert kill.count == 1 and stop.received == signal.SIGTERM
    assert signal.getsignal(signal.SIGINT) is before


def test_what_was_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    try:
        with StopOnSignal() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.received is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_outside_the_main_thread_it_does_nothing():
    before, errors = signal.getsignal(signal.SIGINT), []

    def work():
        try:
            with StopOnSignal() as stop:
                fit(make(), 1, stop)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not errors and signal.getsignal(signal.SIGINT) is before
