"""The watched quantity: its name must exist, its direction must be known, NaN never wins."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

from ..errors import UsageError, nearest

_HIGHER = re.compile(r"(acc|auc|f1|precision|recall|top|map|iou|kappa)")
_LOWER = re.compile(r"(loss|err|mae|mse|rmse|nll|ece|brier|crossentropy)")


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
        mode: `min`, `max`, or `auto`: judged by the name (a loss or error falls, an accuracy
            rises).
        min_delta: the least change that counts, in the unit of the quantity.

    Raises:
        UsageError: `train.monitor-mode`, the direction cannot be told from the name.
    """

    def __init__(self, name: str, mode: str = "auto", min_delta: float = 0.0):
        if mode == "auto":
            mode = "max" if _HIGHER.search(name) else "min" if _LOWER.search(name) else "auto"
        if mode not in ("min", "max"):
            raise UsageError(
                "train.monitor-mode",
                f"whether {name!r} should fall or rise is not known (mode {mode!r})",
                fix="say mode='min' or mode='max'",
            )
        self.name = name
        self.sign = 1.0 if mode == "max" else -1.0
        self.min_delta = abs(min_delta)

    def value(self, logs: Mapping[str, float]) -> float:
        """Return the quantity from an epoch's logs; raise `train.unknown-monitor` if absent."""
        check_monitor(self.name, logs)
        return float(logs[self.name])

    def better(self, value: float, best: float | None) -> bool:
        """Return whether `value` beats `best`; NaN beats nothing, and all but NaN beats None."""
        if math.isnan(value):
            return False
        return best is None or self.sign * (value - best) > self.min_delta
