"""Training one model as several replicas, on the devices of one process or of many.

Keras 3 does not support `MultiWorkerMirroredStrategy` (keras#20585): its `fit` builds a model
that was made in the scope of a strategy anew, and takes the mean of each step's results over an
axis they do not have. So layers and variables are made in the scope, the `keras.Model` that is
fitted outside of it, and the results of its steps get that axis.

What replicas compute together is what one alone computes of the whole batch, also where it does
not divide: each image counts once, whatever part it is in. Random layers draw for each image on
its own, as one alone does, but other numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras
import tensorflow as tf

from ..data.pipeline import Part


class Replicated(keras.Model):
    """A model that is fitted and measured by the replicas of a strategy.

    Its data have five parts, see `data.pipeline.batches` with `part=`. Make it outside of the
    scope of the strategy, of a model that was made in it; compile it in the scope, with
    `weighted_metrics`, which are given the weight 0 for images that only fill a part up.

    Args:
        model: what is computed; it shares its variables.
        slices: in which a replica computes its part of a batch, where memory is short.
    """

    def __init__(self, model: keras.Model, slices: int = 1):
        super().__init__(name=model.name)
        self.inner, self.slices = model, slices
        self.built = True

    def call(self, x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Compute what the model does."""
        return self.inner(x, training=training)

    def train_step(self, data: tuple) -> dict[str, tf.Tensor]:
        """Take a step along the gradient of the loss of the whole batch."""
        variables = self.trainable_weights
        gradients: list[Any] = []
        logs: dict[str, Any] = {}
        self._shift_seeds(1)
        for some in self._sliced(data):
            with tf.GradientTape() as tape:
                answers, loss = self._forward(some, training=True)
                scaled = self.optimizer.scale_loss(loss)
            more = tape.gradient(scaled, variables)
            gradients = [a + b for a, b in zip(gradients, more, strict=True)] if gradients else more
            logs = self._logs(some, answers, loss)
        self._shift_seeds(-1)
        self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return logs

    def test_step(self, data: tuple) -> dict[str, tf.Tensor]:
        """Measure a batch."""
        return self._logs(data, *self._forward(data, training=False))

    def _shift_seeds(self, sign: int) -> None:
        """Give each replica seeds of its own while it computes, or take them back.

        Mirrored as they are, all replicas would drop the same numbers of their parts. Between
        steps they are equal again, so that checkpoints do not depend on who saves.
        """
        context = tf.distribute.get_replica_context()
        for variable in self.inner.non_trainable_variables:
            if variable.path.endswith("seed_generator_state"):  # a seed, and how often it drew
                own = [sign * context.replica_id_in_sync_group, 0]
                variable.assign_add(tf.cast(tf.stack(own), variable.dtype))

    def _sliced(self, data: tuple) -> list[tuple]:
        """Return what is computed at a time."""
        *of_images, whole = data
        size = -(-tf.shape(of_images[0])[0] // self.slices)
        return [
            (*(x[i * size : (i + 1) * size] for x in of_images), whole) for i in range(self.slices)
        ]

    def _forward(self, data: tuple, training: bool) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the answers, and this replica's share of the loss of the whole batch."""
        images, labels, weights, real, whole = data
        answers = self(images, training=training)
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        # Keras divides by the images here, and by the replicas; the sum over these shall be
        # divided by the images that the whole batch has
        here = tf.cast(tf.shape(real)[0], tf.float32)
        factor = real * here * replicas / whole
        loss = self.compute_loss(images, labels, answers, weights * factor, training=training)
        return answers, loss

    def _logs(self, data: tuple, answers: tf.Tensor, loss: tf.Tensor) -> dict[str, tf.Tensor]:
        images, labels, _, real, whole = data
        count = tf.reduce_sum(real)
        of_losses = next(metric for metric in self.metrics if metric.name == "loss")
        of_losses.update_state(tf.math.divide_no_nan(loss * whole, count), count)
        logs = self.compute_metrics(images, labels, answers, real)
        if isinstance(tf.distribute.get_strategy(), tf.distribute.MultiWorkerMirroredStrategy):
            return {name: value[None] for name, value in logs.items()}
        return logs


def replicated(model: keras.Model, slices: int = 1) -> Replicated:
    """Return a model of the same variables that the replicas of a strategy can fit.

    It is made outside of the scope that this is called in: a scope is that of one thread.
    """
    with ThreadPoolExecutor(1) as outside:
        return outside.submit(Replicated, model, slices).result()


def spread(strategy: Any, make: Callable[[Part], tf.data.Dataset]) -> Any:
    """Return a distributed dataset without an end, in which each replica computes its part.

    Args:
        make: gives the batches of a part. Each process makes only those of its own replicas.
    """
    same = isinstance(strategy, tf.distribute.TPUStrategy)

    def of_worker(context: Any) -> tf.data.Dataset:
        of = context.num_replicas_in_sync
        here = of // context.num_input_pipelines
        first = context.input_pipeline_id * here
        parts = [make(Part(first + i, of, same)) for i in range(here)]
        # a dataset with an end would have all replicas ask each other in every step if it is there
        if here == 1:
            return parts[0].repeat()
        each = tf.data.Dataset.range(here).repeat()
        return tf.data.Dataset.choose_from_datasets([part.repeat() for part in parts], each)

    return strategy.distribute_datasets_from_function(of_worker)
