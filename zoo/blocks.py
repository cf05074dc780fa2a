"""What several families share: convolution with normalisation, and padding as torch does it."""

from __future__ import annotations

import importlib
from typing import Any


class _Lazy:
    """A module that is imported when first used, so that listing models loads no TensorFlow."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)


L: Any = _Lazy("keras.layers")
Init: Any = _Lazy("keras.initializers")


def conv(
    x,
    filters: int,
    kernel: int,
    strides: int = 1,
    *,
    name: str,
    bias: bool = False,
    padding: str = "same",
):
    """Convolve: `(batch, h, w, c)` to `(batch, h / strides, w / strides, filters)`.

    Args:
        padding: `same` pads as TensorFlow (more at the far edge when strided); `torch` pads
            `kernel // 2` on every side. They are equal at stride 1.
    """
    if padding == "torch":
        x, padding = pad(x, kernel, strides, name)
    return L.Conv2D(
        filters,
        kernel,
        strides,
        padding=padding,
        use_bias=bias,
        kernel_initializer="he_normal",
        name=name,
    )(x)


def depthwise(x, kernel: int, strides: int = 1, *, name: str):
    """Convolve each channel by its own kernel, without bias: `(batch, h / strides, ..., c)`."""
    return L.DepthwiseConv2D(
        kernel,
        strides,
        padding="same",
        use_bias=False,
        # "he_normal" would count all channels as inputs of each, and the signal would fade
        depthwise_initializer=Init.RandomNormal(stddev=2**0.5 / kernel),
        name=name,
    )(x)


def pad(x, kernel: int, strides: int, name: str):
    """Pad symmetrically where TensorFlow's "same" would not; return `(x, padding left)`."""
    if strides == 1 or kernel == 1:
        return x, "same"
    return L.ZeroPadding2D(kernel // 2, name=f"{name}_pad")(x), "valid"


def average_to(x, size: int, *, name: str):
    """Average to `(batch, size, size, c)`, by torch's windows where the map's size differs."""
    if 1 in x.shape[1:3]:  # one pixel is repeated: Keras' layer fails on it inside a graph
        x = L.UpSampling2D([size if n == 1 else 1 for n in x.shape[1:3]], name=f"{name}_repeat")(x)
    if x.shape[1:3] != (size, size):
        x = L.AdaptiveAveragePooling2D(size, name=name)(x)
    return x


def norm_act(x, activation: str | None, *, name: str, epsilon: float = 1e-5, momentum=0.9):
    """Normalise over the batch, then activate: layers `NAME_bn` and `NAME_act`."""
    x = L.BatchNormalization(epsilon=epsilon, momentum=momentum, name=f"{name}_bn")(x)
    return L.Activation(activation, name=f"{name}_act")(x) if activation else x


def inverted_residual(
    x, channels: int, kernel: int, strides: int, expansion: int, *, name, epsilon
):
    """Widen, filter each channel, narrow again; add the input where the shapes agree.

    MobileNetV2's block (arXiv:1801.04381), with ReLU6 and a linear last layer. Layers are
    called `NAME_expand_conv`, `NAME_dw_conv`, `NAME_project_conv`, each with its `_bn`.
    """
    inputs = x
    if expansion > 1:
        x = conv(x, x.shape[-1] * expansion, 1, name=f"{name}_expand_conv")
        x = norm_act(x, "relu6", epsilon=epsilon, name=f"{name}_expand")
    x = depthwise(x, kernel, strides, name=f"{name}_dw_conv")
    x = norm_act(x, "relu6", epsilon=epsilon, name=f"{name}_dw")
    x = conv(x, channels, 1, name=f"{name}_project_conv")
    x = norm_act(x, None, epsilon=epsilon, name=f"{name}_project")
    if strides == 1 and inputs.shape[-1] == channels:
        x = L.Add(name=f"{name}_add")([inputs, x])
    return x


def make_divisible(value: float, divisor: int = 8) -> int:
    """Round a channel count to a multiple of `divisor`, never by more than 10 % downwards."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded
