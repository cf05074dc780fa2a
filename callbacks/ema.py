"""Measure and keep the moving average of the weights instead of the weights themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import UsageError
from .base import Resumable, inner


class AverageWeights(Resumable):
    """Put the optimizer's moving average of the weights in place for validation and `BestModel`.

    The average is kept by the optimizer (`make_optimizer(ema=0.99)`), so a checkpoint of `Resume`
    holds it as it holds every slot. In the list of callbacks this one stands behind `BestModel`,
    which then keeps averaged weights, and before `Resume`, which saves those that train.

    Raises:
        UsageError: `train.ema`, out of `fit`: the optimizer keeps no average.
    """

    def __init__(self) -> None:
        super().__init__()
        # variables and what trains, while the average is in its place
        self._trained: list[tuple[Any, np.ndarray]] = []
        self._fitting = False

    def on_train_begin(self, logs: Mapping[str, float] | None = None) -> None:
        """Look whether there is an average."""
        self.put_back()  # a fit that was interrupted in validation left it in place
        self._fitting = True
        if not getattr(inner(self.model.optimizer), "use_ema", False):
            raise UsageError(
                "train.ema",
                "the optimizer keeps no moving average of the weights",
                fix="make_optimizer(..., ema=0.99), or use_ema=True",
            )

    def on_test_begin(self, logs: Mapping[str, float] | None = None) -> None:
        """Put the average in place, where training goes on afterwards."""
        if self._fitting and not self._trained:
            pairs = self._pairs()
            self._trained = [(variable, np.asarray(variable)) for variable, _ in pairs]
            for variable, mean in pairs:
                variable.assign(mean)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Put back what trains."""
        self.put_back()

    def put_back(self) -> None:
        """Put back what trains, if the average stands in its place."""
        for variable, value in self._trained:
            variable.assign(value)
        self._trained = []

    def on_train_end(self, logs: Mapping[str, float] | None = None) -> None:
        """Leave an `evaluate` of its own alone."""
        self._fitting = False

    def _pairs(self) -> list[tuple[Any, Any]]:
        optimizer = inner(self.model.optimizer)
        # private, as in Keras' own SwapEMAWeights: there is no other way to them
        means = optimizer._model_variables_moving_average
        return list(zip(optimizer._trainable_variables, means, strict=True))
