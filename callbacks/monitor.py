"""The watched quantity: its name must exist, its direction must be known, NaN never wins."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..errors import UsageError, nearest
from .base import Resumable

# The last of these in a name counts: `top5_error` and the `heatmap_loss` of an output fall.
_WAYS = re.compile(
    r"(?P<min>loss|err|mae|mape|mse|msle|nll|ece|brier|crossentropy)"
    r"|(?P<max>acc|auc|f1|precision|recall|top|map|iou|kappa)",
    re.IGNORECASE,
)


def check_monitor(name: str, available: Iterable[str]) -> None:
    """Check that the quantity `name` is among those a fit reports.

    Raises:
        UsageError: `train.unknown-monitor`, listing the valid names.
    """
    known = sorted(available)
    if name not in known:
        raise UsageError(
            "train.unknown-monitor",
            f"nothing called {name!r} is measured{nearest(name, known)}",
            fix=f"use one of {', '.join(known) or 'none: the fit reports no metrics'}",
        )


class Monitor:
    """One quantity of the epoch's logs, and which way is better.

    Args:
        name: key of the logs, such as `val_loss`.
        mode: `min`, `max`, or `auto`: judged by what the name ends in (a loss or error falls,
            an accuracy rises).
        min_delta: the least change that counts, in the unit of the quantity.

    Raises:
        UsageError: `train.monitor-mode`, the direction cannot be told from the name.
    """

    def __init__(self, name: str, mode: str = "auto", min_delta: float = 0.0):
        if mode == "auto":
            mode = next((str(f.lastgroup) for f in reversed([*_WAYS.finditer(name)])), mode)
        if mode not in ("min", "max"):
            raise UsageError(
                "train.monitor-mode",
                f"whether {name!r} should fall or rise is not known (mode {mode!r})",
                fix="say mode='min' or mode='max'",
            )
        self.name = name
        self.sign = 1.0 if mode == "max" else -1.0
        self.min_delta = abs(min_delta)

    def may_come(self, logs: Mapping[str, float]) -> bool:
        """Return whether it is absent because nothing was validated in this epoch."""
        return self.name.startswith("val_") and not any(n.startswith("val_") for n in logs)

    def value(self, logs: Mapping[str, float]) -> float:
        """Return the quantity from an epoch's logs; raise `train.unknown-monitor` if absent."""
        check_monitor(self.name, logs)
        return float(logs[self.name])

    def better(self, value: float, best: float | None) -> bool:
        """Return whether `value` beats `best`; NaN beats nothing, and all but NaN beats None."""
        if math.isnan(value):
            return False
        return best is None or self.sign * (value - best) > self.min_delta


class Watcher(Resumable):
    """A callback that judges epochs by the quantity `monitor`; subclasses say how.

    Epochs without validation (`validation_freq`) are passed over. A callback cannot know whether
    validation is still to come, so that it never came is an error only when the fit has ended.
    """

    monitor: Monitor
    best: float | None

    def __init__(self) -> None:
        super().__init__()
        self._seen = False
        self._without: Mapping[str, float] = {}  # logs of an epoch passed over

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Refuse a quantity that is not one number."""
        if np.ndim((logs or {}).get(name := self.monitor.name, 0.0)):
            raise UsageError(
                "train.unknown-monitor",
                f"{name!r} has several numbers, so none of its values is the best",
                fix='watch one number, such as that of keras.metrics.F1Score(average="macro")',
            )
        super().on_epoch_end(epoch, logs)

    def epoch_done(self, epoch: int, logs: Mapping[str, float]) -> None:
        """Judge the epoch, if there is something to judge it by."""
        if not self.monitor.may_come(logs):
            self._seen = True
            self.judge(self.monitor.value(logs), logs)
            return
        if not (self._seen or self._without):
            warnings.warn(
                f"{type(self).__name__} passes over epoch {epoch + 1}, "
                f"which has no {self.monitor.name!r}: nothing was validated",
                stacklevel=2,
            )
        self._without = logs

    def judge(self, value: float, logs: Mapping[str, float]) -> None:
        """Count an epoch in which the quantity has come to `value`."""

    def on_train_end(self, logs: Mapping[str, float] | None = None) -> None:
        """Say that the quantity never came, where nobody has stopped the fit before it could."""
        without, self._without = self._without, {}
        seen = self._seen or self.best is not None  # maybe before a restart
        if without and not (seen or self.model.stop_training):
            check_monitor(self.monitor.name, without)
