"""What can be read off a built model: taps, layer groups, where to cut it, what it costs.

A tap `Ci` is the last feature map of stride 2^i (see docs/ARCHITECTURE.md). Freezing, gradual
unfreezing, layer-wise learning rates and the activation cache all derive from the taps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any

import keras

from ..errors import UsageError, nearest
from .spec import Preprocess

NORMALIZE = "normalize"  # the layer that every model of the zoo begins with


@dataclass(frozen=True)
class Built:
    """How a model came to be; `create_model` hangs it on the model as `model.dlzoo`.

    Attributes:
        name: of the variant. tag: of the weights, or None.
        create: the arguments that build the same graph again, as plain JSON values.
        preprocess: the normalisation inside, and the image size it was built for.
        taps: tap name to the name of the layer that computes it.
        copies: how many rows of a batch each image is inside: 2 with its mirror image.
        members: how many networks are in it; more than one have taps `m1.C5`, `m2.C5`, ...
    """

    name: str
    tag: str | None
    create: dict[str, Any]
    preprocess: Preprocess
    taps: dict[str, str] = field(default_factory=dict)
    copies: int = 1
    members: int = 1


def built(model: keras.Model) -> Built:
    """Return how `model` was built.

    Raises:
        UsageError: `model.not-from-zoo` if `create_model` did not make it.
    """
    found = getattr(model, "dlzoo", None)
    if isinstance(found, Built):
        return found
    raise UsageError(
        "model.not-from-zoo",
        f"the model {model.name!r} has no taps",
        fix="use a model from dlzoo.create_model, or dlzoo.Classifier.load of a run",
    )


def taps(model: keras.Model) -> dict[str, Any]:
    """Return the symbolic feature maps `{"C1": tensor, ..., "C5": tensor}`, shallow first."""
    return {tap: model.get_layer(layer).output for tap, layer in built(model).taps.items()}


def groups(model: keras.Model) -> dict[str, list[keras.layers.Layer]]:
    """Return the layers by the first tap they are an ancestor of; the rest is `head`.

    The groups partition the layers and stand in the order of computation.
    """
    taken: set[str] = set()
    found: dict[str, list[keras.layers.Layer]] = {}
    for tap, tensor in taps(model).items():
        below = keras.Model(model.input, tensor).layers
        found[tap] = [layer for layer in below if layer.name not in taken]
        taken |= {layer.name for layer in below}
    found["head"] = [layer for layer in model.layers if layer.name not in taken]
    return found


def features(model: keras.Model) -> Any:
    """Return the symbolic input of the classifier: what the dropout before the logits takes."""
    source = model.get_layer("logits").input
    return next(
        (
            layer.input
            for layer in model.layers
            if isinstance(layer, keras.layers.Dropout) and layer.output is source
        ),
        source,
    )


def joined(model: keras.Model) -> list[int]:
    """Return how many features each layer gives that the classifier's are taken from."""
    found = features(model)
    made_by = _operation(found)
    parts = made_by.input if isinstance(made_by, keras.layers.Concatenate) else [found]
    return [part.shape[-1] for part in parts]


def cut(model: keras.Model, at: str) -> tuple[keras.Model, keras.Model]:
    """Split a model at a tap, or at `features`, into two that share its layers and variables.

    Args:
        at: a tap name, or `features` (see :func:`features`).

    Returns:
        `(bottom, top)` with `top(bottom(x)) == model(x)`. What the head takes from a tap
        below `at` would be lost, so such a cut is refused.

    Raises:
        UsageError: `model.cut` for an unknown place or one that does not separate the model.
    """
    places = taps(model)
    if at != "features" and at not in places:
        raise UsageError(
            "model.cut",
            f"{model.name} has no tap {at!r}{nearest(at, places)}",
            fix=f"known: {', '.join([*places, 'features'])}",
        )
    tensor = features(model) if at == "features" else places[at]
    bottom = keras.Model(model.input, tensor, name=f"{model.name}_to_{at}")
    try:
        top = keras.Model(tensor, model.output, name=f"{model.name}_from_{at}")
    except ValueError as error:
        raise UsageError("model.cut", f"{at} does not separate {model.name}: {error}") from error
    return bottom, top


def replay(model: keras.Model, outputs: Any, x: Any, prefix: str = "") -> Any:
    """Do on `x` what a model does from its input to `outputs`, as part of one flat graph.

    The layers are new ones with the same weights: a layer that is used twice has no one output.
    Their names have `prefix` before them.
    """
    fresh: dict[Any, Any] = {}

    def copy(operation):
        if operation not in fresh:
            config = operation.get_config()
            if prefix:
                config["name"] = prefix + operation.name
            fresh[operation] = type(operation).from_config(config)
        return fresh[operation]

    # private; Keras 3.0 to 3.15 have it. Calling the model itself would nest it.
    found = keras.Model(model.inputs, outputs)._run_through_graph(x, operation_fn=copy)
    for old, new in fresh.items():
        if isinstance(old, keras.layers.Layer):
            new.set_weights(old.get_weights())
    return found


def evaluate(model: keras.Model, x: Any, instead: Callable[[Any], Callable[..., Any]]) -> Any:
    """Compute a model's output with `instead(layer)` in the place of each of its layers."""

    def bare(layer):
        # the graph holds `training` as it was when built, and would outrank that of the call
        return lambda *args, training=None, **kwargs: instead(layer)(*args, **kwargs)

    outputs = model._run_through_graph(x, operation_fn=bare)  # private, as above
    return outputs[0] if isinstance(outputs, list) and len(outputs) == 1 else outputs


def uses(model: keras.Model) -> list[tuple[Any, list[Any], list[Any]]]:
    """Return each use of an operation in a model: itself, the tensors it takes and makes."""
    depths = model._nodes_by_depth  # private, as above
    nodes = [node for depth in sorted(depths, reverse=True) for node in depths[depth]]
    return [(n.operation, n.input_tensors, n.outputs) for n in nodes if not n.is_input]


def layer_of(tensor: Any) -> str:
    """Return the name of the layer that computes a symbolic tensor."""
    return _operation(tensor).name


def _operation(tensor: Any) -> keras.Operation:
    return tensor._keras_history.operation  # private; Keras 3.0 to 3.15 have it


def sources(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Return the layers whose output a layer takes, seen through operations that are no layers."""
    found = []
    pending = keras.tree.flatten(layer.input)
    while pending:
        operation = pending.pop(0)._keras_history.operation  # private, as above
        if isinstance(operation, keras.layers.Layer):
            found.append(operation)
        else:
            pending = keras.tree.flatten(operation.input) + pending
    return found


def weighted(layers: list[keras.layers.Layer]) -> list[keras.layers.Layer]:
    """Return the layers that hold weights."""
    return [layer for layer in layers if layer.weights]


def macs(layer: keras.layers.Layer) -> int:
    """Return the multiply-accumulates of one image in a convolution or dense layer, else 0."""
    if isinstance(layer, keras.layers.Dense):
        return prod(layer.output.shape[1:-1]) * prod(layer.kernel.shape)
    if isinstance(layer, keras.layers.DepthwiseConv2D):
        if layer.kernel_size == (1, 1):  # scales its channels, as a normalisation does
            return 0
        return prod(layer.output.shape[1:]) * prod(layer.kernel_size)
    if isinstance(layer, keras.layers.Conv2D):
        return prod(layer.output.shape[1:3]) * prod(layer.kernel.shape)
    return 0


def gmacs(model: keras.Model) -> float:
    """Return 10^9 multiply-accumulates of one image of the model's input size."""
    about = getattr(model, "dlzoo", None)
    copies = about.copies if isinstance(about, Built) else 1
    return copies * sum(macs(layer) for layer in model.layers) / 1e9
