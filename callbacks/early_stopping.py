"""Stop when the watched quantity no longer gets better."""

from __future__ import annotations

from collections.abc import Mapping

from .monitor import Monitor, Watcher


class EarlyStopping(Watcher):
    """Stop a fit after `patience` epochs without a better value than any stage has seen.

    Args:
        monitor: quantity to watch; an unknown name raises `train.unknown-monitor`. Epochs
            without validation are passed over.
        mode: `auto`, `min` or `max`.
        min_delta: least change that counts as better.
        patience: whole epochs to wait, at least 1.
        per_stage: a new stage starts waiting afresh; otherwise the wait runs on through it.

    Attributes:
        best: best value so far, over all stages, or None.
        wait: epochs since then.
        stopped: whether patience ran out in this stage.
    """

    fields = ("best", "wait", "stopped")

    def __init__(
        self,
        monitor: str = "val_loss",
        mode: str = "auto",
        min_delta: float = 0.0,
        patience: int = 5,
        per_stage: bool = True,
    ):
        super().__init__()
        self.monitor = Monitor(monitor, mode, min_delta)
        self.patience = max(1, patience)
        self.per_stage = per_stage
        self.best: float | None = None
        self.wait = 0
        self.stopped = False

    def new_stage(self, name: str) -> None:
        """Begin a stage: `best` stays, `wait` starts again if `per_stage`."""
        super().new_stage(name)
        if self.per_stage:
            self.wait = 0
        self.stopped = False

    def judge(self, value: float, logs: Mapping[str, float]) -> None:
        """Count the epoch; stop the fit when patience has run out."""
        if self.monitor.better(value, self.best):
            self.best, self.wait = value, 0
        else:
            self.wait += 1
        self.stopped = self.wait >= self.patience
        if self.stopped:
            self.model.stop_training = True
