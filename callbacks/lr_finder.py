"""Find a learning rate by trying all of them, and leave no trace."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from .. import files
from ..errors import DivergedError, UsageError
from .base import check_built, learning_rate
from .schedules import Policy

FEW = 10  # steps that say something about a slope


@dataclass(frozen=True)
class Suggestion:
    """Learning rates read off a range test.

    Attributes:
        lr: what to take: the lower one of the other two.
        steepest: where the loss falls fastest per factor of the rate.
        tenth: a tenth of the rate at which the loss is lowest.
    """

    lr: float
    steepest: float
    tenth: float


class LRFinder(Policy):
    """Train some steps at rates from low to high, then put everything back (arXiv:1506.01186).

    The rate rises by the same factor at each step, over as many epochs as the `fit` has, until
    the steps are done or the loss has diverged. At the end of the `fit` the variables of the model
    (weights, statistics, seed generators) and of the optimizer (slots, step count, learning
    rate) are what they were before it, to the bit; if it ends in an error, call `restore`, or
    use the callback as a context manager around it. What the data set draws at random is its
    own affair.

        with LRFinder() as finder:
            model.fit(x, y, epochs=3, callbacks=[finder], verbose=0)
        finder.suggestion().lr

    Args:
        low, high: the first and the last rate. steps: from the one to the other.
        smoothing: weight of the past in the moving average of the loss, 0..1.
        diverged: the test ends when the average is so many times its lowest value, and no
            better than at the start; or at a loss that is no number.
        path: a CSV file written at the end.

    Attributes:
        lrs, losses: of each step: its rate, and the loss of its batch before it.
        stopped: whether the test ended by divergence.

    Raises:
        UsageError: `train.lr-range`, the arguments make no sense; out of `fit`
            `train.not-built`, and as every learning-rate policy `train.two-schedules`.
    """

    def __init__(
        self,
        low: float = 1e-6,
        high: float = 1.0,
        steps: int = 100,
        *,
        smoothing: float = 0.8,
        diverged: float = 4.0,
        path: Path | str | None = None,
    ):
        super().__init__()
        if not (0 < low < high < math.inf and steps >= FEW and 0 <= smoothing < 1 < diverged):
            raise UsageError(
                "train.lr-range",
                f"no range test from {low} to {high} in {steps} steps "
                f"(smoothing {smoothing}, diverged {diverged})",
                fix=f"0 < low < high, at least {FEW} steps",
            )
        self.low, self.high, self.steps = low, high, steps
        self.smoothing, self.diverged = smoothing, diverged
        self.path = None if path is None else Path(path)
        self.lrs: list[float] = []
        self.losses: list[float] = []
        self.stopped = False
        self._kept: list[tuple[keras.Variable, np.ndarray]] = []

    def __enter__(self) -> LRFinder:
        return self

    def __exit__(self, *error: object) -> None:
        self.restore()

    def on_train_begin(self, logs: Mapping[str, float] | None = None) -> None:
        """Keep a copy of all that training changes."""
        super().on_train_begin(logs)
        check_built(self.model)
        model, optimizer = self.model, self.model.optimizer
        if not optimizer.built:  # or its slots would come into being in the first step
            optimizer.build(model.trainable_variables)
        changing = [*model.variables, *optimizer.variables]
        self._kept = [(variable, np.array(variable)) for variable in changing]
        self.lrs, self.losses, self.stopped = [], [], False

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
        """Set the rate of this step."""
        super().on_train_batch_begin(batch, logs)
        self.model.reset_metrics()  # the loss is to be that of the batch, not of the epoch so far
        share = min(len(self.lrs) / (self.steps - 1), 1.0)
        self.model.optimizer.learning_rate = self.low * (self.high / self.low) ** share

    def on_train_batch_end(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
        """Note rate and loss of the step (of several at once: their mean); stop in time."""
        loss = float((logs or {})["loss"])
        lr = learning_rate(self.model.optimizer)
        count = self.steps_done(batch) - self._first
        self.lrs += [lr] * count
        self.losses += [loss] * count
        average = _average(self.losses, self.smoothing)
        worst = max(self.diverged * min(average), average[0])
        self.stopped = not math.isfinite(loss) or average[-1] > worst
        if self.stopped or len(self.lrs) >= self.steps:
            self.model.stop_training = True

    def on_train_end(self, logs: Mapping[str, float] | None = None) -> None:
        """Put everything back and write the file."""
        self.restore()
        if self.path is not None:
            self.write(self.path)

    def restore(self) -> None:
        """Give model and optimizer back what they had before the test."""
        for variable, value in self._kept:
            variable.assign(value)
        self._kept = []

    @property
    def smooth(self) -> np.ndarray:
        """The loss of each step averaged with those before and behind it, float64 `(steps,)`.

        An average over the past alone lags behind, and would suggest too high a rate.
        """
        finite = next(
            (i for i, x in enumerate(self.losses) if not math.isfinite(x)), len(self.losses)
        )
        # clipped: a last loss of 1e20 would drown all before it
        losses = np.minimum(self.losses[:finite], max(self.losses[:FEW], default=0.0))
        there, back = _average(losses, self.smoothing), _average(losses[::-1], self.smoothing)
        return np.array([*(np.array(there) + back[::-1]) / 2, *self.losses[finite:]])

    @property
    def rows(self) -> list[dict[str, float]]:
        """One dict a step: step (from 1), lr, loss, smooth."""
        each = zip(self.lrs, self.losses, self.smooth.tolist(), strict=True)
        return [
            {"step": i, "lr": lr, "loss": loss, "smooth": smooth}
            for i, (lr, loss, smooth) in enumerate(each, 1)
        ]

    def suggestion(self) -> Suggestion:
        """Return the rates to train with.

        Raises:
            DivergedError: `train.no-rate`, the loss never fell.
        """
        smooth = self.smooth[np.isfinite(self.smooth)]
        lowest = int(smooth.argmin()) if len(smooth) else 0
        # What batches differ by is no fall.
        noise = float(np.std(self.losses[:FEW])) if len(smooth) >= FEW else 0.0
        if len(smooth) < FEW or not smooth[:FEW].mean() - smooth[lowest] > noise:
            raise DivergedError(
                "train.no-rate",
                f"the loss did not fall at any rate from {self.low:g} to {self.high:g}, "
                f"{len(self.losses)} steps",
                fix="start lower, take more steps, or look at the data and the labels",
            )
        wide = min(max(FEW, len(smooth) // 6), lowest + 1)
        # a line over many steps: from one to the next, batches differ more than the loss falls
        slopes = [np.polyfit(range(wide), smooth[i : i + wide], 1)[0]
                  for i in range(lowest + 2 - wide)]  # fmt: skip
        steepest = self.lrs[int(np.argmin(slopes)) + wide // 2]
        tenth = self.lrs[lowest] / 10
        return Suggestion(min(steepest, tenth), steepest, tenth)

    def write(self, path: Path | str) -> None:
        """Write the rows as CSV, atomically."""
        with files.replacing(path) as file:
            writer = csv.DictWriter(file, ["step", "lr", "loss", "smooth"], lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)


def _average(values: Any, smoothing: float) -> list[float]:
    """Return the exponential moving averages, not drawn to 0 at the start."""
    found, total, weight = [], 0.0, 0.0
    for value in values:
        total = smoothing * total + (1 - smoothing) * float(value)
        weight = smoothing * weight + (1 - smoothing)
        found.append(total / weight)
    return found
