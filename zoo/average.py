"""Several networks, or one and its mirror image, as one flat model that averages their answers.

Everything that takes a model of the zoo takes the result, too: it is one functional model of
built-in layers, from raw RGB to logits. So what is measured is what is shipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import keras
from keras import ops

from ..errors import ModelError
from .blocks import native_groups
from .graph import Built, built, replay
from .spec import Preprocess

HOWS = ("probabilities", "logits")
NAME = "ensemble"  # what `create["name"]` of several members is
TINY = 1e-30  # a probability below it is taken for it: log 0 has no number
L = keras.layers


def average(
    members: Sequence[keras.Model],
    task: str,
    how: str = "probabilities",
    *,
    mirror: bool = False,
) -> keras.Model:
    """Return one model that gives the average answer of several.

    The members' layers are copied, as `m1_...`, `m2_...`; those of a single one keep their names,
    and so the layout of its weights file. A member made for smaller images scales the image down.

    Args:
        members: from `create_model`, with the same classes.
        task: `binary`, `multiclass` or `multilabel`.
        how: what is averaged: `probabilities` or `logits`. The logarithm of averaged probabilities
            is what is given as logits, so softmax (or sigmoid) of it is their average.
        mirror: average also over the image and its mirror image, which go through the layers
            in one batch: twice the work, and not one weight more.

    Raises:
        ModelError: `model.not-alike`, members that take or give other things.
    """
    first = members[0]
    shape = _shape(members)
    image = keras.Input(shape, name="image")
    x = ops.concatenate([image, ops.flip(image, axis=2)], axis=0) if mirror else image
    logits: list[Any] = []
    taps: dict[str, str] = {}
    for number, member in enumerate(members, start=1):
        prefix = f"m{number}_" if len(members) > 1 else ""
        found = replay(member, [member.output], _scaled(x, member, prefix), prefix)[0]
        logits.append(found)
        tap_name = f"m{number}." if prefix else ""
        taps |= {tap_name + t: prefix + layer for t, layer in built(member).taps.items()}
    name = NAME if len(members) > 1 else first.name
    looked = min(built(member).copies for member in members)  # some may have it inside already
    model = keras.Model(image, _averaged(logits, task, how, mirror), name=name)
    native_groups(model)
    model.dlzoo = Built(
        NAME if len(members) > 1 else built(first).name,
        None,
        _recipe(members, task, how, mirror),
        _rule(members, shape[0]),
        taps,
        copies=2 if mirror else looked,
        members=max(len(members), built(first).members),
    )
    return model


def rebuild(create: dict[str, Any]) -> keras.Model:
    """Return the model, with fresh weights, that `average` made; `create` is of its `Built`."""
    from .build import create_model

    models = []
    for member in create["members"]:
        given, rule = _tuples(member["create"]), Preprocess(**_tuples(member["preprocess"]))
        if "members" in given:
            models.append(rebuild(given))
        else:
            models.append(create_model(**given | {"weights": None, "preprocess": rule}))
    return average(models, create["task"], create["average"], mirror=create["mirror"])


def _tuples(plain: dict[str, Any]) -> dict[str, Any]:
    """Return what JSON kept, which knows no tuples."""
    return {
        key: tuple(value) if isinstance(value, list) and key != "members" else value
        for key, value in plain.items()
    }


def _recipe(members: Sequence[keras.Model], task: str, how: str, mirror: bool) -> dict[str, Any]:
    first = built(members[0]).create
    # what a single one was made from stays in sight: its weights can begin another run
    kept = dict(first) if len(members) == 1 else {"name": NAME}
    return kept | {
        "num_classes": first["num_classes"],
        "members": [
            {"create": built(m).create, "preprocess": asdict(built(m).preprocess)} for m in members
        ],
        "average": how,
        "mirror": mirror,
        "task": task,
    }


def _shape(members: Sequence[keras.Model]) -> tuple[int, int, int]:
    """Return what the model takes: the size of the member with the largest images."""
    shapes = [tuple(member.input_shape[1:]) for member in members]
    outputs = {member.output_shape[-1] for member in members}
    if len({shape[2] for shape in shapes}) > 1 or len(outputs) > 1:
        raise ModelError(
            "model.not-alike",
            f"they take {shapes} and give {sorted(outputs)} logits",
            fix="average models of the same classes and channels",
        )
    return max(shapes)


def _rule(members: Sequence[keras.Model], size: int) -> Preprocess:
    largest = next(m for m in members if m.input_shape[1] == size)
    return replace(built(largest).preprocess, size=size)


def _scaled(x: Any, member: keras.Model, prefix: str) -> Any:
    height, width = member.input_shape[1:3]
    if tuple(x.shape[1:3]) == (height, width):
        return x
    return L.Resizing(height, width, dtype="float32", name=f"{prefix}resize")(x)


def _averaged(logits: list[Any], task: str, how: str, mirror: bool) -> Any:
    def mean(parts: list[Any]) -> Any:
        whole = L.Average(dtype="float32")(parts) if len(parts) > 1 else parts[0]
        # rows of the plain images, then those of their mirror images
        return ops.mean(ops.reshape(whole, (2, -1, whole.shape[-1])), axis=0) if mirror else whole

    def log_of(parts: list[Any]) -> Any:
        return ops.log(ops.maximum(mean(parts), TINY))

    if how == "logits":
        return mean(logits)
    if task == "multiclass":
        return log_of([L.Softmax(dtype="float32")(z) for z in logits])
    # both shares by themselves: 1 - p of a p near 1 would have few digits left
    return log_of([ops.sigmoid(z) for z in logits]) - log_of([ops.sigmoid(-z) for z in logits])
