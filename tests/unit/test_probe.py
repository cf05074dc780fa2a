"""The solved head: the minimum that scikit-learn finds, in one block of features or in many."""

from __future__ import annotations

import numpy as np
import pytest
from dlzoo import DlzooError
from dlzoo.transfer import probe
from sklearn.linear_model import LogisticRegression

N, WIDTH = 240, 12


def samples(task="multiclass", seed=0):
    """Return features of odd scales, one of them constant, labels that hang on them, weights."""
    rng = np.random.default_rng(seed)
    x = rng.normal(3, 1, (N, WIDTH)) * 10.0 ** (np.arange(WIDTH) % 5 - 2)
    x[:, 5] = 7
    noisy = (x - x.mean(0)) / (x.std(0) + 1e-9) + rng.normal(0, 1, x.shape)
    if task == "binary":
        y = (noisy[:, :1] > 0).astype("float32")
    elif task == "multilabel":
        y = (noisy[:, :3] > 0).astype("float32")
    else:
        y = np.eye(3, dtype="float32")[noisy[:, :3].argmax(1)]
    return x.astype("float16").astype("float32"), y, rng.uniform(0.5, 2, N).astype("float32")


@pytest.mark.parametrize("task", ["multiclass", "binary"])
def test_the_minimum_is_that_of_scikit_learn(task):
    (x, y, w), l2 = samples(task), 1e-2
    found = probe.fit((x, y, w), samples(task, 1), task, penalties=(l2,))
    w = w / w.mean()
    scaled = (x - x.mean(0)) / np.where(x.std(0) > 0, x.std(0), 1)
    labels = y.argmax(1) if task == "multiclass" else y[:, 0]
    theirs = LogisticRegression(C=1 / (l2 * N), tol=1e-8, max_iter=2000).fit(scaled, labels, w)
    logits = x @ found.kernel + found.bias
    expected = theirs.decision_function(scaled).reshape(N, -1)
    if task == "multiclass":  # a number added to all logits changes nothing
        logits = logits - logits.mean(1, keepdims=True)
        expected = expected - expected.mean(1, keepdims=True)
    np.testing.assert_allclose(logits, expected, atol=0.02)
    assert found.l2 == l2 and not found.kernel[5].any()


def test_what_hardly_moves_is_not_blown_up():
    """Such a feature counts for less than others of its part; parts have scales of their own."""
    x, y, w = samples()
    x = np.concatenate([(x - x.mean(0)) / (x.std(0) + 1e-9), 1e-3 * x[:, :1]], axis=1)
    x[:, 0] *= 1e-6
    labelled = (x, y, w)
    alike, known = (
        probe.fit(labelled, labelled, "multiclass", parts=parts, penalties=(1e-2,)).kernel
        for parts in ((), (WIDTH, 1))
    )
    assert np.abs(alike[0]).max() > 1e4 > 10 > np.abs(known[:WIDTH]).max()
    assert np.abs(known[WIDTH]).max() > 0.9 * np.abs(alike[WIDTH]).max() > 100


class Rows:
    """Features that are given by slices of rows, and tell how many were asked for at a time."""

    def __init__(self, x):
        self.x, self.most = x.astype("float16"), 0

    def __len__(self):
        return len(self.x)

    def __getitem__(self, part):
        self.most = max(self.most, len(self.x[part]))
        return self.x[part]


@pytest.mark.parametrize("task", ["multiclass", "binary", "multilabel"])
def test_block_by_block_it_is_the_same(monkeypatch, task):
    train, val = samples(task), samples(task, 1)
    whole = probe.fit(train, val, task, label_smoothing=0.1)
    monkeypatch.setattr(probe, "KEPT", N * WIDTH // 2)
    monkeypatch.setattr(probe, "BLOCK", 50 * WIDTH)
    rows, lowest = Rows(train[0]), min(row["val_loss"] for row in whole.rows)
    of_val = (Rows(val[0]), *val[1:])
    parts = probe.fit((rows, *train[1:]), of_val, task, label_smoothing=0.1)
    assert rows.most == N // 2 and len(whole.rows) > 3  # the half of them once, then by 50
    assert min(row["val_loss"] for row in parts.rows) == pytest.approx(lowest, abs=2e-3)
    monkeypatch.setattr(probe, "TOLERANCE_OF_MANY", probe.TOLERANCE)
    monkeypatch.setattr(probe, "WORSE_OF_MANY", probe.WORSE)
    parts = probe.fit((rows, *train[1:]), of_val, task, label_smoothing=0.1)
    assert parts.l2 == whole.l2
    theirs = {row["l2"]: row for row in whole.rows}
    for row in parts.rows:
        assert row == pytest.approx(theirs[row["l2"]], abs=1e-2)
    np.testing.assert_allclose(
        train[0] @ parts.kernel + parts.bias, train[0] @ whole.kernel + whole.bias, atol=0.05
    )


def test_one_image_is_enough_to_begin_with(monkeypatch):
    """However little may be kept, a path begins on something."""
    monkeypatch.setattr(probe, "KEPT", 1)
    assert probe.fit(samples(), samples(seed=1), "multiclass").rows[-1]["acc"] > 0.5


def test_the_penalty_is_the_best_on_validation_and_the_path_ends_there():
    found = probe.fit(samples(), samples(seed=1), "multiclass")
    best = min(found.rows, key=lambda row: row["val_loss"])
    assert found.l2 == best["l2"] and len(found.rows) < len(probe.PENALTIES)
    assert [row["l2"] for row in found.rows] == list(probe.PENALTIES[: len(found.rows)])


@pytest.mark.parametrize("kept", [1 << 25, 200 * WIDTH])
def test_features_that_are_no_numbers_are_counted(monkeypatch, kept):
    monkeypatch.setattr(probe, "KEPT", kept)
    x, y, w = samples()
    x[[3, 100]] = np.nan
    with pytest.raises(DlzooError, match=f"2 of {N} images") as error:
        probe.fit((x, y, w), samples(seed=1), "multiclass")
    assert error.value.id == "train.features"
    with pytest.raises(DlzooError, match="no features"):
        probe.fit(samples(), (x[:0], y[:0], w[:0]), "multiclass")
