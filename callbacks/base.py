"""What every callback here shares: state that outlives a fit, and the name of the stage."""

from __future__ import annotations

import copy
import warnings
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np

from ..errors import ResumeError, UsageError

# attributes of the model being fitted
CUT = "epoch_cut_short"
SIGNALLED = "stopped_by_signal"


def learning_rate(optimizer: keras.optimizers.Optimizer) -> float:
    """Return the rate of now; under a strategy it is a variable of every replica."""
    return float(np.asarray(optimizer.learning_rate))


def inner(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """Return the optimizer that takes the steps: with mixed precision it has one around it."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def scalars(logs: Mapping[str, Any] | None) -> dict[str, float]:
    """Return the quantities that are one number; `F1Score` may give one for each class."""
    return {name: float(value) for name, value in (logs or {}).items() if np.ndim(value) == 0}


def leaves(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """Yield the layers of a model and of the models in it."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from leaves(layer)
        else:
            yield layer


def sorted_out(model: keras.Model) -> tuple[list[Any], list[Any]]:
    """Return the variables of a model that stand still in a fit, and those that may change."""
    frozen = {id(v) for layer in leaves(model) if not layer.trainable for v in layer.weights}
    still = [v for v in model.variables if id(v) in frozen]
    return still, [v for v in model.variables if id(v) not in frozen]


def check_built(model: keras.Model) -> None:
    """Check that the variables of a model are there before its first batch.

    A model with a `train_step` of its own may never be built itself, but its layers are.

    Raises:
        UsageError: `train.not-built`.
    """
    layers = [*leaves(model)]
    if not model.built and not (layers and all(layer.built for layer in layers)):
        raise UsageError(
            "train.not-built",
            f"{model.name} has no variables before its first batch",
            fix="give it a keras.Input, or call model.build(shape) first",
        )


# what Keras hands to all callbacks of one fit, and which of them are of this package
_listed: tuple[Any, list[weakref.ref[Resumable]]] = (None, [])


class Resumable(keras.callbacks.Callback):
    """A callback whose state is the attributes named in `fields`.

    Keras' own callbacks wipe their state in `on_train_begin`; these never do, so a second
    `fit` goes on where the first one ended. An epoch that was cut short (see `StopOnSignal`)
    is not counted: a resumed run does it again, whole.
    """

    fields: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.stage = ""
        self._first = 0
        self._updates: int | None = None  # before an execution that the epoch ends in
        self._listed: list[weakref.ref[Resumable]] = []

    def set_params(self, params: dict[str, Any]) -> None:
        """Join the callbacks of this package in the list of a fit."""
        global _listed
        super().set_params(params)
        if params is not _listed[0]:
            _listed = params, []
        self._listed = _listed[1]
        self._listed.append(weakref.ref(self))

    @property
    def listed(self) -> list[Resumable]:
        """The callbacks of this package in the list of the fit, this one among them, in order."""
        return [callback for ref in self._listed if (callback := ref())]

    def new_stage(self, name: str) -> None:
        """Say that the next `fit` belongs to the stage `name`."""
        self.stage = name

    @property
    def epoch_steps(self) -> int | None:
        """Training steps of an epoch, or None where Keras does not know them."""
        return (self.params or {}).get("steps")

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
        """Remember the first of the steps that `steps_per_execution` runs at once."""
        self._first = batch
        steps = self.epoch_steps
        if steps is not None and batch + getattr(self.model, "steps_per_execution", 1) > steps:
            self._updates = self._updates_of_now()

    def _updates_of_now(self) -> int | None:
        """Return the steps of the optimizer, None where they are not those of the fit."""
        optimizer = getattr(self.model, "optimizer", None)
        if optimizer is None or inner(optimizer).gradient_accumulation_steps:
            return None
        return int(np.asarray(optimizer.iterations))

    def steps_done(self, batch: int) -> int:
        """Return how many steps of the epoch are done when Keras says that `batch` has ended.

        It takes every execution for a full one, also the last, where the epoch ends in it. That
        is told only where `epoch_steps` are known. Where the data goes on behind them Keras does
        take the last one for a full one, too; those steps are not counted, which is warned of.
        """
        steps = self.epoch_steps
        if steps is None or batch < steps:
            return batch + 1
        before, self._updates = self._updates, None
        left = steps - self._first
        if before is not None and (taken := (self._updates_of_now() or 0) - before) > left:
            warnings.warn(
                f"an epoch of {steps} steps, {self.model.steps_per_execution} at a time, ended "
                f"with {taken} where {left} were left; they are counted as {left}: make "
                "steps_per_epoch a multiple of steps_per_execution",
                stacklevel=3,
            )
        return steps

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Hand whole epochs to `epoch_done`, with those of their figures that are one number."""
        if not getattr(self.model, CUT, False):
            self.epoch_done(epoch, scalars(logs))

    def epoch_done(self, epoch: int, logs: Mapping[str, float]) -> None:
        """Count a whole epoch (from 0) and its figures; subclasses say how."""

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the state: plain values that JSON can hold."""
        return {name: copy.deepcopy(getattr(self, name)) for name in ("stage", *self.fields)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave, in this or another process.

        Raises:
            ResumeError: `resume.callback-state`, a value is missing; nothing is changed.
        """
        names = ("stage", *self.fields)
        if missing := [name for name in names if name not in state]:
            raise ResumeError(
                "resume.callback-state",
                f"the saved state of {type(self).__name__} lacks {', '.join(missing)}",
                fix="resume with the dlzoo version that wrote it",
            )
        for name in names:
            setattr(self, name, copy.deepcopy(state[name]))

    def arrays_version(self) -> str | None:
        """Return what changes whenever `arrays` do, or None if there are none to be saved."""
        return None

    def arrays(self) -> list[np.ndarray]:
        """Return the state that is too large for `state_dict`."""
        return []

    def load_arrays(self, arrays: list[np.ndarray]) -> None:
        """Take back what `arrays` gave, after `load_state_dict`."""
