"""Numbers that say how good a classifier is, and how far they can be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import DataError, ModelError

TOP = 5  # of top-k accuracy
BINS = 15  # of the calibration error
_EPS = 1e-15


def evaluate(
    labels: np.ndarray, probabilities: np.ndarray, classes: Sequence[str], task: str
) -> dict[str, Any]:
    """Return all figures of one split, JSON-able, the keys always the same.

    Args:
        labels: `(n, k)` one-hot or multi-hot; `(n, 1)` for a binary task (1: second class).
        probabilities: `(n, k)`, for a binary task two columns.
        classes: the k names.
        task: `binary`, `multiclass` or `multilabel`.

    Returns:
        n, task; correct, accuracy with its 95 % Wilson interval `accuracy_ci`; macro_f1 over
        the classes that occur in labels or predictions; log_loss (nats); top5_accuracy (None
        with five classes or fewer); calibration_error (expected, 15 bins); majority_class and
        majority_accuracy, what always giving the commonest answer scores; per_class `{name:
        {precision, recall, f1, support}}`, with a row for absent classes too; confusion, rows
        are true classes. With a multilabel task a row counts as correct if all its labels
        are, a label is predicted above 0.5, and confusion holds per class `[[tn, fp], [fn,
        tp]]`.

    Raises:
        DataError: `data.empty-split`. ModelError: `model.not-finite`.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, "float64")
    if not len(labels):
        raise DataError("data.empty-split", "there is no image to evaluate")
    if not np.isfinite(probabilities).all():
        raise ModelError("model.not-finite", "the model answered NaN or infinity")
    true = columns(labels, task)
    if task == "multilabel":
        figures = _multilabel(true > 0.5, probabilities, classes)
    else:
        figures = _single(true.argmax(1), probabilities, classes)
    n, correct = len(labels), figures.pop("correct")
    head = {
        "n": n,
        "task": task,
        "correct": correct,
        "accuracy": correct / n,
        "accuracy_ci": list(wilson(correct, n)),
        "calibration_error": _error(calibration(*confidence(labels, probabilities, task))),
    }
    return head | figures


def wilson(correct: float, n: float, z: float = 1.959964) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion (default z: 95 %), within [0, 1]."""
    p = correct / n
    centre = p + z * z / (2 * n)
    spread = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # At the ends the exact bound is 0 or 1; rounding must not put it on the wrong side.
    low, high = (centre - spread) / scale, (centre + spread) / scale
    return max(0.0, min(low, p)), min(1.0, max(high, p))


def columns(labels: np.ndarray, task: str) -> np.ndarray:
    """Return labels with a column for each class, as probabilities have them; binary has two."""
    labels = np.asarray(labels)
    # One column alone does not make a task binary: a multilabel one may have a single label.
    return np.hstack([1 - labels, labels]) if task == "binary" else labels


def taken(scores: np.ndarray, task: str) -> np.ndarray:
    """Return what each image is taken for, bool `(n, classes)`.

    That is the likeliest class; with a multilabel task every label above 0.5, perhaps none.
    """
    if task == "multilabel":
        return scores > 0.5
    return np.arange(scores.shape[1]) == scores.argmax(1)[:, None]


def joined(chosen: np.ndarray, classes: Sequence[str]) -> str:
    """Return the names of the chosen classes, a bool for each, with `|` between them."""
    return "|".join(name for name, yes in zip(classes, chosen, strict=True) if yes)


def confidence(
    labels: np.ndarray, probabilities: np.ndarray, task: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return how sure each answer is and whether it is right, as `calibration` takes them.

    That is the likeliest class of each image; with a multilabel task every label of it.
    """
    true = columns(labels, task)
    if task == "multilabel":
        return probabilities.ravel(), true.ravel() > 0.5
    return probabilities.max(1), probabilities.argmax(1) == true.argmax(1)


def calibration(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> list[list[float]]:
    """Return rows [images, mean confidence, share that was right] of equal-width bins."""
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    groups = [(confidence[place == b], right[place == b]) for b in range(bins)]
    return [[len(c), float(c.mean()), float(r.mean())] for c, r in groups if len(c)]


def _single(true: np.ndarray, probabilities: np.ndarray, classes: Sequence[str]) -> dict:
    n, k = probabilities.shape
    predicted = probabilities.argmax(1)
    right = predicted == true
    confusion = np.bincount(true * k + predicted, minlength=k * k).reshape(k, k)
    counts, answered = confusion.sum(1), confusion.sum(0)
    scores = _scores(confusion.diagonal(), answered, counts)
    top = None
    if k > TOP:
        of_true = probabilities[np.arange(n), true]
        # Ties go to the class with the lower number, as argmax decides them.
        ahead = probabilities > of_true[:, None]
        ahead |= (probabilities == of_true[:, None]) & (np.arange(k) < true[:, None])
        top = float((ahead.sum(1) < TOP).mean())
    likelihood = np.clip(probabilities[np.arange(n), true], _EPS, 1)
    return {
        "correct": int(right.sum()),
        "macro_f1": _macro(scores["f1"], counts + answered > 0),
        "log_loss": float(-np.log(likelihood).mean()),
        "top5_accuracy": top,
        "majority_class": classes[int(counts.argmax())],
        "majority_accuracy": float(counts.max() / n),
        "per_class": _per_class(classes, scores),
        "confusion": confusion.tolist(),
    }


def _multilabel(true: np.ndarray, probabilities: np.ndarray, classes: Sequence[str]) -> dict:
    predicted = probabilities > 0.5
    hits, answered, support = (a.sum(0) for a in (true & predicted, predicted, true))
    scores = _scores(hits, answered, support)
    misses, false_alarms = support - hits, answered - hits
    confusion = np.stack([len(true) - support - false_alarms, false_alarms, misses, hits], 1)
    answers, counts = np.unique(true, axis=0, return_counts=True)
    commonest = answers[counts.argmax()]
    p = np.clip(probabilities, _EPS, 1 - _EPS)
    return {
        "correct": int((true == predicted).all(1).sum()),
        "macro_f1": _macro(scores["f1"], support + answered > 0),
        "log_loss": float(-np.where(true, np.log(p), np.log1p(-p)).mean()),
        "top5_accuracy": None,
        "majority_class": "|".join(np.asarray(classes)[commonest]),
        "majority_accuracy": float(counts.max() / len(true)),
        "per_class": _per_class(classes, scores),
        "confusion": confusion.reshape(-1, 2, 2).tolist(),
    }


def _scores(hits: np.ndarray, answered: np.ndarray, support: np.ndarray) -> dict[str, np.ndarray]:
    """Return precision, recall, f1 and support of each class; of nothing they are 0.

    Three divisions: to import scikit-learn for them takes longer than most evaluations.
    """

    def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
        return part / np.maximum(whole, 1)

    precision, recall = share(hits, answered), share(hits, support)
    f1 = share(2 * hits, answered + support)
    return {"precision": precision, "recall": recall, "f1": f1, "support": support}


def _macro(f1: np.ndarray, occurs: np.ndarray) -> float:
    return float(f1[occurs].mean()) if occurs.any() else 0.0


def _per_class(
    classes: Sequence[str], scores: dict[str, np.ndarray]
) -> dict[str, dict[str, float]]:
    rows = zip(classes, *(column.tolist() for column in scores.values()), strict=True)
    return {name: dict(zip(scores, row, strict=True)) for name, *row in rows}


def _error(bins: list[list[float]]) -> float:
    total = sum(count for count, *_ in bins)
    return sum(count * abs(confidence - share) for count, confidence, share in bins) / total
