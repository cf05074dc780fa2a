"""Stop a fit that has gone wrong, or that somebody wants stopped."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterable, Mapping
from types import FrameType

import numpy as np

from ..errors import DivergedError
from ..signals import listen
from ..workers import Together
from .base import CUT, SIGNALLED, Resumable, learning_rate


def chance(labels: np.ndarray, weights: np.ndarray | None = None) -> tuple[float, float]:
    """Return loss and accuracy of a network that has learnt only how frequent each label is.

    Args:
        labels: (n, classes) one-hot or multi-hot, or (n, 1) for a binary task, values 0..1.
        weights: (n,) of the samples in the loss, with a mean of 1; accuracy knows none.

    Returns:
        Cross-entropy in nats and accuracy 0..1, as `make_loss` and `make_metrics` measure them.
    """
    share = np.asarray(labels, np.float64).mean(axis=0)
    weighted = np.average(labels, axis=0, weights=weights)
    if len(share) > 1 and np.allclose(np.sum(labels, axis=1), 1.0):
        return _entropy(weighted), float(share.max())
    loss = np.mean([_entropy(np.array([p, 1 - p])) for p in weighted])
    return float(loss), float(np.maximum(share, 1 - share).mean())


def _entropy(shares: np.ndarray) -> float:
    return float(-np.sum(shares * np.log(np.clip(shares, 1e-12, 1))))


class StopOnDivergence(Resumable):
    """Raise when the loss is NaN or infinite, or stays at chance for whole epochs.

    Args:
        num_classes: classes of a single-label task; chance is then ln(classes), 1 / classes.
        chance_loss: loss at chance in nats, where `chance(labels)` knows better.
        chance_acc: accuracy at chance, 0..1.
        patience: whole epochs at chance, one after the other, before it counts as stuck.
        tolerance: how near, relative to the loss at chance, is at chance.
        margin: accuracy above chance that is still chance.
        files: names the images of a batch from (epoch, batch), both from 0; shown in the error.

    Attributes:
        step: training steps done over all fits.
        at_chance: epochs at chance, one after the other.

    Raises (out of `fit`):
        DivergedError: `train.diverged`, with the rate, the step and the rate to try.
    """

    fields = ("step", "at_chance")

    def __init__(
        self,
        num_classes: int | None = None,
        *,
        chance_loss: float | None = None,
        chance_acc: float | None = None,
        patience: int = 3,
        tolerance: float = 0.01,
        margin: float = 0.02,
        files: Callable[[int, int], Iterable[str]] | None = None,
    ):
        super().__init__()
        if num_classes is not None and num_classes > 1:
            chance_loss = math.log(num_classes) if chance_loss is None else chance_loss
            chance_acc = 1 / num_classes if chance_acc is None else chance_acc
        self.chance_loss, self.chance_acc = chance_loss, chance_acc
        self.patience, self.tolerance, self.margin = patience, tolerance, margin
        self.files = files
        self.step = self.at_chance = 0
        self._epoch = 0

    def new_stage(self, name: str) -> None:
        """Begin a stage: whole epochs at chance are counted afresh."""
        super().new_stage(name)
        self.at_chance = 0

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Remember the epoch, for the error."""
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
        """Stop at a step whose loss is not a number."""
        self.step += self.steps_done(batch) - self._first
        loss = float((logs or {}).get("loss", 0.0))
        if not math.isfinite(loss):
            self._stop(f"loss is {loss} at", batch)

    def epoch_done(self, epoch: int, logs: Mapping[str, float]) -> None:
        """Stop when the epoch is one too many at chance."""
        if self.chance_loss is None or "loss" not in logs:
            return
        # The penalty on weights is no part of what a network at chance must pay.
        weights = (v for v in self.model.trainable_variables if v.regularizer)
        loss = logs["loss"] - sum(float(v.regularizer(v)) for v in weights)
        acc = logs.get("acc", logs.get("accuracy"))
        stuck = abs(loss - self.chance_loss) <= self.tolerance * self.chance_loss
        if stuck and acc is not None and self.chance_acc is not None:
            stuck = acc <= self.chance_acc + self.margin
        self.at_chance = self.at_chance + 1 if stuck else 0
        if self.at_chance >= self.patience:
            self._stop(f"loss {loss:.3f} is no better than chance for {self.at_chance} epochs,")

    def _stop(self, what: str, batch: int | None = None) -> None:
        """Raise, proposing a tenth of the rate; one so low already is more likely too low."""
        lr = learning_rate(self.model.optimizer)
        other = lr / 10 if lr >= 1e-4 or batch is not None else lr * 10
        names = [] if batch is None or self.files is None else list(self.files(self._epoch, batch))
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        raise DivergedError(
            "train.diverged",
            f"{what} lr {lr:g} at step {self.step}",
            where=", ".join(names[:5]) + more if names else None,
            fix=f"try --lr {other:.3g}",
        )


class StopOnSignal(Resumable):
    """Finish the step on SIGINT, SIGTERM or SIGHUP, then stop the fit.

    A Ctrl-C after the first signal leaves at once, by KeyboardInterrupt. Use it as a context
    manager around one or more fits, so that the previous handlers come back on an error too;
    alone in `fit` it puts them back when the fit ends. A signal that was ignored before
    (`nohup`) stays ignored. Outside the main thread, where Python allows no handlers, it does
    nothing. Keras still reports the epoch that was cut short; the callbacks of this package do
    not count it, those of others do.

    Args:
        cut_validation: leave a validation that is under way after its batch, and start none;
            only where no callback of others would take its figures for those of all images.
        together: where several processes train, all stop at the step at which they hear of it.

    Attributes:
        received: number of the first signal, or None. `Resume`, later in the list, saves then.
    """

    def __init__(self, cut_validation: bool = False, together: Together | None = None) -> None:
        super().__init__()
        self.cut_validation = cut_validation and together is None
        self.together = together
        self.received: int | None = None
        self._restore: Callable[[], None] | None = None
        self._held = False

    def __enter__(self) -> StopOnSignal:
        self._held = True
        self._install()
        return self

    def __exit__(self, *error: object) -> None:
        self._held = False
        self._uninstall()

    def on_train_begin(self, logs: Mapping[str, float] | None = None) -> None:
        """Start listening, unless the context manager does."""
        setattr(self.model, SIGNALLED, False)
        self._install()

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Nothing of this epoch is cut yet."""
        setattr(self.model, CUT, False)

    def on_train_batch_end(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
        """Stop after this step if a signal has come; the last step leaves the epoch whole."""
        if self._told() is not None:
            self._stop()
            setattr(self.model, CUT, self.steps_done(batch) != self.epoch_steps)

    def on_test_batch_end(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
        """Leave a validation whose figures nobody will count."""
        if self.received is not None and self.cut_validation:
            self.model.stop_evaluating = True
            setattr(self.model, CUT, True)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Stop after this epoch if a signal came during validation."""
        if self._told(now=True) is not None:
            self._stop()

    def on_train_end(self, logs: Mapping[str, float] | None = None) -> None:
        """Put the previous handlers back, unless the context manager will."""
        setattr(self.model, CUT, False)
        if not self._held:
            self._uninstall()

    def _told(self, now: bool = False) -> int | None:
        """Return the signal that this process got, or that all have heard of."""
        if self.together is None or getattr(self.model, SIGNALLED, False):
            return self.received
        heard = self.together.step(self.received, now)
        self.received = self.received or heard
        return heard

    def _stop(self) -> None:
        self.model.stop_training = True
        setattr(self.model, SIGNALLED, True)

    def _install(self) -> None:
        if self._restore is None:
            self.received = None
            self._restore = listen(("SIGINT", "SIGTERM", "SIGHUP"), self._handle)

    def _uninstall(self) -> None:
        if self._restore is not None:
            self._restore()
            self._restore = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or number
