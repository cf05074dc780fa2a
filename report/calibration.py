"""How far a probability can be taken at its word: temperature scaling (arXiv:1706.04599)."""

from __future__ import annotations

import numpy as np

from .metrics import columns

RANGE = (0.1, 10.0)  # a few validation photos, all of them right, would ask for zero
_TINY = 1e-30  # float32 probabilities end at about 1e-45


def fit(labels: np.ndarray, probabilities: np.ndarray, task: str) -> float:
    """Return the temperature that makes these answers likeliest; above 1 they were too sure.

    Args:
        labels: `(n, k)`, or `(n, 1)` if binary: of images that were not trained on.
        probabilities: `(n, k)`. task: `binary`, `multiclass` or `multilabel`.
    """
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        found = tempered(probabilities, task, np.exp(log_temperature))
        return log_loss(labels, found, task)

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


def log_loss(labels: np.ndarray, probabilities: np.ndarray, task: str) -> float:
    """Return the mean negative log-likelihood in nats; of a multilabel task, per decision."""
    true, p = columns(labels), np.clip(probabilities, 1e-15, 1)
    if task != "multilabel":
        return float(-(true * np.log(p)).sum(1).mean())
    return float(-np.where(true > 0.5, np.log(p), np.log1p(-np.minimum(p, 1 - 1e-15))).mean())
