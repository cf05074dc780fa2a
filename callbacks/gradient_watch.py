"""Watch how large the gradient of each layer is while a model trains."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from .. import files
from ..errors import UsageError
from .base import Resumable, check_built


class GradientWatch(Resumable):
    """Note the norm of the gradient of each layer, as the optimizer gets it.

    Where it shrinks from the last layer to the first by a factor at each one, the gradient
    vanishes (doi:10.1109/72.279181, arXiv:1211.5063)::

        watch = GradientWatch()
        model.fit(images, labels, callbacks=[watch])
        report.lessons.gradients({"sigmoid": watch.rows}, "gradients.png")

    A norm is the square root of the sum of squares over all trainable variables of a layer, the
    gradient that of the mean loss of the batch with its penalties, before any clipping. With
    several replicas it is the mean of their norms, each from its part of the batch. A model
    inside the model counts as one layer. Nothing is computed twice: the norms come out of the
    training step itself, which is compiled anew for the fit and afterwards as it was.

    Args:
        every: steps between two rows. The first step has a row, too.
        path: CSV file, replaced as a whole after each epoch; None keeps the rows in memory.

    Attributes:
        step: training steps done, over all fits.
        rows: a dict each: `step` (from 1), then the norm of each layer by its name, in the order
            of computation. Layers that were not trained have none.

    Raises:
        UsageError: `train.gradients`, `every` is below 1, or out of `fit` another backend of
            Keras than TensorFlow; `train.not-built`.
    """

    fields = ("step", "rows")

    def __init__(self, every: int = 1, path: Path | str | None = None):
        super().__init__()
        if every < 1:
            raise UsageError("train.gradients", f"every {every} steps", fix="1 or more")
        self.every = every
        self.path = None if path is None else Path(path)
        self.step = 0
        self.rows: list[dict[str, float]] = []
        self._norms: Any = None
        self._layers: dict[str, list[int]] = {}

    def on_train_begin(self, logs: Mapping[str, float] | None = None) -> None:
        """Put the measurement between gradient and optimizer."""
        if keras.config.backend() != "tensorflow":
            raise UsageError(
                "train.gradients",
                f"GradientWatch cannot look into a step of {keras.config.backend()}",
                fix="KERAS_BACKEND=tensorflow",
            )
        import tensorflow as tf

        check_built(self.model)
        place = {id(v): i for i, v in enumerate(self.model.trainable_variables)}
        self._layers = {
            layer.name: [place[id(v)] for v in layer.trainable_variables if id(v) in place]
            for layer in self.model.layers
        }
        with self.model.distribute_strategy.scope():
            self._norms = tf.Variable(
                np.zeros(len(place), "float32"),
                trainable=False,
                synchronization=tf.VariableSynchronization.ON_READ,
                aggregation=tf.VariableAggregation.MEAN,
            )
        model, norms, apply = self.model, self._norms, self.model.optimizer.apply

        def measured(gradients: Sequence[Any], variables: Sequence[Any] | None = None) -> Any:
            scale = getattr(model.optimizer, "dynamic_scale", 1.0)  # of mixed precision
            # a `train_step` of the user's may have any order, or train a part at a time
            given = model.trainable_variables if variables is None else variables
            found = {
                place[id(v)]: 0.0 if g is None else _norm(tf, g) / scale
                for g, v in zip(gradients, given, strict=True)
                if id(v) in place
            }
            if found:
                where, new = [[i] for i in found], tf.stack([*found.values()])
                norms.assign(tf.tensor_scatter_nd_update(norms, where, new))
            return apply(gradients, variables)

        model.optimizer.apply = measured
        self.model.make_train_function(force=True)

    def on_train_batch_end(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
        """Add a row, if it is time for one."""
        before, self.step = self.step, self.step + self.steps_done(batch) - self._first
        if before and self.step // self.every == before // self.every:
            return
        squares = np.square(self._norms.numpy(), dtype="float64")
        norms = {name: float(np.sqrt(squares[own].sum())) for name, own in self._layers.items()
                 if own}  # fmt: skip
        self.rows.append({"step": self.step, **norms})

    def epoch_done(self, epoch: int, logs: Mapping[str, float]) -> None:
        """Write the file."""
        if self.path is not None:
            self.write(self.path)

    def on_train_end(self, logs: Mapping[str, float] | None = None) -> None:
        """Take the measurement out again."""
        vars(self.model.optimizer).pop("apply", None)  # another watch may have done it
        self._norms = None
        self.model.make_train_function(force=True)

    def write(self, path: Path | str) -> None:
        """Write all rows as CSV, atomically; a layer that a row lacks is left empty."""
        names = dict.fromkeys(name for row in self.rows for name in row)
        with files.replacing(path) as file:
            writer = csv.DictWriter(file, [*names], lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)


def _norm(tf: Any, gradient: Any) -> Any:
    """Return the Euclidean norm as float32: squares of float16 would be too large for it."""
    return tf.norm(tf.cast(tf.convert_to_tensor(gradient), "float32"))
