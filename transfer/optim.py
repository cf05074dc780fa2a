"""Optimizers with one learning rate and a multiplier for each variable."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import keras
from keras import ops

from ..errors import UsageError, nearest
from .losses import make_metrics


class Layerwise:
    """Mixin for a Keras optimizer: per-variable learning rates, and decay in step with them.

    Variable v is trained with `learning_rate * multipliers[v.path]` (1.0 if not named), so
    that schedules and `optimizer.learning_rate` keep working. `decoupled_decay` shrinks each
    kernel by that rate times itself before the step (arXiv:1711.05101); vectors (biases,
    BatchNorm's gamma and beta) are left alone. It stands in for Keras' `weight_decay`, which
    knows no multiplier.

    Args:
        multipliers: variable path to factor, for any superset of the trained variables.
        decoupled_decay: weight decay per unit of learning rate; 0 is none.
    """

    def __init__(
        self,
        *args: Any,
        multipliers: Mapping[str, float] | None = None,
        decoupled_decay: float = 0.0,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.multipliers = dict(multipliers or {})
        self.decoupled_decay = decoupled_decay
        self._factors: tuple[float, ...] = ()

    def build(self, variables: list[keras.Variable]) -> None:
        """Create the slots, and look up each variable's multiplier.

        Raises:
            UsageError: `train.multipliers`, none of the paths is that of a variable.
        """
        names = [variable.path for variable in variables]
        if self.multipliers and not any(name in self.multipliers for name in names):
            raise UsageError(
                "train.multipliers",
                "no learning-rate multiplier names a trained variable",
                where=", ".join(list(self.multipliers)[:3]),
                fix=f"use variable paths, such as {names[0]!r}",
            )
        super().build(variables)  # type: ignore[misc]
        self._factors = tuple(float(self.multipliers.get(name, 1.0)) for name in names)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Update one variable; the index is how Keras' own optimizers find their slots."""
        factor = self._factors[self._get_variable_index(variable)]  # type: ignore[attr-defined]
        learning_rate = ops.cast(learning_rate, variable.dtype) * factor
        if self.decoupled_decay and len(variable.shape) > 1:
            shrink = variable * self.decoupled_decay * learning_rate
            self.assign_sub(variable, shrink)  # type: ignore[attr-defined]
        super().update_step(gradient, variable, learning_rate)  # type: ignore[misc]

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make this optimizer again."""
        return {
            **super().get_config(),  # type: ignore[misc]
            "multipliers": dict(self.multipliers),
            "decoupled_decay": self.decoupled_decay,
        }


@keras.saving.register_keras_serializable("dlzoo")
class LayerwiseSGD(Layerwise, keras.optimizers.SGD):
    """SGD, with or without (Nesterov) momentum."""


@keras.saving.register_keras_serializable("dlzoo")
class LayerwiseAdam(Layerwise, keras.optimizers.Adam):
    """Adam; with `decoupled_decay` it is AdamW."""


OPTIMIZERS = ("sgd", "momentum", "nesterov", "adam", "adamw")


def make_optimizer(
    name: str,
    lr: float,
    *,
    momentum: float = 0.9,
    weight_decay: float | None = None,
    multipliers: Mapping[str, float] | None = None,
    clipnorm: float | None = None,
    ema: float | None = None,
    accumulate: int = 1,
) -> keras.optimizers.Optimizer:
    """Return an optimizer whose one learning rate can be set while it trains.

    Args:
        name: `sgd`, `momentum`, `nesterov`, `adam` or `adamw`.
        lr: base learning rate.
        momentum: of `momentum` and `nesterov`, 0..1.
        weight_decay: decoupled decay of kernels per unit of learning rate; None is none, for
            `adamw` 0.004.
        multipliers: variable path to factor, see `layer_multipliers`; what is absent has 1.
        clipnorm: the gradient of each variable is cut to this norm.
        ema: decay of a moving average of the weights, 0..1; `fit` ends with the average.
        accumulate: steps whose gradients are averaged for one update.

    Raises:
        UsageError: `train.unknown-optimizer`, `train.lr`.
    """
    if name not in OPTIMIZERS:
        raise UsageError(
            "train.unknown-optimizer",
            f"there is no optimizer {name!r}{nearest(name, OPTIMIZERS)}",
            fix=f"use one of {', '.join(OPTIMIZERS)}",
        )
    if not (math.isfinite(lr) and lr > 0):
        raise UsageError("train.lr", f"the learning rate must be above 0, got {lr}")
    if weight_decay is None:
        weight_decay = 0.004 if name == "adamw" else 0.0
    common: dict[str, Any] = {
        "multipliers": multipliers,
        "decoupled_decay": weight_decay,
        "clipnorm": clipnorm,
    }
    if ema is not None:
        # Keras moves the average in every step, not in those alone that update
        common |= {"use_ema": True, "ema_momentum": ema ** (1 / accumulate)}
    if accumulate > 1:
        common["gradient_accumulation_steps"] = accumulate
    if name in ("adam", "adamw"):
        return LayerwiseAdam(lr, **common)
    momentum = 0.0 if name == "sgd" else float(momentum)
    return LayerwiseSGD(lr, momentum=momentum, nesterov=name == "nesterov", **common)


def compile_model(
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    loss: Any,
    task: str,
    *,
    weighted: bool = False,
) -> None:
    """Compile a model for training, with the metrics of a task.

    Args:
        weighted: the metrics count an image by its weight.
    """
    # The slots come first: made while the step is traced, each takes as long as many operations.
    optimizer.build(model.trainable_variables)
    model.compile(
        optimizer=optimizer,
        loss=loss,
        **{"weighted_metrics" if weighted else "metrics": make_metrics(task)},
        jit_compile=False,  # XLA makes convolutions several times slower on a CPU
    )


def layer_multipliers(
    groups: Mapping[str, Iterable[keras.layers.Layer]], decay: float
) -> dict[str, float]:
    """Return a learning-rate factor for every weight: 1 for the head, `decay` less per group.

    Args:
        groups: layers from shallow to deep, the head last, as `zoo.graph.groups` gives them. A
            group without weights is no step.
        decay: factor from one group to the next shallower one, above 0.

    Raises:
        UsageError: `train.decay`.
    """
    if not decay > 0:
        raise UsageError("train.decay", f"the layer-wise decay must be above 0, got {decay}")
    paths = [[w.path for layer in layers for w in layer.weights] for layers in groups.values()]
    filled = [group for group in reversed(paths) if group]
    return {path: decay**depth for depth, group in enumerate(filled) for path in group}
