"""How far a probability can be taken at its word: temperature scaling (arXiv:1706.04599)."""

from __future__ import annotations

import numpy as np

from .metrics import columns

RANGE = (0.1, 10.0)  # a few validation photos, all of them right, would ask for zero
_TINY = 1e-30  # float32 probabilities end at about 1e-45


def fit(labels: np.ndarray, probabilities: np.ndarray, task: str) -> float:
    """Return the temperature that makes these answers likeliest; above 1 they were too sure.

    Of n photos one and one more count as if they had been answered rightly and wrongly (Platt
    1999): ten photos, all of them right, promise 11 of 12.

    Args:
        labels: `(n, k)`, or `(n, 1)` if binary: of images that were not trained on.
        probabilities: `(n, k)`. task: `binary`, `multiclass` or `multilabel`.
    """
    from scipy.optimize import minimize_scalar

    true = columns(labels, task).astype("float64")
    others = 1 if task == "multilabel" else true.shape[1] - 1
    doubt = 1 / (len(true) + 2)
    true = true * (1 - doubt) + (1 - true) * doubt / max(others, 1)

    def loss(log_temperature: float) -> float:
        found = tempered(probabilities, task, np.exp(log_temperature))
        return _cross_entropy(true, found, task)

    return float(np.exp(minimize_scalar(loss, bounds=np.log(RANGE), method="bounded").x))


def tempered(probabilities: np.ndarray, task: str, temperature: float) -> np.ndarray:
    """Return the probabilities of logits divided by `temperature`: no answer changes by it."""
    p = np.asarray(probabilities, "float64")
    if task == "multilabel":
        odds = np.log(np.maximum(p, _TINY)) - np.log(np.maximum(1 - p, _TINY))
        return 1 / (1 + np.exp(-odds / temperature))
    # Logits are known up to a constant of each row, which does not matter.
    logs = np.log(np.maximum(p, _TINY)) / temperature
    powers = np.exp(logs - logs.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def _cross_entropy(true: np.ndarray, probabilities: np.ndarray, task: str) -> float:
    """Return the mean negative log-likelihood in nats; of a multilabel task, per decision."""
    p = np.clip(probabilities, 1e-15, 1)
    if task != "multilabel":
        return float(-(true * np.log(p)).sum(1).mean())
    return float(-(true * np.log(p) + (1 - true) * np.log1p(-np.minimum(p, 1 - 1e-15))).mean())
