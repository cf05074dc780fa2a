"""Images worth a second look: those it was most wrong about, and labels that may be wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .metrics import columns, joined, taken


def worst(
    keys: Sequence[str],
    labels: np.ndarray,
    probabilities: np.ndarray,
    classes: Sequence[str],
    task: str,
    n: int,
) -> list[dict[str, Any]]:
    """Return the images with the largest loss, the worst first.

    Returns:
        Dicts of index (of the image), path, label, predicted, likeliest (class), probability (of
        the true class, on average if it has several), loss (nats). Several labels, or predicted
        ones, are joined by `|`.
    """
    found = taken(probabilities, task)
    true, safe = columns(labels, task), np.clip(probabilities, 1e-7, 1 - 1e-7)
    losses = -(true * np.log(safe)).sum(1)
    if task == "multilabel":
        losses -= ((1 - true) * np.log(1 - safe)).sum(1)
    return [
        {
            "index": int(i),
            "path": keys[i],
            "label": joined(true[i] > 0.5, classes),
            "predicted": joined(found[i], classes),
            "likeliest": classes[int(probabilities[i].argmax())],
            "probability": float((true[i] * probabilities[i]).sum() / max(1, true[i].sum())),
            "loss": float(losses[i]),
        }
        for i in np.argsort(-losses, kind="stable")[:n]
    ]


def title(row: Mapping[str, Any]) -> str:
    """Return what stands above the picture of a row of `worst`."""
    told = f"{row['label']} ({row['probability']:.0%})" if row["label"] else "no label"
    if row["label"] == row["predicted"]:
        return told
    return f"{told}, taken for {row['predicted'] or 'none'}"


def label_errors(
    keys: Sequence[str],
    labels: np.ndarray,
    probabilities: np.ndarray,
    classes: Sequence[str],
    task: str,
) -> list[dict[str, Any]]:
    """Return images whose label is likely wrong, the likeliest first (arXiv:1911.00068).

    A class is claimed by an image that gives it at least what the images labelled with it give
    on average. An image that claims another class than its own, and not its own, is doubted; of
    several claimed ones the likeliest counts. With a multilabel task each label is a question of
    its own, yes or no.

    Args:
        labels, probabilities: of images that were not trained on; of them a network is too sure.

    Returns:
        Dicts of index, path, label, likelier, and the probabilities of the two: own, other. In a
        multilabel task these are `NAME` and `not NAME`.
    """
    true, p = columns(labels, task) > 0.5, np.asarray(probabilities, "float64")
    questions: Iterable[tuple[Sequence[str], np.ndarray, np.ndarray]] = [(classes, true, p)]
    if task == "multilabel":
        questions = (
            ((f"not {name}", name), np.stack([~t, t], 1), np.stack([1 - q, q], 1))
            for name, t, q in zip(classes, true.T, p.T, strict=True)
        )
    rows = [
        {
            "index": int(i),
            "path": keys[i],
            "label": names[own],
            "likelier": names[other],
            "own": float(p[i, own]),
            "other": float(p[i, other]),
        }
        for names, true, p in questions
        for i, own, other in _doubted(true, p)
    ]
    return sorted(rows, key=lambda row: row["own"] - row["other"])


def pairs(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> list[tuple[str, str, int]]:
    """Return (true class, predicted class, images) of wrong answers, most frequent first."""
    table = np.asarray(confusion)
    found = [
        (classes[i], classes[j], int(table[i, j])) for i, j in np.argwhere(table > 0) if i != j
    ]
    return sorted(found, key=lambda pair: -pair[2])


def _doubted(true: np.ndarray, p: np.ndarray) -> Iterable[tuple[int, int, int]]:
    """Yield image, its class and the one it claims; `true` and `p` are `(n, k)`, one-hot."""
    rows, counts = np.arange(len(p)), true.sum(0)
    usual = np.where(counts > 0, (true * p).sum(0) / np.maximum(counts, 1), np.inf)
    claims = np.where(p >= usual, p, -1)
    own, other = true.argmax(1), claims.argmax(1)
    doubted = ~(claims[rows, own] >= 0) & (claims[rows, other] >= 0)
    return zip(rows[doubted], own[doubted], other[doubted], strict=True)
