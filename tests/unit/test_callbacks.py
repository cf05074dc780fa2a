"""Early stopping, the best model and the learning-rate policies: in fit, over stages, resumed."""

import json
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from dlzoo.callbacks import (
    BestModel,
    Constant,
    EarlyStopping,
    Monitor,
    OneCycle,
    ReduceLROnPlateau,
    StopOnDivergence,
    WarmupCosine,
    check_monitor,
    check_single_policy,
)
from dlzoo.errors import ResumeError, UsageError

X = np.random.default_rng(0).normal(size=(12, 3)).astype("float32")
Y = X @ np.array([[1.0], [-2.0], [0.5]], "float32")


class Scripted(keras.callbacks.Callback):
    """Put given values of a quantity into the epochs' logs, first in the list."""

    def __init__(self, *values, name="val_loss"):
        super().__init__()
        self.values, self.name = list(values), name

    def on_epoch_end(self, epoch, logs=None):
        logs[self.name] = self.values.pop(0)


class Rates(keras.callbacks.Callback):
    """Record the learning rate every step was trained with."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(float(self.model.optimizer.learning_rate))


def make(lr=0.1, optimizer=None):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, name="out")])
    model.layers[0].set_weights([np.full((3, 1), 0.1), np.zeros(1)])
    model.compile(optimizer or keras.optimizers.SGD(lr), "mse", run_eagerly=True)
    return model


def batches(size=4):
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(size)


def fit(model, epochs, *callbacks, first=0, batch=4, **kwargs):
    return model.fit(
        batches(batch),
        epochs=epochs,
        initial_epoch=first,
        verbose=0,
        shuffle=False,
        callbacks=callbacks,
        **kwargs,
    )


def through_json(old, new):
    new.load_state_dict(json.loads(json.dumps(old.state_dict())))
    return new


def test_early_stopping_counts_on_over_fits():
    model, stop = make(), EarlyStopping(patience=3)
    fit(model, 2, Scripted(1.0, 1.1), stop)
    assert (stop.best, stop.wait, stop.stopped) == (1.0, 1, False)
    history = fit(model, 9, Scripted(1.2, 1.0, *[0] * 9), stop)
    assert len(history.epoch) == 2 and stop.stopped


def test_early_stopping_counts_on_after_a_restart_at_patience_minus_one():
    stop = EarlyStopping(patience=2)
    fit(make(), 2, Scripted(0.5, 0.6), stop)
    again = through_json(stop, EarlyStopping(patience=2))
    assert len(fit(make(), 9, Scripted(0.7, *[0] * 9), again).epoch) == 1


@pytest.mark.parametrize(("per_stage", "epochs"), [(True, 2), (False, 1)])
def test_a_new_stage_keeps_best_and_waits_afresh(per_stage, epochs):
    stop = EarlyStopping(patience=2, per_stage=per_stage)
    fit(make(), 2, Scripted(0.5, 0.6), stop)
    stop.new_stage("top")
    assert len(fit(make(), 9, Scripted(*[0.55] * 9), stop).epoch) == epochs
    assert stop.best == 0.5


def test_nan_is_never_better():
    model = make()
    stop, best = EarlyStopping(patience=2), BestModel(model)
    assert len(fit(model, 9, Scripted(*[math.nan] * 9), stop, best).epoch) == 2
    assert stop.best is None and best.best is None and not best.restore()
    fit(model, 2, Scripted(3.0, math.nan), best)
    assert best.best == 3.0


def test_min_delta_and_mode():
    stop = EarlyStopping("val_acc", patience=1, min_delta=0.01)
    assert len(fit(make(), 9, Scripted(0.5, 0.6, 0.605, 0.9, name="val_acc"), stop).epoch) == 3
    with pytest.raises(UsageError, match=r"train\.monitor-mode"):
        EarlyStopping("val_wibble")


@pytest.mark.parametrize(
    ("sign", "names"),
    [
        (-1, "val_mape val_heatmap_loss val_top_mae top5_error val_accumulated_loss val_acc_loss"),
        (1, "val_acc val_AUC val_f1_score val_map50 sparse_top_k_categorical_accuracy top_5"),
    ],
)
def test_the_end_of_a_name_says_which_way_is_better(sign, names):
    assert {name: Monitor(name).sign for name in names.split()} == dict.fromkeys(
        names.split(), sign
    )


def test_a_quantity_of_several_numbers_is_told_as_such():
    with pytest.raises(UsageError, match=r"train.unknown-monitor.*'val_f1' has several numbers"):
        fit(make(), 1, Scripted(np.ones(3), name="val_f1"), EarlyStopping("val_f1"))


@pytest.mark.parametrize("kind", [EarlyStopping, ReduceLROnPlateau, BestModel])
def test_an_unknown_monitor_is_an_error_in_the_first_epoch(kind):
    callback = kind(monitor="val_acc")
    seen = []
    spy = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: seen.append(epoch))
    with pytest.raises(UsageError, match=r"train.unknown-monitor[\s\S]*use one of loss, val_loss"):
        fit(make(), 5, spy, callback, validation_data=batches().take(1))
    assert seen == [0]


@pytest.mark.parametrize("kind", [EarlyStopping, ReduceLROnPlateau, BestModel])
def test_epochs_without_validation_are_passed_over(kind):
    callback = kind()
    with pytest.warns(UserWarning, match="passes over epoch 1, which has no 'val_loss'"):
        fit(make(2.0), 5, callback, validation_data=batches().take(1), validation_freq=2)
    assert callback.best is not None  # that of epoch 2; epoch 4 is worse
    if kind is BestModel:
        assert (callback.epoch, callback.epochs_seen, callback.improved) == (2, 5, False)
    else:
        assert callback.wait == 1


@pytest.mark.parametrize("kind", [EarlyStopping, ReduceLROnPlateau, BestModel])
def test_a_quantity_that_never_came_is_an_error_at_the_end(kind):
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = True

    callback, seen = kind(), []
    spy = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(epoch))
    with pytest.warns(UserWarning, match="passes over epoch 1"):
        fit(make(), 3, callback, spy, Stop())  # what was stopped may still have been validated
        with pytest.raises(UsageError, match=r"train.unknown-monitor[\s\S]*use one of loss"):
            fit(make(), 3, callback, spy)
    assert seen == [0, 0, 1, 2]


def test_pain_11_check_monitor_before_training():
    check_monitor("val_acc", ["loss", "val_acc"])
    with pytest.raises(UsageError, match="did you mean 'val_acc'"):
        check_monitor("val_accc", ["loss", "val_acc"])


def test_best_over_stages_is_the_whole_model_of_the_better_stage():
    head = keras.layers.Dense(1, name="out")
    body = keras.layers.Dense(3, name="body")
    inputs, features = keras.Input((3,)), keras.Input((3,))
    whole = keras.Model(inputs, head(body(inputs)))
    best = BestModel(whole)
    sub = keras.Model(features, head(features))  # what the head stage trains
    sub.compile("sgd", "mse", run_eagerly=True)
    best.new_stage("head")
    fit(sub, 2, Scripted(0.9, 0.3), best)
    expected = [w.copy() for w in whole.get_weights()]
    whole.compile("sgd", "mse", run_eagerly=True)
    best.new_stage("all")
    fit(whole, 2, Scripted(0.8, 0.7), best)
    assert (best.best, best.epoch, best.best_stage) == (0.3, 2, "head")
    assert not np.array_equal(whole.get_weights()[0], expected[0])
    assert best.restore()
    for now, then in zip(whole.get_weights(), expected, strict=True):
        np.testing.assert_array_equal(now, then)


def test_best_file_survives_a_restart_and_a_kill_between_file_and_state(tmp_path):
    path = tmp_path / "best.weights.h5"
    model = make()
    best = BestModel(path=path)
    fit(model, 2, Scripted(1.0, 0.5), best)
    saved = json.dumps(best.state_dict())
    fit(model, 2, Scripted(0.4, 0.6), best)  # the file is of epoch 3, the state of epoch 2
    expected = best.kept
    assert [p.name for p in tmp_path.iterdir()] == [path.name]

    fresh = make()
    again = BestModel(fresh, path=path)
    again.load_state_dict(json.loads(saved))
    assert (again.best, again.epoch) == (0.4, 3)
    assert again.restore()
    np.testing.assert_array_equal(fresh.get_weights()[0], expected[0])


def test_best_never_restores_a_file_that_is_of_another_epoch(tmp_path):
    path = tmp_path / "best.weights.h5"
    fit(make(), 1, Scripted(9.0), BestModel(path=path))
    other = BestModel()
    fit(make(), 1, Scripted(1.0), other)
    model = make()
    again = through_json(other, BestModel(model, path=path))
    before = model.get_weights()[0]
    assert not again.restore() and again.best == 1.0
    np.testing.assert_array_equal(model.get_weights()[0], before)


def test_best_with_its_own_snapshot():
    restored = []
    numbers = iter(range(9))
    best = BestModel(snapshot=lambda: next(numbers), restore=restored.append)
    fit(make(), 3, Scripted(0.9, 0.5, 0.7), best)
    best.restore()
    assert restored == [1]
    for wrong in ({"snapshot": list}, {"path": "best.h5"}):
        with pytest.raises(UsageError, match=r"train\.best-model"):
            BestModel(**wrong)


def test_schedule_values():
    cosine = WarmupCosine(1.0, total_steps=12, warmup_steps=2, final=0.2)
    assert [cosine.schedule_value(s) for s in (0, 1, 2)] == [0.5, 1.0, 1.0]
    assert cosine.schedule_value(7) == pytest.approx(0.6)  # half-way: the mean of base and final
    assert cosine.schedule_value(12) == cosine.schedule_value(99) == pytest.approx(0.2)
    cycle = OneCycle(1.0, total_steps=10, rise=0.3)
    values = [cycle.schedule_value(s) for s in range(10)]
    assert values[0] == pytest.approx(1 / 25) and values[9] == pytest.approx(1e-4)
    assert max(values) == values[3] == 1.0
    assert values[:4] == sorted(values[:4]) and values[3:] == sorted(values[3:], reverse=True)
    assert Constant(0.3).schedule_value(5) == 0.3
    for wrong in ((1.0, 0), (1.0, 5, 6)):
        with pytest.raises(UsageError, match=r"train\.schedule"):
            WarmupCosine(*wrong)


@pytest.mark.parametrize("execution", [1, 2])
def test_schedule_in_fit_counts_steps_over_fits_and_starts_again_in_a_stage(execution):
    schedule, rates = WarmupCosine(1e-3, total_steps=12, warmup_steps=3), Rates()
    model = make()
    model.compile("sgd", "mse", steps_per_execution=execution)
    fit(model, 1, schedule, rates, batch=3)  # 4 steps an epoch
    fit(model, 2, schedule, rates, batch=3)
    assert schedule.step == 12
    steps = range(0, 12, execution)  # those of one execution share the rate of the first
    np.testing.assert_allclose(rates.seen, [schedule.schedule_value(s) for s in steps], rtol=1e-6)
    schedule.new_stage("top")
    assert schedule.step == 0


@pytest.mark.parametrize(("steps", "told"), [(3, True), (6, False)])
def test_a_fit_that_goes_on_behind_its_schedule_is_told(steps, told, recwarn):
    fit(make(), 2, WarmupCosine(0.1, steps))
    lines = [str(w.message) for w in recwarn if "total_steps" in str(w.message)]
    assert len(lines) == told and all("the 3 steps of WarmupCosine are over" in s for s in lines)
    fit(make(), 2, WarmupCosine(0.1, 3, final=0.01))  # a rate of the user's
    assert len([w for w in recwarn if "total_steps" in str(w.message)]) == told


@pytest.mark.parametrize("goes_on", [True, False])
def test_steps_that_keras_takes_beyond_an_epoch_are_told(goes_on, recwarn):
    """Three steps, two at a time: there is a fourth where the data goes on."""
    model, schedule = make(), Constant(1e-3)
    model.compile("sgd", "mse", steps_per_execution=2)
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)
    model.fit(data.repeat() if goes_on else data, epochs=2, steps_per_epoch=3, verbose=0,
              shuffle=False, callbacks=[schedule])  # fmt: skip
    assert schedule.step == 6 and int(model.optimizer.iterations) == (8 if goes_on else 6)
    told = [str(w.message) for w in recwarn if "steps_per_execution" in str(w.message)]
    assert bool(told) == goes_on and all("2 where 1 were left" in line for line in told)


def test_plateau_reduces_waits_and_cools_down():
    plateau, rates = ReduceLROnPlateau(factor=0.5, patience=2, cooldown=1, min_lr=0.02), Rates()
    fit(make(0.1), 8, Scripted(1, 1, 1, 1, 1, 1, 1, 1), plateau, rates)
    per_epoch = rates.seen[::3]
    # epochs 2, 3 wait; 4 cools down (and counts after it), 5 waits; then again
    np.testing.assert_allclose(per_epoch, [0.1, 0.1, 0.1, 0.05, 0.05, 0.025, 0.025, 0.02])
    with pytest.raises(UsageError, match="factor"):
        ReduceLROnPlateau(factor=10)


def test_plateau_survives_a_restart_but_a_stage_has_its_own_rate():
    plateau = ReduceLROnPlateau(factor=0.5, patience=1)
    fit(make(0.1), 2, Scripted(1.0, 1.0), plateau)
    again, rates = through_json(plateau, ReduceLROnPlateau(factor=0.5, patience=1)), Rates()
    fit(make(0.1), 2, Scripted(1.0, 1.0), again, rates)
    np.testing.assert_allclose(rates.seen, [0.05] * 3 + [0.025] * 3)
    again.new_stage("top")
    rates = Rates()
    fit(make(0.01), 1, Scripted(0.1), again, rates)
    np.testing.assert_allclose(rates.seen, [0.01] * 3)
    assert again.best == 0.1


def test_pain_45_two_schedules_are_refused_before_any_batch():
    scheduled = keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 10))
    plain = keras.optimizers.SGD(0.1)
    for policy in (Constant(0.1), ReduceLROnPlateau("loss")):
        model = make(optimizer=scheduled)
        with pytest.raises(UsageError, match=r"train.two-schedules.*optimizer's own"):
            fit(model, 1, policy)
        assert int(scheduled.iterations) == 0
        check_single_policy([policy, EarlyStopping()], plain)
        check_single_policy([policy], keras.optimizers.LossScaleOptimizer(plain))
    with pytest.raises(UsageError, match="Constant and by ReduceLROnPlateau"):
        check_single_policy([Constant(0.1), ReduceLROnPlateau()], plain)
    with pytest.raises(UsageError, match="LearningRateScheduler"):
        check_single_policy([Constant(0.1), keras.callbacks.LearningRateScheduler(len)], plain)
    check_single_policy([EarlyStopping()], scheduled)
    for both in ([Constant(0.1), ReduceLROnPlateau()], [OneCycle(0.1, 9), WarmupCosine(0.1, 9)]):
        model = make()
        with pytest.raises(UsageError, match=r"train.two-schedules"):
            fit(model, 1, *both)
        assert int(model.optimizer.iterations) == 0
        fit(model, 1, both[0])


def callbacks():
    return [
        WarmupCosine(0.05, total_steps=12, warmup_steps=4),
        EarlyStopping(patience=9),
        BestModel(),
        StopOnDivergence(2),
    ]


def test_two_plus_two_epochs_through_json_are_four():
    whole, part, resumed = make(), make(), make()
    all_at_once, before, after = callbacks(), callbacks(), callbacks()
    check = {"validation_data": batches().take(1)}
    fit(whole, 4, *all_at_once, **check)
    fit(part, 2, *before, **check)
    for old, new in zip(before, after, strict=True):
        through_json(old, new)
    resumed.set_weights(part.get_weights())
    fit(resumed, 4, *after, first=2, **check)
    np.testing.assert_array_equal(resumed.get_weights()[0], whole.get_weights()[0])
    for one, other in zip(all_at_once, after, strict=True):
        assert one.state_dict() == other.state_dict()


def test_an_incomplete_state_is_refused_and_changes_nothing():
    stop = EarlyStopping()
    with pytest.raises(ResumeError, match=r"resume.callback-state.*lacks wait"):
        stop.load_state_dict({"stage": "top", "best": 1.0, "stopped": False})
    assert (stop.stage, stop.best) == ("", None)


def kept_of(accuracies, images):
    """Return the epoch that is kept after each."""
    best, kept = BestModel(make(), monitor="val_acc", images=images), []
    for value in accuracies:
        best.epoch_done(0, {"val_acc": value})
        kept.append(best.epoch)
    return kept


def test_of_epochs_that_few_images_cannot_tell_apart_the_last_is_kept():
    rows = [0.90, 0.94, 0.92, 0.80, 0.90, math.nan, 0.84]
    assert kept_of(rows, 50) == [1, 2, 3, 3, 5, 5, 5]
    assert kept_of(rows, 5000) == kept_of(rows, 0) == [1, 2, 2, 2, 2, 2, 2]
    assert kept_of([0.9, 0.9], 5000) == [1, 2] and kept_of([0.9, 0.9], 0) == [1, 1]
    best = BestModel(make(), monitor="val_acc", images=50)
    for value, loss in ((0.9, 0.5), (0.9, 0.6), (0.9, 0.63), (0.91, 2.0), (0.9, 0.6)):
        best.epoch_done(0, {"val_acc": value, "val_loss": loss})
        assert best.improved == (loss != 0.63)
    best.epoch_done(0, {"val_acc": 0.9, "val_loss": math.nan})
    assert not best.improved
    # they are compared with the highest: many small steps down are not followed
    assert kept_of([1.0, 0.96, 0.92, 0.88, 0.84], 50)[-1] == 2
    best = BestModel(make(), monitor="val_acc", images=50)
    for value in (0.94, 0.90):
        best.epoch_done(0, {"val_acc": value})
    again = through_json(best, BestModel(make(), monitor="val_acc", images=50))
    again.epoch_done(0, {"val_acc": 0.84})  # like the one kept, not like the highest
    assert (best.best, best.best_seen, again.epoch) == (0.90, 0.94, 2)
