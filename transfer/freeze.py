"""Which layers train: everything here derives from the taps."""

from __future__ import annotations

from dataclasses import dataclass

import keras
import tensorflow as tf

from ..errors import UsageError, nearest
from ..zoo import graph


def unfreeze(model: keras.Model, start: str, *, train_bn: bool = False) -> list[str]:
    """Make the groups from `start` upwards trainable and freeze what lies below.

    A group without weights (VGG's C5 is a pooling layer) cannot be what is asked for: the
    next group below it that has some is unfrozen with it. The model must be compiled anew.

    Args:
        start: `head`, a tap such as `C5`, or `all`.
        train_bn: False keeps every BatchNorm layer frozen, so that its statistics stay as
            they are and it normalises in training just as it will in use.

    Returns:
        The names of the groups that train, shallow first.

    Raises:
        UsageError: `plan.unfreeze` for an unknown group.
    """
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    groups = graph.groups(model)
    names = list(groups)
    first = 0 if start == "all" else names.index(start) if start in names else None
    if first is None:
        raise UsageError(
            "plan.unfreeze",
            f"{model.name} has no group {start!r}{nearest(start, names)}",
            fix=f"one of {', '.join(names)}, all",
        )
    while first > 0 and not graph.weighted(groups[names[first]]):
        first -= 1
    for name in names:
        for layer in groups[name]:
            norm = isinstance(layer, keras.layers.BatchNormalization)
            layer.trainable = names.index(name) >= first and (train_bn or not norm)
            if norm:  # else each replica has statistics of its own part of the batch
                layer.synchronized = layer.trainable and replicas > 1
    return names[first:]


@dataclass(frozen=True)
class Split:
    """A model cut where everything below is frozen; both parts share its layers."""

    at: str
    bottom: keras.Model
    top: keras.Model


def frozen_part(model: keras.Model) -> Split | None:
    """Return the model cut at the deepest place below which nothing trains, or None.

    What the bottom computes is a constant of each image as long as nothing there trains.
    """
    for place in ("features", *reversed(graph.taps(model))):
        try:
            bottom, top = graph.cut(model, place)
        except UsageError:
            continue
        if not bottom.trainable_weights:
            return Split(place, bottom, top) if bottom.weights else None
    return None
