"""What a stage began with, so that it can begin again with smaller batches, also once resumed."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from ..callbacks import BestModel, Resumable
from ..callbacks.base import sorted_out


class Beginning(Resumable):
    """Keep what a stage may change: weights, seeds of dropout and the state of callbacks.

    It is given to `Resume` as a callback whose state is saved, so that checkpoints have it, too;
    its arrays are written once a stage.

    Args:
        model: the full model. best: of all stages; where it keeps weights, a stage begins with
            them. others: callbacks whose state is kept, too.

    Attributes:
        states: of the callbacks, or empty. version: changes with each stage; None: nothing is
            kept.
    """

    fields = ("states", "version")

    def __init__(self, model: keras.Model, best: BestModel, others: Sequence[Resumable]):
        super().__init__()
        self.whole, self.best = model, best
        self.kept = (best, *others)
        self.states: list[dict[str, Any]] = []
        self.version: str | None = None
        self._arrays: list[np.ndarray] = []

    def take(self) -> None:
        """Keep what is there now, with the stage's layers unfrozen."""
        self.states = [callback.state_dict() for callback in self.kept]
        self.version = uuid.uuid4().hex
        self._arrays = [np.asarray(v) for v in sorted_out(self.whole)[1]]

    def put_back(self) -> None:
        """Give everything what it had when it was taken."""
        for variable, array in zip(sorted_out(self.whole)[1], self._arrays, strict=True):
            variable.assign(array)
        for callback, state in zip(self.kept, self.states, strict=True):
            callback.load_state_dict(state)
        if self.best.epoch:
            self.best.load_arrays(self.whole.get_weights())

    def arrays_version(self) -> str | None:
        """Return what is another one in each stage."""
        return self.version

    def arrays(self) -> list[np.ndarray]:
        """Return the values of the variables."""
        return self._arrays

    def load_arrays(self, arrays: list[np.ndarray]) -> None:
        """Take the values back."""
        self._arrays = arrays
