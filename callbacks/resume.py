"""Go on after a kill as if nothing had happened: checkpoints in the middle of an epoch."""

from __future__ import annotations

import sys
import time
import uuid
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import keras
import numpy as np

from ..errors import ResumeError, UsageError
from ..units import parse_seconds
from ..workers import Together, Workers
from .base import CUT, SIGNALLED, Resumable, check_built, inner, sorted_out
from .checkpoint import KEEP, Checkpoint, Checkpoints, Group

INTERVAL = 20.0  # seconds between two checkpoints of `every="auto"`, at least
SHARE = 0.02  # of the time that they may take
ENDED = (sys.maxsize, 0)  # epoch and batch where nothing is left to do
GROUPS = ("still", "model", "optimizer", "metrics")
# Keras' own that begin anew in each `fit`, and what does the same here and is saved
STATEFUL = {
    keras.callbacks.EarlyStopping: "EarlyStopping",
    keras.callbacks.ReduceLROnPlateau: "ReduceLROnPlateau",
    keras.callbacks.ModelCheckpoint: "BestModel(path=...)",
    keras.callbacks.BackupAndRestore: "Resume alone",
}


class Resume(Resumable):
    """Write checkpoints while a model is fitted, and go on from the newest one.

    ::

        kept = [EarlyStopping(patience=3), BestModel()]
        resume = Resume("ckpt", kept)
        model.fit(images, labels, epochs=20, shuffle=False, validation_split=0.1,
                  initial_epoch=resume.epoch, callbacks=[*kept, resume])

    A checkpoint has every variable of the model (also BatchNorm's statistics and the state of
    dropout), the slots, step and rate of its optimizer (and of others that are attributes of
    it), the sums of the metrics in the middle of an epoch, the state of the callbacks, and where
    training stands. A fit that goes on inside an epoch calls the callbacks for the steps before
    that without computing them; what the callbacks of others make of those steps is theirs.
    Several fits may follow one another, each up to more `epochs` than the one before.

    The result is the same to the last bit where the same steps see the same batches: the order
    of the data may depend on the number of the epoch and on nothing else, and operations must
    be deterministic (`tf.config.experimental.enable_op_determinism`).

    Args:
        folder: of the checkpoints.
        callbacks: those whose state is saved. They stand before this one in the list of `fit`.
        every: training steps between two checkpoints, a time such as `"30s"`, or `"auto"`: at
            least 20 seconds, and so rarely that they take 2 % of the time.
        model: the full model, where a fit trains a part of it. Default: the one being fitted.
        keep: checkpoints that stay.
        data_goes_on: the data given to `fit` begin where `resume.epoch` and `resume.batch` say;
            else the batches before that are read and dropped.
        more: gives plain values to save; they come back in `found.state["more"]`.
        together: where several processes train, each has a `Resume` on the one folder: all save
            at the same step, and the first of them writes.
        say: told of a damaged checkpoint that is passed over; default: a warning.

    Attributes:
        found: the checkpoint to go on from, or None.
        step: training steps done, over all fits.
        epoch, batch: where to go on, both from 0; `epoch` is past all if training had ended.
        stall: seconds that writing took, for each checkpoint.

    Raises:
        ResumeError: `resume.no-valid-checkpoint`; `resume.config-changed` out of `fit`, when the
            checkpoint is that of another network or optimizer, or of other batches.
        ResourceError: `resume.disk`, `resume.permission`.
        UsageError: `resume.callback`, also out of `fit` where this one is not the last;
            `resume.initial-epoch`, `resume.every`; out of `fit` `train.not-built`: what is made
            in the first batch cannot be put back before it.
    """

    def __init__(
        self,
        folder: Path | str,
        callbacks: Iterable[keras.callbacks.Callback] = (),
        *,
        every: str | int = "auto",
        model: keras.Model | None = None,
        keep: int = KEEP,
        data_goes_on: bool = False,
        more: Callable[[], dict[str, Any]] = dict,
        together: Together | None = None,
        say: Callable[[str], None] = lambda line: warnings.warn(line, stacklevel=3),
    ):
        super().__init__()
        self.steps_between, self.time_between = _interval(every)
        self.full_model, self.data_goes_on, self.more = model, data_goes_on, more
        self.watched = _watched(callbacks)
        self.checkpoints = Checkpoints(folder, keep=keep, say=say)
        self.together = together
        if together:
            together.due = self._time_is_up
        self.found = self._newest()
        state = self.found.state if self.found else {}
        self.step, self.epoch, self.batch = (state.get(n, 0) for n in ("step", "epoch", "batch"))
        self.stall: list[float] = []
        self._pending = self.found  # until the fit is where it was
        self._saved_step, self._saved_at = self.step, time.perf_counter()
        self._skip = self._skipped = 0
        self._sums: list[np.ndarray] = []  # of the metrics, at the end of an epoch's steps
        self._still = uuid.uuid4().hex

    # -- going on

    def _newest(self) -> Checkpoint | None:
        """Return the newest checkpoint; the chief looks first, and puts aside what is damaged."""
        workers = self.together.workers if self.together else Workers()
        found = self.checkpoints.newest() if workers.chief else None
        if workers.count > 1 and workers.agree(found is not None) and not workers.chief:
            found = self.checkpoints.newest()
        return found

    def new_stage(self, name: str) -> None:
        """Begin a stage: its fit starts with its first epoch, whatever was found."""
        super().new_stage(name)
        self._pending, self.epoch, self.batch = None, 0, 0

    def watching(self, callbacks: Iterable[keras.callbacks.Callback]) -> Resume:
        """Save the state of these callbacks from now on."""
        self.watched = _watched(callbacks)
        return self

    def put_weights_back(self) -> None:
        """Give the model what the checkpoint holds, before anything is computed with it; the fit
        that goes on puts back everything.
        """
        if self._pending is not None:
            self._assign(self._pending, ("still", "model"))

    def load(self, callback: Resumable) -> None:
        """Give a callback what the checkpoint found has of it, before the fit that goes on does."""
        if self._pending is not None:
            _load(callback, self._pending, type(callback).__name__)

    def put_back(self) -> None:
        """Give model and callbacks what the checkpoint holds, where no fit is to go on."""
        if self._pending is not None:
            self._restore(self._pending, ("still", "model"))
            self._pending = None

    def on_train_begin(self, logs: Mapping[str, float] | None = None) -> None:
        """Put everything back, or see that the disk has room for the checkpoints to come."""
        check_built(self.model)
        self._check_list()
        for optimizer in self._others():
            if not optimizer.built:
                raise UsageError(
                    "train.not-built",
                    f"{optimizer.name}, an optimizer of {self.model.name}, has no variables "
                    "before its first step",
                    fix="call its build(variables) first, with those that it trains",
                )
        self._still = uuid.uuid4().hex
        self._saved_at = time.perf_counter()
        if self._pending is None:
            groups = self._groups()
            if self._writes:
                self.checkpoints.check_room(groups)
            return
        self._still = self._pending.version("still") or self._still
        self._restore(self._pending)

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Skip the steps of the epoch that were done before."""
        self._sums = []
        checkpoint = self._pending
        if checkpoint is None:
            self.epoch, self.batch = epoch, 0
            return
        if epoch != self.epoch:
            raise UsageError(
                "resume.initial-epoch",
                f"the fit begins with epoch {epoch}, but {self.epoch} are done",
                where=checkpoint.path,
                fix="pass initial_epoch=resume.epoch to fit",
            )
        self._restore(checkpoint)
        self._skip = self.batch
        if not self._skip:
            self._pending = None
            return
        steps, at_once = self.epoch_steps, self.model.steps_per_execution
        inside = self._skip % at_once and self._skip != steps  # an execution is done as a whole
        if inside or self._skip > (steps or self._skip):
            raise self._other_data(f"{steps or 'an unknown number'}, {at_once} at a time")
        self._compute, self._skipped = self.model.train_function, 0
        self.model.train_function = self._pass_over

    def _pass_over(self, iterator: Any) -> dict[str, float]:
        """Stand in for the model's training step, for the steps that were done before."""
        at_once, found = self.model.steps_per_execution, self._pending
        self._skipped += at_once
        last = self._skipped >= self._skip
        if not self.data_goes_on:
            batch = deque(islice(iterator, at_once), maxlen=1)  # the epoch may end in them
            if not batch:
                self.model.train_function = self._compute
                raise self._other_data("fewer")
            missing = found and len(self._variables("metrics")) < len(found.arrays("metrics"))
            if last and missing:
                self.model.make_test_function()  # makes the metrics as a training step does
                self.model.test_function(iter(batch))
                self.model.reset_metrics()
        if last and self.epoch_steps in (None, self._skip):
            return self.model.get_metrics_result()  # Keras wants the names of an epoch's logs
        return {}  # a step without logs was not computed

    def _other_data(self, steps: str) -> ResumeError:
        return ResumeError(
            "resume.config-changed",
            f"{self._skip} steps of epoch {self.epoch + 1} are done, but now it has {steps}",
            where=self.checkpoints.folder,
            fix="resume with the data, the batch size and the steps_per_execution of before",
        )

    def on_train_batch_end(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
        """Count the step; write a checkpoint if it is time for one or the fit is being stopped."""
        if self._pending is not None:
            if batch + 1 >= self._skip:
                self.model.train_function = self._compute
                self._restore(self._pending)  # the callbacks have counted what was skipped
                self._pending, self._skipped = None, 0
            return
        self.batch = self.steps_done(batch)
        self.step += self.batch - self._first
        if self.batch == self.epoch_steps:
            return  # the whole epoch is saved, after validation
        if getattr(self.model, SIGNALLED, False) or self._due():
            self.save()

    def on_test_begin(self, logs: Mapping[str, float] | None = None) -> None:
        """Keep the sums of the epoch's steps: validation uses the same variables."""
        self._sums = [np.asarray(v) for v in self.model.metrics_variables]

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Write a checkpoint if it is time for one, or if this is the end."""
        if getattr(self.model, CUT, False):
            if self._sums and self._pending is None:  # in validation: all steps are done
                self.save(sums=self._sums)
            return
        self._sums = []
        self.epoch, self.batch = epoch + 1, 0
        asked = getattr(self.model, SIGNALLED, False)
        early = self.model.stop_training and not asked
        last = self.epoch == (self.params or {}).get("epochs")
        if asked or early or last or self._due():
            self.save(ended=early)

    def on_train_end(self, logs: Mapping[str, float] | None = None) -> None:
        """Leave the model as it was given, and what a later fit has begun to that one."""
        if self._pending is not None and self._skip:
            self.model.train_function = self._compute
        elif ((self.params or {}).get("epochs", 0), 0) < (self.epoch, self.batch) < ENDED:
            return
        self._pending = None

    # -- saving

    def save(self, *, ended: bool = False, sums: Sequence[np.ndarray] | None = None) -> None:
        """Write a checkpoint now.

        Args:
            ended: training is over; a fit that goes on from here does nothing.
            sums: of the metrics; default: those of now.
        """
        began = time.perf_counter()
        state = {
            "step": self.step,
            "epoch": ENDED[0] if ended else self.epoch,
            "batch": self.batch,
            "stage": self.stage,
            "callbacks": {name: c.state_dict() for name, c in self.watched.items()},
            "more": self.more(),
        }
        groups = self._groups(sums)
        if self._writes:
            self.found = self.checkpoints.save(self.step, groups, state)
        self._saved_step, self._saved_at = self.step, time.perf_counter()
        self.stall.append(self._saved_at - began)

    def save_what_is_done(self) -> None:
        """Write a checkpoint of the steps done, where an error has ended the fit between two."""
        if self._pending is None and self.step > self._saved_step:
            self.save(sums=self._sums or None)

    def _due(self) -> bool:
        if self.steps_between is not None:
            return self.step - self._saved_step >= self.steps_between
        return self.together.save if self.together else self._time_is_up()

    def _time_is_up(self) -> bool:
        if self.steps_between is not None:
            return False
        wait = self.time_between
        if wait is None:
            wait = max(INTERVAL, self.stall[-1] / SHARE if self.stall else 0.0)
        return time.perf_counter() - self._saved_at >= wait

    @property
    def _writes(self) -> bool:
        return self.together is None or self.together.workers.chief

    def _whole(self) -> keras.Model:
        return self.model if self.full_model is None else self.full_model

    def _check_list(self) -> None:
        """See that the others are saved, and not before they have counted a step."""
        watched, others = self.watched.values(), [c for c in self.listed if c is not self]
        behind = self.listed[self.listed.index(self) + 1 :] if self.listed else []
        if late := [type(c).__name__ for c in behind if c in watched]:
            raise UsageError(
                "resume.callback",
                f"{', '.join(late)} would be saved before it has counted the step",
                fix="put Resume behind it in the list of callbacks",
            )
        if forgotten := [type(c).__name__ for c in others if c.fields and c not in watched]:
            warnings.warn(
                f"Resume does not save {', '.join(forgotten)}: give it in Resume(folder, "
                "callbacks), too, or it begins anew after a restart",
                stacklevel=2,
            )

    def _others(self) -> list[keras.optimizers.Optimizer]:
        """Return what optimizers a model with a `train_step` of its own has besides."""
        own = self.model.optimizer
        held: list[Any] = []
        for value in vars(self.model).values():
            several = value.values() if isinstance(value, Mapping) else value
            held += several if isinstance(value, Mapping | list | tuple) else [value]
        known = (own, inner(own))
        return [o for o in held if isinstance(o, keras.optimizers.Optimizer) and o not in known]

    def _variables(self, name: str) -> list[Any]:
        """Return the variables of a group; `still` are those that do not change in this fit."""
        if name == "optimizer":
            return [v for o in (self.model.optimizer, *self._others()) for v in o.variables]
        if name == "metrics":
            return list(self.model.metrics_variables)
        still, moving = sorted_out(self._whole())
        return still if name == "still" else moving

    def _groups(self, sums: Sequence[np.ndarray] | None = None) -> dict[str, Group]:
        def read(variables: Sequence[Any]) -> Callable[[], list[np.ndarray]]:
            return lambda: [np.asarray(v) for v in variables]

        groups = {name: Group(read(self._variables(name))) for name in GROUPS}
        groups["still"] = Group(groups["still"].arrays, self._still)
        # of all replicas and processes: each must ask for them
        metrics = [np.asarray(v) for v in self._variables("metrics")] if sums is None else sums
        groups["metrics"] = Group(lambda: metrics)
        for name, callback in self.watched.items():
            if version := callback.arrays_version():
                groups[name] = Group(callback.arrays, version)
        return groups

    def _restore(self, checkpoint: Checkpoint, groups: Sequence[str] = GROUPS) -> None:
        """Put back what a checkpoint holds, as often as something may have changed it."""
        # Only what is not built: that of mixed precision would make its own variables once more.
        # Of a model with several optimizers its own may do nothing, and have no more.
        if "optimizer" in groups and not (own := self.model.optimizer).built:
            lacks = len(self._variables("optimizer")) < len(checkpoint.arrays("optimizer"))
            if lacks:
                own.build(self.model.trainable_variables)
        # an epoch begins with no sums of metrics
        self._assign(checkpoint, [n for n in groups if n != "metrics" or self._skipped])
        self.stage = checkpoint.state["stage"]
        for name, callback in self.watched.items():
            _load(callback, checkpoint, name)

    def _assign(self, checkpoint: Checkpoint, groups: Iterable[str]) -> None:
        for name in groups:
            file = checkpoint.path / f"{name}.npz"
            assign(self._variables(name), checkpoint.arrays(name), file)


def _load(callback: Resumable, checkpoint: Checkpoint, name: str) -> None:
    """Give a callback what a checkpoint has of it by this name, if it has anything."""
    if name in checkpoint.state["callbacks"]:
        callback.load_state_dict(checkpoint.state["callbacks"][name])
        callback.load_arrays(checkpoint.arrays(name))


def build_metrics(model: keras.Model, labels: Any, answers: Any, weights: Any = None) -> None:
    """Let a compiled model make its metrics now, not in its first training step.

    Args:
        labels, answers, weights: of a few images, as the training step would have them.
    """
    model.compute_metrics(None, labels, answers, weights)
    model.reset_metrics()


def assign(variables: Sequence[Any], arrays: Sequence[np.ndarray], where: Path) -> None:
    """Set variables to what was saved of them.

    Raises:
        ResumeError: `resume.config-changed` if they are not those that were saved.
    """
    if [a.shape for a in arrays] != [tuple(v.shape) for v in variables]:
        raise ResumeError(
            "resume.config-changed",
            "the checkpoint belongs to another network or optimizer",
            where=where,
            fix="resume with the settings the run was started with",
        )
    for array, variable in zip(arrays, variables, strict=True):
        variable.assign(array)


def _interval(every: str | int) -> tuple[int | None, float | None]:
    """Return steps or seconds, or neither: as it fits."""
    if every == "auto":
        return None, None
    try:
        if isinstance(every, str):
            return None, parse_seconds(every)
        if every >= 1:
            return int(every), None
    except ValueError:
        pass
    raise UsageError("resume.every", f"every={every!r}", fix='a number of steps, "30s" or "auto"')


def _watched(callbacks: Iterable[keras.callbacks.Callback]) -> dict[str, Resumable]:
    """Return the callbacks that are saved, by name; refuse those that would forget."""
    found: dict[str, Resumable] = {}
    for callback in callbacks:
        for kind, instead in STATEFUL.items():
            if isinstance(callback, kind):
                raise UsageError(
                    "resume.callback",
                    f"keras.callbacks.{kind.__name__} forgets its state when it begins a fit",
                    fix=f"use {instead} of dlzoo.callbacks",
                )
        if isinstance(callback, Resumable):
            name = type(callback).__name__
            twice = sum(key.split("-")[0] == name for key in found)
            found[f"{name}-{twice + 1}" if twice else name] = callback
    return found
