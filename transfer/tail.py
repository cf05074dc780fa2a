"""Train the tail of a network on a CPU in less time, with the same mathematics.

What a step of a tail costs on a CPU is its convolutions, most of all TensorFlow's gradient by
the input of the 1x1 ones, which takes two to three times as long as the matrix product that it is.
A frozen BatchNorm behind a convolution is a factor and a sum for each channel; put into the
kernel, the factor no longer goes over the map forward and back. See `benchmarks/tail.py`.
"""

from __future__ import annotations

import collections
import functools
from typing import Any

import keras
from keras import ops

from ..zoo import graph


def trainable_view(top: keras.Model) -> keras.Model:
    """Return a model for `fit` alone that computes and trains what `top` does, only faster.

    It holds the layers of `top` and so its very variables, penalties and dropout seeds; outputs and
    gradients agree to rounding. Nothing of `top` changes, and what is saved is never the view.
    A BatchNorm that is trainable when the view is made stays as it is, and so does every layer
    that is not known here. `top` itself comes back where there is nothing to gain, a layer is
    used twice, or the precision is not float32.
    """
    layers = top.layers
    if any(layer.compute_dtype != "float32" for layer in layers):
        return top
    plan = _plan(top)
    return View(top, plan) if plan else top


class View(keras.Model):
    """The layers of `top`, some of them computed in another way."""

    def __init__(self, top: keras.Model, plan: dict[Any, Any]):
        super().__init__(name=top.name)
        self.top = top
        # the method and not the dict, which Keras would wrap and track
        self._instead = plan.get
        self.built = True

    def call(self, x: Any, training: bool | None = None) -> Any:
        """Compute the outputs; Keras tells the layers inside whether this is training."""
        return graph.evaluate(self.top, x, lambda layer: self._instead(layer, layer))


def _plan(top: keras.Model) -> dict[Any, Any]:
    """Return the layers to compute in another way, each with what stands in for it."""
    uses = graph.uses(top)
    operations = [operation for operation, _, _ in uses]
    if len(set(operations)) < len(operations):
        return {}
    taken = collections.Counter(id(tensor) for _, inputs, _ in uses for tensor in inputs)
    taken.update(id(tensor) for tensor in top.outputs)
    known = [operation for operation in operations if _known(operation)]
    linear = {
        id(made[0]): operation
        for operation, _, made in uses
        if operation in known
        and operation.activation is keras.activations.linear
        and taken[id(made[0])] == 1
    }
    plan: dict[Any, Any] = {}
    for layer, inputs, _ in uses:
        if _frozen_norm(layer) and (source := linear.get(id(inputs[0]))):
            plan[source] = functools.partial(_convolve, source, layer)
            plan[layer] = lambda x, **_: x  # no masks: what comes is an image's map
    for layer in known:
        if layer not in plan and _pointwise(layer):
            plan[layer] = functools.partial(_convolve, layer, None)
    return plan


def _known(layer: keras.layers.Layer) -> bool:
    """Say whether a layer is a convolution that can be computed here."""
    return (
        type(layer) in (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)
        and layer.data_format == "channels_last"
        and getattr(layer, "groups", 1) == 1  # TensorFlow fuses bias into these, and then refuses
        and layer.activity_regularizer is None
    )


def _frozen_norm(layer: keras.layers.Layer) -> bool:
    return (
        type(layer) is keras.layers.BatchNormalization
        and not layer.trainable
        and layer.axis in (-1, 3)
        and layer.activity_regularizer is None
    )


def _pointwise(layer: keras.layers.Layer) -> bool:
    return type(layer) is keras.layers.Conv2D and layer.kernel_size == (1, 1)


def _convolve(layer: Any, norm: Any, x: Any) -> Any:
    """Do what a convolution, and the frozen normalisation behind it if any, do."""
    kernel, bias = ops.convert_to_tensor(layer.kernel), layer.bias if layer.use_bias else None
    if norm is not None:
        # read in every step: the variables are frozen, yet a checkpoint may be put into them
        scale = ops.rsqrt(norm.moving_variance + norm.epsilon)
        scale = scale * norm.gamma if norm.scale else scale
        shift = (0.0 if bias is None else bias) - norm.moving_mean
        shift = shift * scale + norm.beta if norm.center else shift * scale
        depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
        kernel = kernel * (ops.reshape(scale, kernel.shape[2:]) if depthwise else scale)
        bias = shift
    if isinstance(layer, keras.layers.DepthwiseConv2D):
        y = ops.depthwise_conv(x, kernel, layer.strides, layer.padding, "channels_last",
                               layer.dilation_rate)  # fmt: skip
    elif _pointwise(layer):
        down, across = layer.strides
        x = x[:, ::down, ::across] if (down, across) != (1, 1) else x
        rows = ops.matmul(ops.reshape(x, (-1, x.shape[-1])), kernel[0, 0])
        y = ops.reshape(rows, (-1, *x.shape[1:3], layer.filters))
    else:
        y = layer.convolution_op(x, kernel)
    y = y if bias is None else ops.add(y, bias)
    return layer.activation(y) if layer.activation is not None else y
