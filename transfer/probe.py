"""A linear classifier on features that stay as they are, fitted to convergence.

With everything below the head frozen the problem is convex: cross-entropy plus an L2 penalty on
standardised features. L-BFGS solves it in a second or two, so there is no learning rate, no
schedule and no number of epochs to choose. What is chosen is the penalty: a path from strong
to weak, each solution the start of the next, ended where the validation loss rises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import DataError
from .losses import activation

PENALTIES = tuple(10.0 ** (-k / 2) for k in range(1, 13))  # 0.3 to 1e-6, strong to weak
WORSE = 2  # penalties in a row without a better validation loss that end the path
# of images that are read anew each time; what is left out is less than they differ by chance
WORSE_OF_MANY, TOLERANCE_OF_MANY = 1, 1e-4
ITERATIONS = 100  # of L-BFGS for each penalty; warm starts need 10 to 40
TOLERANCE = 1e-5  # relative fall of the objective in one iteration that ends the fit
GRADIENT = 1e-7  # or its largest entry
LARGE = 1e9  # multiply-accumulates of one evaluation from which a second thread pays
KEPT = 1 << 24  # features that stay in memory: 64 MB
BLOCK = 1 << 20  # of more than those, so many at a time: 4 MB, what a processor has at hand
CONSTANT = 1e-6  # a deviation smaller than this share of the mean is rounding
# Channels that hardly move count for less than the others of their layer: made as large as those
# by factors of thousands, the first photo on which one moves would be answered by it alone.
STILL = 0.1

Samples = tuple[Any, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Fitted:
    """The best classifier of a path, `logits = features @ kernel + bias`.

    Attributes:
        kernel: float32 `(d, k)` for the features as they were given. bias: float32 `(k,)`.
        l2: its penalty. rows: l2, loss, acc, val_loss and val_acc of each penalty tried.
    """

    kernel: np.ndarray
    bias: np.ndarray
    l2: float
    rows: list[dict[str, float]] = field(default_factory=list)


def fit(
    train: Samples,
    val: Samples,
    task: str,
    *,
    parts: Sequence[int] = (),
    label_smoothing: float = 0.0,
    penalties: tuple[float, ...] = PENALTIES,
    leave: Callable[[], None] = lambda: None,
) -> Fitted:
    """Fit a path of penalties on `train` and keep the one with the lowest loss on `val`.

    What is minimised is the weighted mean over samples of the cross-entropy (for `multilabel`
    summed over the labels) plus `l2 / 2` times the squared kernel, which belongs to features of
    mean 0 and deviation 1. Losses are told as Keras tells them: with label smoothing, without
    the penalty, averaged over labels.

    Of `parts`, what deviates less than a tenth of the root mean square deviation in its part is
    divided by that tenth instead.

    Args:
        train, val: features, labels `(n, k)` in 0..1 (soft ones too), weights `(n,)`. Features
            are an array `(n, d)` of any float type, or what gives one for each slice of rows, such
            as `Activations`. If they are many, the path is begun on as many as fit into memory,
            and ends on all of them, which are read block by block, each time anew.
        task: `binary` (k is 1), `multiclass` or `multilabel`.
        parts: how many features each of the layers gives that they were taken from, in their
            order; without them all features count alike, whatever their deviations.
        label_smoothing: share of each label spread over the others, 0..1.
        penalties: strong to weak.
        leave: called at each evaluation; may raise to give up.

    Raises:
        DataError: `train.features`, a split that is empty or holds NaN or infinity.
    """
    softmax = activation(task) == "softmax"
    (x, y, w), (val_x, val_y, val_w) = _checked(train), _checked(val)
    mean, scale = x.standards(parts)
    for features in (x, val_x):
        features.standardise(mean, scale)
    y, val_y = (_smoothed(labels, softmax, label_smoothing) for labels in (y, val_y))
    theta = np.zeros((x.width + 1, y.shape[1]))
    theta[-1] = _prior(y, w, softmax)
    many = x.times > 1
    patience, tolerance = (WORSE_OF_MANY, TOLERANCE_OF_MANY) if many else (WORSE, TOLERANCE)
    if many:
        few = _Every(train[0], x.times), train[1][:: x.times], train[2][:: x.times]
        found = fit(
            few,
            val,
            task,
            parts=parts,
            label_smoothing=label_smoothing,
            penalties=penalties,
            leave=leave,
        )
        penalties = penalties[max(0, penalties.index(found.l2) - 1) :]
        np.divide(found.kernel, scale[:, None], out=theta[:-1], where=scale[:, None] > 0)
        theta[-1] = found.bias + mean @ found.kernel

    rows: list[dict[str, float]] = []
    best, chosen, worse = theta, penalties[0], 0
    for l2 in penalties:
        theta = _minimum(theta, x, y, w, softmax, l2, tolerance, leave)
        (loss, acc), (val_loss, val_acc) = (
            _told(theta, *split, softmax) for split in ((x, y, w), (val_x, val_y, val_w))
        )
        better = all(val_loss < row["val_loss"] for row in rows)
        rows.append({"l2": l2, "loss": loss, "acc": acc, "val_loss": val_loss, "val_acc": val_acc})
        best, chosen, worse = (theta, l2, 0) if better else (best, chosen, worse + 1)
        if worse == patience:
            break
    kernel = best[:-1] * scale[:, None]
    bias = best[-1] - mean @ kernel
    return Fitted(kernel.astype("float32"), bias.astype("float32"), chosen, rows)


class _Every:
    """Every so-manyth row of features."""

    def __init__(self, rows: Any, times: int):
        self._rows, self._times = rows, times

    def __len__(self) -> int:
        return -(-len(self._rows) // self._times)

    def __getitem__(self, part: slice) -> np.ndarray:
        first, last, _ = part.indices(len(self))
        return self._rows[first * self._times : last * self._times : self._times]


class _Features:
    """Features by blocks of rows: the one that stays in memory if all fit, else each read anew."""

    def __init__(self, rows: Any):
        if not len(rows):
            raise DataError("train.features", "there are no features to fit a classifier on")
        self._rows, self.size, self.width = rows, len(rows), rows[:1].shape[1]
        self.times = min(self.size, -(-self.size * self.width // KEPT))  # what may be kept
        step = self.size if self.times <= 1 else max(1, BLOCK // self.width)
        self._parts = [slice(at, at + step) for at in range(0, self.size, step)]
        self._standard: tuple[np.ndarray, np.ndarray] | None = None
        self._kept = self._read(self._parts[0]) if len(self._parts) == 1 else None

    def __iter__(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Go through the blocks, float32: which rows, and their features."""
        for part in self._parts:
            yield part, self._read(part) if self._kept is None else self._kept

    def standards(self, parts: Sequence[int] = ()) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and 1 / deviation, float32 `(d,)`; 0 in place of it for what is constant.

        Args:
            parts: see :func:`fit`.
        """
        mean, square = np.zeros(self.width), np.zeros(self.width)
        for _, x in self:
            mean += x.sum(axis=0, dtype="float64") / self.size
        mean = mean.astype("float32")  # the same that is taken off, and told of in the bias
        for _, x in self:
            for rows in np.array_split(x, max(1, x.size // BLOCK)):
                rows = rows - mean
                square += np.einsum("nd,nd->d", rows, rows, dtype="float64")
        deviation = np.sqrt(square / self.size)
        constant = deviation <= CONSTANT * np.abs(mean)
        for part in np.split(deviation, np.cumsum(parts)[:-1]) if parts else ():
            np.maximum(part, STILL * np.sqrt(np.mean(part**2)), out=part)
        scale = np.where(constant, 0, 1 / np.where(constant, 1, deviation))
        return mean, scale.astype("float32")

    def standardise(self, mean: np.ndarray, scale: np.ndarray) -> None:
        """From now on, give features less `mean`, times `scale`."""
        self._standard = mean, scale
        if self._kept is not None:
            self._move(self._kept)

    def _read(self, part: slice) -> np.ndarray:
        found = self._rows[part]
        # what owns its values was made for us; a part of an array is somebody's
        found = found.astype("float32", copy=not found.flags.owndata)
        return self._move(found) if self._standard else found

    def _move(self, x: np.ndarray) -> np.ndarray:
        assert self._standard
        mean, scale = self._standard
        x -= mean
        x *= scale
        return x


def _checked(samples: Samples) -> tuple[_Features, np.ndarray, np.ndarray]:
    """Return the parts of a split; the weights then have mean 1."""
    x = _Features(samples[0])
    y, w = (np.array(part, "float32") for part in samples[1:])
    bad = sum(np.count_nonzero(~np.isfinite(rows).all(axis=1)) for _, rows in x)
    if bad:
        raise DataError(
            "train.features",
            f"the network's features are NaN or infinite for {bad} of {x.size} images",
            fix="check the weights and the normalisation that belongs to them",
        )
    return x, y, w / w.mean()


def _smoothed(y: np.ndarray, softmax: bool, share: float) -> np.ndarray:
    return y * (1 - share) + share / (y.shape[1] if softmax else 2)


def _prior(y: np.ndarray, w: np.ndarray, softmax: bool) -> np.ndarray:
    """Return the logits of the label frequencies, each label counted once more than it occurs."""
    if softmax:
        return np.log((w @ y + 1) / (len(y) + y.shape[1]))
    return np.log((w @ y + 1) / (w @ (1 - y) + 1))


def _loss(logits: np.ndarray, y: np.ndarray, softmax: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the cross-entropy of each sample `(n,)`, and its gradient by the logits `(n, k)`."""
    if softmax:
        logits = logits - logits.max(axis=1, keepdims=True)
        likely = np.exp(logits)
        total = likely.sum(axis=1, keepdims=True)
        return np.log(total[:, 0]) - (y * logits).sum(axis=1), likely / total - y
    small = np.exp(-np.abs(logits))
    loss = np.maximum(logits, 0) - y * logits + np.log1p(small)
    return loss.sum(axis=1), np.where(logits > 0, 1, small) / (1 + small) - y


def _minimum(theta, x, y, w, softmax, l2, tolerance, leave) -> np.ndarray:
    """Return what minimises the objective: the kernel and, below it, the bias `(d + 1, k)`."""
    from scipy.optimize import minimize
    from threadpoolctl import threadpool_limits

    share = w / len(w)

    def objective(flat):
        leave()
        now = flat.reshape(theta.shape)
        value, gradient = l2 / 2 * np.square(now[:-1]).sum(), np.zeros(theta.shape)
        for part, rows in x:
            each, slope = _loss(_logits(rows, now), y[part], softmax)
            slope *= share[part, None]
            value += each @ share[part].astype("float64")
            gradient[:-1] += rows.T @ slope
            gradient[-1] += slope.sum(axis=0)
        gradient[:-1] += l2 * now[:-1]
        return value, gradient.ravel()

    options = {"maxiter": ITERATIONS, "ftol": tolerance, "gtol": GRADIENT}
    # Small products on several threads are ten times slower where other work has the cores.
    with threadpool_limits(1 if x.size * x.width * y.shape[1] < LARGE else None, "blas"):
        found = minimize(objective, theta.ravel(), jac=True, method="L-BFGS-B", options=options)
    return found.x.reshape(theta.shape)


def _logits(x: np.ndarray, theta: np.ndarray) -> np.ndarray:
    return x @ theta[:-1].astype("float32") + theta[-1].astype("float32")


def _told(theta, x, y, w, softmax) -> tuple[float, float]:
    """Return loss and accuracy as Keras tells them."""
    logits = np.concatenate([_logits(rows, theta) for _, rows in x])
    loss = np.average(_loss(logits, y, softmax)[0], weights=w)
    if softmax:
        return float(loss), float(np.mean(logits.argmax(axis=1) == y.argmax(axis=1)))
    return float(loss / y.shape[1]), float(np.mean((logits > 0) == (y > 0.5)))
