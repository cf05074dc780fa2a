"""Losses, metrics and penalties, all on logits, by kind of task."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
from keras import ops

from ..errors import UsageError

TASKS = ("binary", "multiclass", "multilabel")


def make_loss(
    task: str, label_smoothing: float = 0.0, temperature: float = 0.0
) -> keras.losses.Loss:
    """Return the cross-entropy of a task, from logits, averaged over the batch.

    Args:
        task: `binary` (labels (b, 1)), `multiclass` (one-hot) or `multilabel` (multi-hot).
        label_smoothing: share of each label spread over the others, 0..1.
        temperature: of a teacher, whose answers stand behind the labels, see :class:`Taught`; 0:
            there is none.
    """
    _check(task)
    if temperature:
        return Taught(task, temperature, make_loss(task, label_smoothing))
    if task == "multiclass":
        return keras.losses.CategoricalCrossentropy(
            from_logits=True, label_smoothing=label_smoothing
        )
    return keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=label_smoothing)


class Taught(keras.losses.Loss):
    """The loss by the labels, and how far the answers are from a teacher's.

    `(1 - TEACHER) * loss + TEACHER * T^2 * KL(teacher || student)`, both answers at temperature T;
    T^2 keeps the share of the two gradients as it is, whatever T (arXiv:1503.02531).

    Args:
        by_labels: the loss by the labels alone, which is all where no teacher has answered (the
            validation photos).
    """

    def __init__(self, task: str, temperature: float, by_labels: keras.losses.Loss):
        super().__init__(name="taught")
        self.task, self.temperature, self.by_labels = task, temperature, by_labels

    def call(self, labels: Any, logits: Any) -> Any:
        """Return the loss of each sample; labels (b, k), or (b, 2k) with the teacher's behind."""
        own, teacher = _parted(labels, logits)
        loss = self.by_labels.call(own, logits)
        if teacher is None:
            return loss
        soft, q = logits / self.temperature, ops.cast(teacher, logits.dtype)
        if self.task == "multiclass":
            apart = ops.sum(q * (_log(q) - ops.log_softmax(soft)), axis=-1)
        else:
            yes, no = ops.log_sigmoid(soft), ops.log_sigmoid(-soft)
            apart = q * (_log(q) - yes) + (1 - q) * (_log(1 - q) - no)
            apart = ops.mean(apart, axis=-1)
        return (1 - TEACHER) * loss + TEACHER * self.temperature**2 * apart


TEACHER = 0.7  # share of the teacher in the loss


def _log(x: Any) -> Any:
    return ops.log(ops.maximum(x, 1e-7))


def _parted(labels: Any, logits: Any) -> tuple[Any, Any]:
    """Return labels and teacher's answers, None if there are none."""
    labels, k = ops.convert_to_tensor(labels), ops.convert_to_tensor(logits).shape[-1]
    return labels[:, :k], labels[:, k:] if labels.shape[-1] == 2 * k else None


def class_accuracy(labels: Any, logits: Any) -> Any:
    """Return per sample whether the likeliest class is the labels'; a teacher's are left out."""
    own, _ = _parted(labels, logits)
    return keras.metrics.categorical_accuracy(own, logits)


@keras.saving.register_keras_serializable("dlzoo")
def logit_accuracy(labels: Any, logits: Any) -> Any:
    """Return per sample the share of labels told right: logit above 0 means yes."""
    labels, _ = _parted(labels, logits)
    right = ops.equal(ops.greater(labels, 0.5), ops.greater(logits, 0.0))
    return ops.mean(ops.cast(right, "float32"), axis=-1)


def make_metrics(task: str) -> list[keras.metrics.Metric]:
    """Return what is measured beside the loss: `acc`, from logits; soft labels are rounded."""
    _check(task)
    if task == "multiclass":
        return [keras.metrics.MeanMetricWrapper(class_accuracy, name="acc")]
    return [keras.metrics.MeanMetricWrapper(logit_accuracy, name="acc")]


def activation(task: str) -> str:
    """Return what makes probabilities of logits: `softmax`, or `sigmoid` for each alone."""
    _check(task)
    return "softmax" if task == "multiclass" else "sigmoid"


class Penalty(keras.regularizers.Regularizer):
    """L1 and L2 on top of the regularizer a variable came with."""

    def __init__(self, l1: float, l2: float, own: Any = None):
        self.l1, self.l2, self.own = l1, l2, own

    def __call__(self, x: Any) -> Any:
        """Return the penalty, a scalar."""
        x = ops.cast(x, "float32")
        total = self.l1 * ops.sum(ops.absolute(x)) + self.l2 * ops.sum(ops.square(x))
        return total if self.own is None else total + self.own(x)


def regularize(layers: Iterable[keras.layers.Layer], l1: float = 0.0, l2: float = 0.0) -> None:
    """Put an L1/L2 penalty on the kernels of layers; Keras adds it to the loss at the next compile.

    It sits on the variables, not in the layers' configuration, so it ends in no artefact. It
    replaces what an earlier call put there; with 0 and 0 it takes it away. Vectors (biases,
    BatchNorm's gamma and beta) have none, and frozen kernels do not count.
    """
    for layer in layers:
        for variable in layer.weights:
            if len(variable.shape) > 1:
                present = variable.regularizer
                own = present.own if isinstance(present, Penalty) else present
                variable.regularizer = Penalty(l1, l2, own) if l1 or l2 else own


def _check(task: str) -> None:
    if task not in TASKS:
        raise UsageError(
            "train.unknown-task",
            f"there is no task {task!r}",
            fix=f"use one of {', '.join(TASKS)}",
        )
