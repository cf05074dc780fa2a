"""Keep the best weights over all stages."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

from ..errors import UsageError
from .monitor import Monitor, Watcher

CHANCE = 1.5  # standard errors; see benchmarks/RESULTS.md
WORSE = 1.25  # times the lowest loss
_ATTRIBUTE = "dlzoo_best"  # attribute of the weights file: what the weights in it reached


class BestModel(Watcher):
    """Keep the weights of the best epoch, whichever stage it was in; `restore` puts them back.

    After a fit the model has the weights of its last epoch.

    Args:
        model: the full model. A fit may train a sub-model that shares its variables; the
            weights kept are the full model's. Default: the model being fitted.
        monitor: quantity to watch. Epochs without validation are passed over.
        mode: `auto`, `min` or `max`.
        min_delta: least change that counts as better.
        images: how many images validate, where `monitor` is a share of them, such as `val_acc`:
            of the epochs that so many images cannot tell from the best, the last is kept, as long
            as its `val_loss` is not clearly above the lowest. Late weights, of a low learning
            rate, are mostly the better ones, and the highest of many accuracies on few images is
            a matter of chance. 0: the best is kept, whatever the difference, and of equals the
            first.
        snapshot: gives what is to be kept; default: the model's weights as arrays.
        restore: puts back what `snapshot` gave. Both or neither.
        path: a `.weights.h5` written whole at each improvement. It holds its own record, so
            it and the state cannot be of two epochs after a kill between two writes.

    Attributes:
        best: value of the epoch that is kept, or None.
        best_seen: best value so far, or None; another one only where `images` is given.
        least_loss: lowest `val_loss` so far, or None.
        epoch: the epoch that is kept, counted from 1 over all stages.
        best_stage: the stage it came from.
        improved: whether the last epoch is the one that is kept.
        kept: the snapshot held in memory, or None (after a restart, until it is given back
            or read from `path`). It is not part of `state_dict`, which is plain values; a
            checkpoint holds it as arrays, where it is not in a file of its own.

    Raises:
        UsageError: `train.best-model`, the arguments do not go together.
    """

    fields = ("best", "best_seen", "least_loss", "epoch", "best_stage", "epochs_seen")

    def __init__(
        self,
        model: keras.Model | None = None,
        *,
        monitor: str = "val_loss",
        mode: str = "auto",
        min_delta: float = 0.0,
        images: int = 0,
        snapshot: Callable[[], Any] | None = None,
        restore: Callable[[Any], None] | None = None,
        path: Path | str | None = None,
    ):
        super().__init__()
        if (snapshot is None) != (restore is None):
            raise UsageError("train.best-model", "snapshot and restore are given together")
        if path is not None and not str(path).endswith(".weights.h5"):
            raise UsageError("train.best-model", "the file must end in .weights.h5", where=path)
        self.monitor = Monitor(monitor, mode, min_delta)
        self.images = images
        self.full_model = model
        self._own = snapshot is None and path is None
        self.path = None if path is None else Path(path)
        self._snapshot = snapshot or (lambda: self._whole().get_weights())
        self._restore = restore or (lambda weights: self._whole().set_weights(weights))
        self.best: float | None = None
        self.best_seen: float | None = None
        self.least_loss: float | None = None
        self.epoch = 0
        self.best_stage = ""
        self.epochs_seen = 0
        self.improved = False
        self.kept: Any = None

    def _whole(self) -> keras.Model:
        return self.model if self.full_model is None else self.full_model

    def epoch_done(self, epoch: int, logs: Mapping[str, float]) -> None:
        """Count the epoch, also one that nothing can be said of."""
        self.epochs_seen += 1
        self.improved = False
        super().epoch_done(epoch, logs)

    def judge(self, value: float, logs: Mapping[str, float]) -> None:
        """Keep the weights if this epoch is the best so far, or cannot be told from it."""
        loss = float(logs.get("val_loss", math.nan))
        better = self.monitor.better(value, self.best_seen)
        # NaN is no fair loss
        fair = self.least_loss is None or loss <= WORSE * self.least_loss
        self.improved = better or (fair and alike(value, self.best_seen, self.images))
        if loss < (math.inf if self.least_loss is None else self.least_loss):
            self.least_loss = loss
        if better:
            self.best_seen = value
        if self.improved:
            self.best, self.epoch, self.best_stage = value, self.epochs_seen, self.stage
            self.kept = self._snapshot()
            if self.path is not None:
                self._write(self.path)

    def restore(self) -> bool:
        """Put the best weights back; return False if they are not to be had."""
        if self.kept is not None:
            self._restore(self.kept)
        elif self.path is not None and self._record() == _record(self.path):
            self._whole().load_weights(self.path)
        else:
            return False
        return True

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the state back; a file that holds a later epoch tells what it is itself."""
        super().load_state_dict(state)
        self.improved, self.kept = False, None
        record = None if self.path is None else _record(self.path)
        if record and record["epoch"] > self.epoch:
            for name in self._record():
                setattr(self, name, record[name])

    def arrays_version(self) -> str | None:
        """Return what changes with `kept`."""
        return f"{self.epoch} {self.best!r}" if self._own and self.kept is not None else None

    def arrays(self) -> list[np.ndarray]:
        """Return the weights kept."""
        return list(self.kept)

    def load_arrays(self, arrays: list[np.ndarray]) -> None:
        """Take the weights back."""
        self.kept = arrays or None

    def _record(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.fields if name != "epochs_seen"}

    def _write(self, path: Path) -> None:
        """Write weights and record as one file that is whole or not there."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{os.getpid()}.{path.name}")  # Keras wants the ending
        try:
            self._whole().save_weights(temporary)
            with h5py.File(temporary, "a") as file:
                file.attrs[_ATTRIBUTE] = json.dumps(self._record())
            with temporary.open("rb") as done:
                os.fsync(done.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def alike(one: float, other: float | None, images: int) -> bool:
    """Say whether two shares of so many images may be of one chance for each image.

    They are one where they differ by at most `CHANCE` standard errors. (On the same images, as
    here, differences are mostly smaller: what is told apart is told apart for sure.)
    """
    if not images or other is None or math.isnan(one):
        return False
    share = ((one + other) / 2 * images + 1) / (images + 2)  # never 0 or 1: that has no error
    return abs(one - other) <= CHANCE * math.sqrt(2 * share * (1 - share) / images)


def _record(path: Path) -> dict[str, Any] | None:
    """Return what the weights in the file reached, or None if it is not there or not ours."""
    if not path.exists():
        return None
    with h5py.File(path, "r") as file:
        return json.loads(file.attrs[_ATTRIBUTE]) if _ATTRIBUTE in file.attrs else None
