"""Learning-rate policies: one per fit, set through `optimizer.learning_rate`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping

import keras

from ..errors import UsageError
from .base import Resumable, learning_rate
from .monitor import Monitor, Watcher

NOTHING = 1e-3  # of the highest rate: below it a network stands still


class Policy(Resumable):
    """A callback that sets the learning rate, and so must be the only one to do it.

    A fit with two of this package, or with an optimizer that has a schedule of its own, is
    refused; those of Keras in the list are not seen.
    """

    def on_train_begin(self, logs: Mapping[str, float] | None = None) -> None:
        """Refuse whatever else sets the rate, before any batch."""
        check_single_policy(self.listed or [self], self.model.optimizer)


def check_single_policy(
    callbacks: Iterable[keras.callbacks.Callback], optimizer: keras.optimizers.Optimizer
) -> None:
    """Check that at most one thing sets the learning rate.

    Raises:
        UsageError: `train.two-schedules`, naming them.
    """
    ours = (Policy, keras.callbacks.LearningRateScheduler, keras.callbacks.ReduceLROnPlateau)
    found = [type(callback).__name__ for callback in callbacks if isinstance(callback, ours)]
    # A settable rate is a variable; that of a LearningRateSchedule or a function is not.
    if not isinstance(optimizer.learning_rate, keras.Variable):
        found.append("the optimizer's own schedule")
    if len(found) > 1:
        raise UsageError(
            "train.two-schedules",
            f"the learning rate is set by {' and by '.join(found)}",
            fix="keep one; give the optimizer a plain number to use a callback",
        )


class Schedule(Policy):
    """A learning rate that is a function of the training step.

    A new stage starts the schedule again; a second fit goes on with it. Subclasses give
    `schedule_value`.

    Args:
        highest: the largest of its rates.
        total_steps: those it is made for; that a fit goes on behind them, with a rate of next
            to nothing, is warned of.

    Attributes:
        step: steps done in this stage.
    """

    fields = ("step",)

    def __init__(self, highest: float, total_steps: float = math.inf):
        super().__init__()
        self.highest, self.total_steps = highest, total_steps
        self.step = 0
        self._told = False

    def schedule_value(self, step: int) -> float:
        """Return the learning rate of the step (from 0)."""
        raise NotImplementedError

    def new_stage(self, name: str) -> None:
        """Begin a stage, and with it the schedule."""
        super().new_stage(name)
        self.step = 0

    def on_train_begin(self, logs: Mapping[str, float] | None = None) -> None:
        """Begin a fit."""
        super().on_train_begin(logs)
        self._told = False

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
        """Set the rate of this step."""
        super().on_train_batch_begin(batch, logs)
        self.model.optimizer.learning_rate = self.schedule_value(self.step)

    def on_train_batch_end(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
        """Count the step, or the several that `steps_per_execution` ran."""
        over = self.step >= self.total_steps and logs  # without logs it was not computed
        if over and not self._told and self.schedule_value(self.step) < NOTHING * self.highest:
            self._told = True
            warnings.warn(
                f"the {self.total_steps} steps of {type(self).__name__} are over, and the fit goes "
                f"on with a learning rate of {self.schedule_value(self.step):g}: count total_steps "
                "in batches over all epochs, and begin anew with new_stage()",
                stacklevel=2,
            )
        self.step += self.steps_done(batch) - self._first


class Constant(Schedule):
    """The same learning rate at every step."""

    def __init__(self, base: float):
        super().__init__(base)
        self.base = base

    def schedule_value(self, step: int) -> float:
        """Return the base rate."""
        return self.base


class WarmupCosine(Schedule):
    """Linear rise over `warmup_steps`, then half a cosine down (arXiv:1608.03983).

    Args:
        base: rate at the end of the rise.
        total_steps: steps of the whole schedule; afterwards the rate stays `final`.
        warmup_steps: steps of the rise; the first one already has base / warmup_steps.
        final: rate at the end.

    Raises:
        UsageError: `train.schedule`, the steps do not fit together.
    """

    def __init__(self, base: float, total_steps: int, warmup_steps: int = 0, final: float = 0.0):
        super().__init__(base, total_steps)
        _check_steps(total_steps, warmup_steps)
        self.base, self.final, self.warmup_steps = base, final, warmup_steps

    def schedule_value(self, step: int) -> float:
        """Return the rate of the step (from 0)."""
        if step < self.warmup_steps:
            return self.base * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        return _cosine(self.base, self.final, done)


class OneCycle(Schedule):
    """Cosine up to `peak` and cosine down to almost nothing (arXiv:1708.07120).

    Momentum stays as it is: Keras holds it as a constant of the compiled step.

    Args:
        peak: highest rate.
        total_steps: steps of the whole cycle.
        rise: share of the steps spent going up, 0..1.
        start_div: the first rate is peak / start_div.
        final_div: the last rate is peak / final_div.
    """

    def __init__(
        self,
        peak: float,
        total_steps: int,
        rise: float = 0.3,
        start_div: float = 25.0,
        final_div: float = 1e4,
    ):
        super().__init__(peak, total_steps)
        self.peak = peak
        self.rise_steps = round(rise * total_steps)
        _check_steps(total_steps, self.rise_steps)
        self.start, self.final = peak / start_div, peak / final_div

    def schedule_value(self, step: int) -> float:
        """Return the rate of the step (from 0)."""
        if step < self.rise_steps:
            return _cosine(self.start, self.peak, step / self.rise_steps)
        fall = max(1, self.total_steps - 1 - self.rise_steps)  # the last step has the last rate
        return _cosine(self.peak, self.final, (step - self.rise_steps) / fall)


class ReduceLROnPlateau(Watcher, Policy):
    """Multiply the learning rate by `factor` when the watched quantity stands still.

    The lower rate holds from the next epoch on, so that each epoch's row shows the rate it was
    trained with. A new stage starts with its own rate and a fresh wait; `best` stays.

    Args:
        monitor: quantity to watch. Epochs without validation are passed over.
        factor: what to multiply by, 0 < factor < 1.
        patience: epochs without a better value before a reduction.
        cooldown: epochs after a reduction that do not count as waiting.
        min_lr: the rate never goes below.
        mode: `auto`, `min` or `max`.
        min_delta: least change that counts as better.

    Attributes:
        best, wait, cooling: best value, epochs waited, epochs of cooldown left.
        lr: the reduced rate, or None while the optimizer's own holds.

    Raises:
        UsageError: `train.schedule`, `factor` is not between 0 and 1.
    """

    fields = ("best", "wait", "cooling", "lr")

    def __init__(
        self,
        monitor: str = "val_loss",
        factor: float = 0.1,
        patience: int = 3,
        cooldown: int = 0,
        min_lr: float = 0.0,
        mode: str = "auto",
        min_delta: float = 0.0,
    ):
        super().__init__()
        if not 0 < factor < 1:
            raise UsageError("train.schedule", f"factor must be between 0 and 1, got {factor}")
        self.monitor = Monitor(monitor, mode, min_delta)
        self.factor, self.patience = factor, max(1, patience)
        self.cooldown, self.min_lr = cooldown, min_lr
        self.best: float | None = None
        self.wait = self.cooling = 0
        self.lr: float | None = None

    def new_stage(self, name: str) -> None:
        """Begin a stage with the rate its optimizer has."""
        super().new_stage(name)
        self.wait = self.cooling = 0
        self.lr = None

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Put the reduced rate in force, also after a restart; it never raises a rate."""
        optimizer = self.model.optimizer
        if self.lr is not None and self.lr < learning_rate(optimizer):
            optimizer.learning_rate = self.lr

    def judge(self, value: float, logs: Mapping[str, float]) -> None:
        """Count the epoch and decide on the rate of the next."""
        self.cooling = max(0, self.cooling - 1)
        if self.monitor.better(value, self.best):
            self.best, self.wait = value, 0
        elif self.cooling == 0:
            self.wait += 1
        if self.wait >= self.patience:
            current = learning_rate(self.model.optimizer)
            self.lr = min(current, max(current * self.factor, self.min_lr))
            self.wait, self.cooling = 0, self.cooldown


def _cosine(start: float, end: float, done: float) -> float:
    """Return the value between `start` and `end` when the share `done` of a half wave is over."""
    return end + (start - end) * (1 + math.cos(math.pi * min(1.0, done))) / 2


def _check_steps(total: int, rise: int) -> None:
    if total < 1 or not 0 <= rise <= total:
        raise UsageError(
            "train.schedule",
            f"a schedule of {total} steps cannot rise for {rise}",
            fix="use at least one step, and no more steps of rise than there are",
        )
