"""CutMix beside mixup, and the moving average of the weights."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from dlzoo.callbacks import AverageWeights, BestModel, Resume
from dlzoo.data.augment import mixed
from dlzoo.errors import UsageError
from dlzoo.transfer.optim import make_optimizer
from keras.optimizers import LossScaleOptimizer

N = 6


def batch(weights=np.ones(N, "float32"), **options):
    """Images that are their own number everywhere, mixed; labels are one-hot."""
    images = np.broadcast_to(np.arange(N, dtype="float32")[:, None, None, None], (N, 20, 10, 3))
    parts = (images.copy(), np.eye(N, dtype="float32"), weights)
    dataset = tf.data.Dataset.from_tensors(parts).repeat(30)
    return [
        tuple(p.numpy() for p in x) for x in mixed(dataset, **{"alpha": 0, "seed": 1} | options)
    ]


def test_cutmix_puts_one_rectangle_of_another_image_in():
    seen = 0
    for x, y, w in batch(cutmix=1.0):
        for i in range(N):
            foreign = x[i, :, :, 0] != i
            seen += foreign.any()
            share = foreign.mean()
            assert len(np.unique(x[i])) <= 2
            rows, columns = foreign.any(1), foreign.any(0)
            assert foreign.sum() == rows.sum() * columns.sum()  # a rectangle
            if foreign.any():
                other = int(x[i, foreign][0, 0])
                assert y[i, other] == pytest.approx(share, abs=1e-6)
                assert y[i, i] == pytest.approx(1 - share, abs=1e-6)
            assert w[i] == 1
            assert y[i].sum() == pytest.approx(1, abs=1e-6)
    assert seen > 60


def test_with_both_a_batch_has_one_or_the_other_and_any_can_be_had_alone():
    every = batch(cutmix=1.0, alpha=1.0)
    whole = [np.ptp(x, axis=(1, 2, 3)).max() < 1e-6 for x, _, _ in every]
    assert 5 < sum(whole) < 25
    for a, b in zip(every[7:], batch(cutmix=1.0, alpha=1.0, first=7), strict=False):
        for left, right in zip(a, b, strict=True):
            np.testing.assert_array_equal(left, right)


def test_mixup_alone_is_what_it_was():
    (x, y, _), *_ = batch(alpha=0.4)
    rng = np.random.default_rng([1, 0])
    share, other = np.float32(rng.beta(0.4, 0.4)), rng.permutation(N)
    np.testing.assert_allclose(x[:, 0, 0, 0], share * np.arange(N) + (1 - share) * other, rtol=1e-6)
    np.testing.assert_allclose(y, share * np.eye(N) + (1 - share) * np.eye(N)[other], rtol=1e-6)


@pytest.mark.parametrize("kind", [{"alpha": 0.4}, {"cutmix": 1.0}])
def test_the_loss_of_a_mixed_image_is_the_weighted_sum_of_both(kind):
    weights = np.float32([0, 0, 1, 2, 7, 0.5])
    for (_, shares, _), (_, y, w) in zip(batch(**kind), batch(weights, **kind), strict=True):
        # cross-entropy is linear in the label, and sample i has class i
        np.testing.assert_allclose(w[:, None] * y, shares * weights, atol=1e-6)
        np.testing.assert_allclose(y[w > 0].sum(1), 1, atol=1e-6)


X = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
Y = X @ np.float32([[1.0], [-2.0], [0.5], [3.0]])


def fitted(epochs, ema, folder=None, stop_after=None, around=lambda optimizer: optimizer):
    """Return the model after a fit, the best weights, and what trained at each epoch's begin."""
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, kernel_initializer="ones")])
    model.compile(around(make_optimizer("sgd", 0.05, ema=ema)), "mse", jit_compile=False)
    trained = []

    class Watch(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            trained.append(np.asarray(self.model.trainable_variables[0]).ravel())

        def on_train_batch_end(self, batch, logs=None):
            trained.append(np.asarray(self.model.trainable_variables[0]).ravel())
            if stop_after and len(trained) == stop_after:
                raise KeyboardInterrupt

    best = BestModel()
    callbacks = [best, *([AverageWeights()] if ema else []), Watch()]
    resume = Resume(folder, [best], every=1) if folder else None
    try:
        model.fit(X, Y, 16, epochs, shuffle=False, verbose=0, validation_data=(X, Y),
                  initial_epoch=resume.epoch if resume else 0,
                  callbacks=[*callbacks, *([resume] if resume else [])])  # fmt: skip
    except KeyboardInterrupt:
        return None
    return model, best, np.array(trained)


def test_the_average_is_measured_and_kept_and_training_goes_on_without_it():
    _, _, plain = fitted(3, None)
    _, best, trained = fitted(3, 0.8)
    np.testing.assert_allclose(trained, plain, rtol=1e-6)  # the average changes no step
    steps = np.delete(trained, [0, 5, 10], axis=0)  # without the begin of epochs
    mean = steps[0]
    for weights in steps[1:]:
        mean = 0.8 * mean + 0.2 * weights
    assert best.epoch == 3
    np.testing.assert_allclose(np.ravel(best.kept[0]), mean, rtol=1e-5)


@pytest.mark.parametrize("around", [lambda optimizer: optimizer, LossScaleOptimizer])
def test_a_run_with_an_average_goes_on_to_the_same_bits(tmp_path, around):
    """Also with the optimizer that mixed precision puts around the one that has the average."""
    _, whole, _ = fitted(3, 0.8, around=around)
    assert fitted(3, 0.8, tmp_path, stop_after=8, around=around) is None
    _, again, _ = fitted(3, 0.8, tmp_path, around=around)
    for a, b in zip(whole.kept, again.kept, strict=True):
        np.testing.assert_array_equal(a, b)


def average_of(optimizer):
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    return np.ravel(optimizer._model_variables_moving_average[0])


def test_the_average_of_mixed_precision_is_kept():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, kernel_initializer="ones")])
    inner = make_optimizer("sgd", 0.05, ema=0.8)
    model.compile(keras.optimizers.LossScaleOptimizer(inner), "mse", jit_compile=False)
    best = BestModel()
    model.fit(X, Y, verbose=0, validation_data=(X, Y), callbacks=[best, AverageWeights()])
    np.testing.assert_array_equal(np.ravel(best.kept[0]), average_of(model.optimizer))


def test_a_fit_that_ended_in_validation_costs_the_next_one_nothing():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, kernel_initializer="ones")])
    model.compile(make_optimizer("sgd", 0.05, ema=0.8), "mse", run_eagerly=True)
    trained, measured = [], []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            trained.append(np.ravel(self.model.get_weights()[0]))

        def on_test_begin(self, logs=None):
            measured.append(np.ravel(self.model.get_weights()[0]))
            if len(measured) == 1:
                raise KeyboardInterrupt

        def on_epoch_end(self, epoch, logs=None):
            np.testing.assert_array_equal(np.ravel(self.model.get_weights()[0]), trained[-1])

    options = {"validation_data": (X, Y), "callbacks": [AverageWeights(), Watch()], "verbose": 0}
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, Y, 64, **options)
    model.fit(X, Y, 64, **options)
    np.testing.assert_array_equal(measured[1], average_of(model.optimizer))
    before = model.get_weights()[0]
    model.evaluate(X, Y, callbacks=options["callbacks"][:1], verbose=0)
    np.testing.assert_array_equal(model.get_weights()[0], before)


def test_an_optimizer_without_an_average_is_refused():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    with pytest.raises(UsageError, match=r"train\.ema"):
        model.fit(X, Y, verbose=0, callbacks=[AverageWeights()])
