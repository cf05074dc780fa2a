"""Xception: Inception taken to its end, every 3x3 convolution cut into depthwise and 1x1."""

from ..blocks import L, conv, depthwise, norm_act
from ..registry import HALF, family, keras_applications

EPS = 1e-3


def separable(x, channels, name):
    x = conv(depthwise(x, 3, name=f"{name}_dw_conv"), channels, 1, name=f"{name}_pw_conv")
    return norm_act(x, None, epsilon=EPS, name=name)


def relu(x, name):
    return L.Activation("relu", name=f"{name}_act")(x)


def shrink(x, first, channels, name, activate=True):
    """Two separable convolutions and a pooling layer, added to a strided 1x1 convolution."""
    shortcut = conv(x, channels, 1, 2, name=f"{name}_0_conv")
    shortcut = norm_act(shortcut, None, epsilon=EPS, name=f"{name}_0")
    x = separable(relu(x, f"{name}_1") if activate else x, first, f"{name}_1")
    x = separable(relu(x, f"{name}_2"), channels, f"{name}_2")
    x = L.MaxPooling2D(3, 2, padding="same", name=f"{name}_pool")(x)
    return L.Add(name=f"{name}_add")([x, shortcut])


def body(x):
    for i, (channels, strides) in enumerate(((32, 2), (64, 1)), start=1):
        x = conv(x, channels, 3, strides, name=f"block1_{i}_conv", padding="valid")
        x = norm_act(x, "relu", epsilon=EPS, name=f"block1_{i}")
    taps = {"C1": x}
    taps["C2"] = x = shrink(x, 128, 128, "block2", activate=False)
    taps["C3"] = x = shrink(x, 256, 256, "block3")
    x = shrink(x, 728, 728, "block4")
    for n in range(5, 13):
        y = x
        for i in (1, 2, 3):
            y = separable(relu(y, f"block{n}_{i}"), 728, f"block{n}_{i}")
        x = L.Add(name=f"block{n}_add")([y, x])
    taps["C4"] = x
    x = shrink(x, 728, 1024, "block13")
    for i, channels in ((1, 1536), (2, 2048)):
        x = relu(separable(x, channels, f"block14_{i}"), f"block14_{i}")
    return taps | {"C5": x}


SHORTCUTS = ("block2", "block3", "block4", "block13")  # whose layers have no names there


def keras_name(layer):
    if layer == "logits":
        return "predictions"
    block, i, *part, kind = layer.split("_")
    if i == "0":
        return (
            f"{'conv2d' if kind == 'conv' else 'batch_normalization'}#{SHORTCUTS.index(block) + 1}"
        )
    if block == "block1":
        return f"block1_conv{i}" + "_bn" * (kind == "bn")
    name = f"{block}_sepconv{i}"  # one layer with two kernels
    return f"{name}_bn" if kind == "bn" else f"{name}:{int('pw' in part)}"


add = family("xception", body, paper="arXiv:1610.02357", year=2016, keras_name=keras_name)
add(
    "xception",
    size=299,
    min_size=71,
    params=22_855_952,
    gmacs=8.357,
    taps=(64, 128, 256, 728, 2048),
    keras="Xception",
    weights=[
        keras_applications(
            "xception/xception_weights_tf_dim_ordering_tf_kernels.h5",
            "0a58e3b7378bc2990ea3b43d5981f1f6",
            79.0,
            94.5,
            rule=HALF,
            size=299,
            licence="MIT",
            origin="François Chollet",
        )
    ],
)
