"""What several families share: convolution with normalisation, and padding as torch does it."""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Callable
from typing import Any


class _Lazy:
    """A module that is imported when first used, so that listing models loads no TensorFlow."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)


L: Any = _Lazy("keras.layers")
Init: Any = _Lazy("keras.initializers")
Ops: Any = _Lazy("keras.ops")


PADDINGS = ("same", "torch")  # for the user to choose from; see `conv`


def native_groups(model) -> None:
    """Let TensorFlow's own kernel compute the grouped convolutions of a model.

    Keras compiles each of them with XLA, whose code for a CPU is ten times slower forward and
    hundreds of times backward. The layers stay `Conv2D`: files and other backends see no change.
    """
    keras: Any = _Lazy("keras")
    grouped = [x for x in model.layers if isinstance(x, L.Conv2D) and x.groups > 1]
    if not grouped or keras.config.backend() != "tensorflow":
        return
    tf: Any = _Lazy("tensorflow")

    def convolve(layer, inputs, kernel):
        inputs, kernel = tf.convert_to_tensor(inputs), tf.convert_to_tensor(kernel)
        strides, padding = layer.strides, layer.padding.upper()
        if _grouped_gradients():
            return tf.nn.conv2d(inputs, kernel, strides, padding)
        return _convolve_by_groups(inputs, kernel, layer.groups, (1, *strides, 1), padding)

    for layer in grouped:
        layer.convolution_op = functools.partial(convolve, layer)


@functools.cache
def _grouped_gradients() -> bool:
    """Say whether this TensorFlow can differentiate its grouped convolution.

    On a CPU only oneDNN's kernels can, and TensorFlow may run without them.
    """
    tf: Any = _Lazy("tensorflow")
    with tf.init_scope():
        try:
            tf.raw_ops.Conv2DBackpropInput(
                input_sizes=(1, 4, 4, 4),
                filter=tf.ones((3, 3, 2, 4)),
                out_backprop=tf.ones((1, 4, 4, 4)),
                strides=(1, 1, 1, 1),
                padding="SAME",
            )
        except tf.errors.InvalidArgumentError:
            return False
    return True


def _convolve_by_groups(inputs, kernel, groups: int, strides: tuple[int, ...], padding: str):
    """Convolve in groups at once, and go back group by group."""
    tf: Any = _Lazy("tensorflow")

    @tf.custom_gradient
    def convolve(inputs, kernel):
        def gradient(upstream):
            parts = [tf.split(t, groups, axis=-1) for t in (inputs, kernel, upstream)]
            options = {"strides": strides, "padding": padding}
            down = [
                tf.raw_ops.Conv2DBackpropInput(
                    input_sizes=tf.shape(x), filter=k, out_backprop=dy, **options
                )
                for x, k, dy in zip(*parts, strict=True)
            ]
            own = [
                tf.raw_ops.Conv2DBackpropFilter(
                    input=x, filter_sizes=tf.shape(k), out_backprop=dy, **options
                )
                for x, k, dy in zip(*parts, strict=True)
            ]
            return tf.concat(down, -1), tf.concat(own, -1)

        return tf.nn.conv2d(inputs, kernel, strides, padding), gradient

    return convolve(inputs, kernel)


def conv(
    x,
    filters: int,
    kernel: int | tuple[int, int],
    strides: int = 1,
    *,
    name: str,
    bias: bool = False,
    padding: str = "same",
    groups: int = 1,
):
    """Convolve: `(batch, h, w, c)` to `(batch, h / strides, w / strides, filters)`.

    Args:
        kernel: height and width in pixels, or both one by one.
        padding: `same` pads as TensorFlow (more at the far edge when strided); `torch` pads
            `kernel // 2` on every side; `valid` nothing. The first two are equal at stride 1.
        groups: the channels are cut into so many groups, each convolved on its own.
    """
    if padding == "torch":
        x, padding = pad(x, kernel, strides, name)
    return L.Conv2D(
        filters,
        kernel,
        strides,
        padding=padding,
        groups=groups,
        use_bias=bias,
        kernel_initializer="he_uniform",  # of the same variance as he_normal, and faster to draw
        name=name,
    )(x)


def depthwise(
    x, kernel: int, strides: int = 1, *, name: str, bias: bool = False, padding: str = "same"
):
    """Convolve each channel by its own kernel: `(batch, h / strides, w / strides, c)`."""
    if padding == "torch":
        x, padding = pad(x, kernel, strides, name)
    return L.DepthwiseConv2D(
        kernel,
        strides,
        padding=padding,
        use_bias=bias,
        # "he_uniform" would count all channels as inputs of each, and the signal would fade
        depthwise_initializer=Init.RandomNormal(stddev=2**0.5 / kernel),
        name=name,
    )(x)


def squeeze_excite(x, channels: int, *, name: str, activation="relu", gate="sigmoid"):
    """Weigh each channel by what the whole map says of it (arXiv:1709.01507).

    Layers `NAME_squeeze`, `NAME_reduce`, `NAME_expand` (1x1 convolutions with bias), `NAME_gate`
    and `NAME_excite`.

    Args:
        channels: of the map between the two convolutions.
        gate: the activation that makes the weights.
    """
    y = L.GlobalAveragePooling2D(keepdims=True, name=f"{name}_squeeze")(x)
    y = conv(y, channels, 1, bias=True, name=f"{name}_reduce")
    y = L.Activation(activation, name=f"{name}_act")(y)
    y = conv(y, x.shape[-1], 1, bias=True, name=f"{name}_expand")
    return L.Multiply(name=f"{name}_excite")([x, L.Activation(gate, name=f"{name}_gate")(y)])


def layer_scale(x, initial: float, *, name: str):
    """Multiply each channel by a learned number (arXiv:2103.17239).

    A 1x1 depthwise convolution does that, and is a layer that every format knows.
    """
    start = Init.Constant(initial)
    return L.DepthwiseConv2D(1, use_bias=False, depthwise_initializer=start, name=name)(x)


def drop_branch(x, rate: float, *, name: str):
    """Drop the whole branch of an image at random while training (arXiv:1603.09382)."""
    return L.Dropout(rate, noise_shape=(None, 1, 1, 1), name=name)(x) if rate else x


def add_input(inputs, x, strides: int, *, name: str, drop: float = 0.0):
    """Add a block's input to its output `x`, which may be dropped, where their shapes agree."""
    if strides > 1 or inputs.shape[-1] != x.shape[-1]:
        return x
    return L.Add(name=f"{name}_add")([inputs, drop_branch(x, drop, name=f"{name}_drop")])


def pad(x, kernel: Any, strides: int, name: str):
    """Pad symmetrically where TensorFlow's "same" would not; return `(x, padding left)`."""
    if strides == 1 or kernel == 1:
        return x, "same"
    return L.ZeroPadding2D(kernel // 2, name=f"{name}_pad")(x), "valid"


def max_pool_padded(x, *, name: str):
    """Pool 3x3 by two with a border of zeros, which after a ReLU are as good as -inf."""
    x = L.ZeroPadding2D(1, name=f"{name}_pad")(x)
    return L.MaxPooling2D(3, 2, name=name)(x)


def max_pool_ceil(x, size: int, *, name: str):
    """Pool by two, after a ReLU, as torch's `ceil_mode` does: the last window may reach out."""
    x = L.ZeroPadding2D(((0, 1), (0, 1)), name=f"{name}_pad")(x)
    return L.MaxPooling2D(size, 2, name=name)(x)


def average_to(x, size: int, *, name: str):
    """Average to `(batch, size, size, c)`, by torch's windows where the map's size differs."""
    if 1 in x.shape[1:3]:  # one pixel is repeated: Keras' layer fails on it inside a graph
        x = L.UpSampling2D([size if n == 1 else 1 for n in x.shape[1:3]], name=f"{name}_repeat")(x)
    if x.shape[1:3] != (size, size):
        x = L.AdaptiveAveragePooling2D(size, name=name)(x)
    return x


def norm_act(
    x, activation: str | None, *, name: str, epsilon: float = 1e-5, momentum=0.9, scale: bool = True
):
    """Normalise over the batch, then activate: layers `NAME_bn` and `NAME_act`."""
    x = L.BatchNormalization(epsilon=epsilon, momentum=momentum, scale=scale, name=f"{name}_bn")(x)
    return L.Activation(activation, name=f"{name}_act")(x) if activation else x


def inverted_residual(
    x,
    channels: int,
    kernel: int,
    strides: int,
    expansion: int,
    *,
    name: str,
    epsilon: float,
    activation: str = "relu6",
    padding: str = "same",
    width: int | None = None,
    squeeze: Callable[..., Any] | None = None,
    drop: float = 0.0,
):
    """Widen, filter each channel, narrow again; add the input where the shapes agree.

    MobileNetV2's block (arXiv:1801.04381), with a linear last layer. Layers are called
    `NAME_expand_conv`, `NAME_dw_conv`, `NAME_project_conv`, each with its `_bn`.

    Args:
        expansion: how much wider the middle is; 1 leaves the first convolution out.
        width: channels of the middle, where they are no multiple of the input's.
        squeeze: `squeeze(x, name=...)`, between filtering and narrowing.
        drop: rate of the drop path.
    """
    inputs, wide = x, width or x.shape[-1] * expansion
    if expansion != 1:
        x = conv(x, wide, 1, name=f"{name}_expand_conv")
        x = norm_act(x, activation, epsilon=epsilon, name=f"{name}_expand")
    x = depthwise(x, kernel, strides, name=f"{name}_dw_conv", padding=padding)
    x = norm_act(x, activation, epsilon=epsilon, name=f"{name}_dw")
    if squeeze:
        x = squeeze(x, name=f"{name}_se")
    x = conv(x, channels, 1, name=f"{name}_project_conv")
    x = norm_act(x, None, epsilon=epsilon, name=f"{name}_project")
    return add_input(inputs, x, strides, name=name, drop=drop)


def make_divisible(value: float, divisor: int = 8, least: float = 0.9) -> int:
    """Round a channel count to a multiple of `divisor`, and not below `least` of what it was."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < least * value else rounded


def parse(pattern: str, layer: str) -> tuple[str, ...]:
    """Return the groups of a regular expression that a layer's whole name must match.

    Raises:
        KeyError: the family has no such layer.
    """
    if found := re.fullmatch(pattern, layer):
        return found.groups()
    raise KeyError(layer)
