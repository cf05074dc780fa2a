"""A model layer by layer: what each makes of its input, what it costs, what of the image it sees.

Output sizes follow (W + P - K) / S + 1, rounded down, with W the size of the input, P the padding
of both sides together, K the size of the window and S the stride. A window of K widens the
receptive field by (K - 1) times the distance, in pixels of the image, between neighbours in its
input (doi:10.23915/distill.00021).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from . import graph

Pair = tuple[int, int]


@dataclass(frozen=True)
class LayerRow:
    """One layer of a model.

    Attributes:
        name, kind: of the layer, and its class.
        tap: the tap that its output is, or "". group: the tap it belongs to, or `head`.
        shape: of the output without the batch, such as `(height, width, channels)`.
        formula: the output size by (W + P - K) / S + 1, where the layer has a window.
        params: numbers in it, moving statistics left out. macs: multiply-accumulates.
        field: (height, width) in pixels of the part of the image that one output sees; None
            for the whole image.
        stride: distance in pixels of the image between neighbours in the output, or None.
    """

    name: str
    kind: str
    tap: str
    group: str
    shape: tuple[int | None, ...]
    formula: str
    params: int
    macs: int
    field: Pair | None
    stride: Pair | None


def layers(model: keras.Model) -> list[LayerRow]:
    """Return the layers of a model of the zoo, in the order of computation.

    Where branches meet, the wider receptive field counts; a gate that looks at the whole map
    (squeeze-and-excitation) does not widen it. Shapes and costs hold for the model's input size.
    """
    found = fields(model)
    at = {layer: tap for tap, layer in graph.built(model).taps.items()}
    group = {layer.name: name for name, those in graph.groups(model).items() for layer in those}
    rows = []
    for layer in model.layers:
        if isinstance(layer, keras.layers.InputLayer):
            continue
        field, stride = found[layer.name] or (None, None)
        still = 2 if isinstance(layer, keras.layers.BatchNormalization) else 0  # the statistics
        counted = layer.weights[: len(layer.weights) - still]
        rows.append(
            LayerRow(
                name=layer.name,
                kind=type(layer).__name__,
                tap=at.get(layer.name, ""),
                group=group[layer.name],
                shape=tuple(layer.output.shape[1:]),
                formula=_formula(layer),
                params=sum(int(np.prod(w.shape)) for w in counted),
                macs=graph.macs(layer) if None not in layer.output.shape[1:] else 0,
                field=field,
                stride=stride,
            )
        )
    return rows


def _window(layer: Any) -> tuple[Pair, Pair] | None:
    """Return (height, width) of a layer's window as it lies on the map, and its strides."""
    size = getattr(layer, "kernel_size", None) or getattr(layer, "pool_size", None)
    if not isinstance(size, tuple) or len(size) != 2:
        return None
    spread = getattr(layer, "dilation_rate", (1, 1))
    wide = tuple((k - 1) * d + 1 for k, d in zip(size, spread, strict=True))
    return wide, tuple(layer.strides)  # type: ignore[return-value]


def _formula(layer: Any) -> str:
    window = _window(layer)
    if not window:
        return ""
    below = graph.sources(layer)[0]  # its padding may be a layer of its own
    padded = isinstance(below, keras.layers.ZeroPadding2D)
    start = (below if padded else layer).input.shape[1:3]
    texts = []
    for axis, (w, k, s) in enumerate(zip(start, *window, strict=True), start=1):
        out = layer.output.shape[axis]
        if w is None or out is None:
            return ""
        inside = max((out - 1) * s + k - w, 0) if layer.padding == "same" else 0
        padding = layer.input.shape[axis] - w if padded else inside
        texts.append(f"({w} + {padding} - {k}) / {s} + 1 = {out}")
    return texts[0] if texts[0] == texts[1] else " x ".join(texts)


def fields(model: keras.Model) -> dict[str, tuple[Pair, Pair] | None]:
    """Map each operation to the receptive field of its output and its stride; None: the image."""
    found: dict[str, tuple[Pair, Pair] | None] = {}
    for operation in model.operations:
        if isinstance(operation, keras.layers.InputLayer):
            found[operation.name] = (1, 1), (1, 1)
            continue
        inputs = keras.tree.flatten(operation.input)
        seen = [found[graph.layer_of(tensor)] for tensor in inputs]
        local = [field for field in seen if field]
        if not local or (isinstance(operation, _GLOBAL) and _leaves_no_map(operation)):
            found[operation.name] = None
            continue
        field = tuple(max(size[axis] for size, _ in local) for axis in (0, 1))
        stride = tuple(max(jump[axis] for _, jump in local) for axis in (0, 1))
        if window := _window(operation):
            size, strides = window
            field = tuple(f + (k - 1) * j for f, k, j in zip(field, size, stride, strict=True))
            stride = tuple(j * s for j, s in zip(stride, strides, strict=True))
        found[operation.name] = field, stride  # type: ignore[assignment]
    return found


def _leaves_no_map(operation: Any) -> bool:
    """Say whether the output has no place in the image any more."""
    return len(operation.output.shape) != 4 or not isinstance(operation, keras.layers.Dense)


_GLOBAL: tuple[type, ...] = (
    keras.layers.GlobalAveragePooling2D,
    keras.layers.GlobalMaxPooling2D,
    keras.layers.AdaptiveAveragePooling2D,
    keras.layers.Flatten,
    keras.layers.Dense,
)
