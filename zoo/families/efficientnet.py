"""EfficientNet: one network found by search, made larger in depth, width and image size together.

In TensorFlow's form (Keras) and torchvision's. EfficientNetV2 and Lite are made of the same body.
"""

import re
from functools import partial
from math import ceil

from ..blocks import add_input, conv, inverted_residual, make_divisible, norm_act, squeeze_excite
from ..registry import IMAGENET, family, keras_applications, torchvision

# (repeats, channels, kernel, stride, expansion, fused) of each stage at width and depth 1
STAGES = (
    (1, 16, 3, 1, 1, 0), (2, 24, 3, 2, 6, 0), (2, 40, 5, 2, 6, 0), (3, 80, 3, 2, 6, 0),
    (3, 112, 5, 1, 6, 0), (4, 192, 5, 2, 6, 0), (1, 320, 3, 1, 6, 0),
)  # fmt: skip


def repeats(stages, depth, lite=False):
    """Return how often each stage's block is repeated; Lite leaves the first and last as is."""
    fixed = (0, len(stages) - 1) if lite else ()
    return [r if i in fixed else ceil(r * depth) for i, (r, *_) in enumerate(stages)]


def body(
    x, width, depth, stages=STAGES, stem=32, padding="same", epsilon=1e-3, drop_path=0.2, lite=False, least=0.9
):  # fmt: skip
    """Build the stages.

    Args:
        lite: ReLU6, no gates, and stem and top of one width.
        least: share of the exact width that rounding must keep.
    """
    divisible = partial(make_divisible, least=least)
    swish = "relu6" if lite else "silu"
    x = conv(x, stem if lite else divisible(stem * width), 3, 2, name="stem_conv", padding=padding)
    x = norm_act(x, swish, epsilon=epsilon, name="stem")
    taps, level, counts, n = {}, 1, repeats(stages, depth, lite), 0
    for i, (count, (_, channels, kernel, stride, expansion, fused)) in enumerate(
        zip(counts, stages, strict=True), start=1
    ):
        level += stride - 1
        for j in range(count):
            gate = partial(squeeze_excite, channels=max(1, x.shape[-1] // 4), activation=swish)
            options = {"name": f"block{i}{chr(ord('a') + j)}", "epsilon": epsilon, "activation": swish,
                       "padding": padding, "drop": drop_path * n / sum(counts)}  # fmt: skip
            shape = divisible(channels * width), kernel, 1 if j else stride, expansion
            if fused:
                x = fused_residual(x, *shape, **options)
            else:
                x = inverted_residual(x, *shape, **options, squeeze=None if lite else gate)
            n += 1
        taps[f"C{level}"] = x
    x = conv(x, 1280 if lite else divisible(1280 * width), 1, name="top_conv")
    return taps | {"C5": norm_act(x, swish, epsilon=epsilon, name="top")}


def fused_residual(
    x, channels, kernel, strides, expansion, *, name, epsilon, activation, padding, drop
):
    """Do as an inverted residual does, its first two convolutions in one (arXiv:2104.00298)."""
    inputs = x
    if expansion != 1:
        x = conv(
            x, x.shape[-1] * expansion, kernel, strides, name=f"{name}_expand_conv", padding=padding
        )
        x = norm_act(x, activation, epsilon=epsilon, name=f"{name}_expand")
        x = norm_act(
            conv(x, channels, 1, name=f"{name}_project_conv"),
            None,
            epsilon=epsilon,
            name=f"{name}_project",
        )
    else:
        x = conv(x, channels, kernel, strides, name=f"{name}_project_conv", padding=padding)
        x = norm_act(x, activation, epsilon=epsilon, name=f"{name}_project")
    return add_input(inputs, x, strides, name=name, drop=drop)


def split(layer):
    """Return stage and block, counted from 0, and what the layer is in it: `dw_conv`."""
    return int(layer[5]) - 1, ord(layer[6]) - ord("a"), layer[8:]


def keras_name(layer, dw="dwconv", **_):
    if layer == "logits":
        return "predictions"
    for ours, theirs in (("_dw_conv", f"_{dw}"), ("_dw_bn", "_bn")):
        layer = layer.replace(ours, theirs)
    return layer


def torch_name(layer, stages=STAGES, **_):
    if layer == "logits":
        return "classifier.1"
    ends = {"stem": 0, "top": len(stages) + 1}
    name, kind = layer.rsplit("_", 1)
    if name in ends:
        return f"features.{ends[name]}.{int(kind == 'bn')}"
    stage, block, part = split(name)
    *_, expansion, fused = stages[stage]
    place = {"expand": 0, "dw": 1, "se": 2, "project": 1 if fused else 3}[part] - (expansion == 1)
    inside = {"reduce": "fc1", "expand": "fc2"}[kind] if part == "se" else int(kind == "bn")
    return f"features.{stage + 1}.{block}.block.{place}.{inside}"


def timm_name(layer, stages=STAGES, **_):
    fixed = {
        "stem_conv": "conv_stem", "stem_bn": "bn1", "top_conv": "conv_head", "top_bn": "bn2",
        "logits": "classifier",
    }  # fmt: skip
    if layer in fixed:
        return fixed[layer]
    stage, block, part = split(layer)
    *_, expansion, fused = stages[stage]
    parts = {
        "expand_conv": "conv_pw", "expand_bn": "bn1", "dw_conv": "conv_dw", "dw_bn": "bn2",
        "se_reduce": "se.conv_reduce", "se_expand": "se.conv_expand",
        "project_conv": "conv_pwl", "project_bn": "bn3",
    }  # fmt: skip
    if fused:
        parts = {
            "expand_conv": "conv_exp",
            "expand_bn": "bn1",
            "project_conv": "conv_pwl",
            "project_bn": "bn2",
        }
        if expansion == 1:
            parts = {"project_conv": "conv", "project_bn": "bn1"}
    elif expansion == 1:
        parts |= {"dw_bn": "bn1", "project_conv": "conv_pw", "project_bn": "bn2"}
    return f"blocks.{stage}.{block}.{parts[part]}"


def keras_rule(layers):
    """Return mean and deviation, in 0..255, that Keras' layer for images in 0..1 holds, or None.

    The published files have ImageNet's deviation for the variance. Keras takes the root of it,
    and divides by that root once more, in a layer that files saved from such models name, too.
    """
    found = [
        arrays[:2] for name, arrays in layers
        if re.fullmatch(r"normalization(_\d+)?", name) and {a.size for a in arrays[:2]} in ({1}, {3})
    ]  # fmt: skip
    if not found or len(found[0]) < 2:
        return None
    mean, variance = ([float(value) for value in array.ravel()] for array in found[0])
    std = [max(value, 1e-14) ** 0.5 for value in variance]
    imagenet = [value / 255 for value in IMAGENET.std]
    twice = sum(name.startswith("rescaling") for name, _ in layers) > 1
    if len(std) == 3:
        pairs = list(zip(variance, imagenet, strict=True))
        if twice or all(abs(a - b) < 1e-3 for a, b in pairs):
            std = [a * b**0.5 for a, b in zip(std, imagenet, strict=True)]
    return tuple(255 * value for value in mean), tuple(255 * value for value in std)


def google(n, size, digest, top1, top5):
    return keras_applications(
        f"efficientnetb{n}.h5", digest, top1, top5, rule=IMAGENET, size=size, origin="Google",
        host="https://storage.googleapis.com/keras-applications",
    )  # fmt: skip


def tv(file, size, top1, top5, resize, **more):
    return torchvision(
        file, top1, top5, size=size, resize=resize, **{"interpolation": "bicubic", **more}
    )


add = family(
    "efficientnet", body, dropout=0.2, paper="arXiv:1905.11946", year=2019, torch_name=torch_name,
    timm_name=timm_name, keras_name=keras_name, keras_rule=keras_rule, unread="^(normalization|rescaling)",
)  # fmt: skip
# fmt: off
add("efficientnet_b0", width=1.0, depth=1.0, size=224, dropout=0.2, params=5_288_548, gmacs=0.386, taps=(16, 24, 40, 112, 1280), keras="EfficientNetB0", timm="tf_efficientnet_b0", weights=[
    google(0, 224, "902e53a9f72be733fc0bcb005b3ebbac", 77.1, 93.3)])
add("efficientnet_b1", width=1.0, depth=1.1, size=240, dropout=0.2, params=7_794_184, gmacs=0.687, taps=(16, 24, 40, 112, 1280), keras="EfficientNetB1", timm="tf_efficientnet_b1", weights=[
    google(1, 240, "1d254153d4ab51201f1646940f018540", 79.1, 94.4)])
add("efficientnet_b2", width=1.1, depth=1.2, size=260, dropout=0.3, params=9_109_994, gmacs=0.994, taps=(16, 24, 48, 120, 1408), keras="EfficientNetB2", timm="tf_efficientnet_b2", weights=[
    google(2, 260, "b15cce36ff4dcbd00b6dd88e7857a6ad", 80.1, 94.9)])
add("efficientnet_b3", width=1.2, depth=1.4, size=300, dropout=0.3, params=12_233_232, gmacs=1.827, taps=(24, 32, 48, 136, 1536), keras="EfficientNetB3", timm="tf_efficientnet_b3", weights=[
    google(3, 300, "ffd1fdc53d0ce67064dc6a9c7960ede0", 81.6, 95.7)])
add("efficientnet_b4", width=1.4, depth=1.8, size=380, dropout=0.4, params=19_341_616, gmacs=4.394, taps=(24, 32, 56, 160, 1792), keras="EfficientNetB4", timm="tf_efficientnet_b4", weights=[
    google(4, 380, "18c95ad55216b8f92d7e70b3a046e2fc", 82.9, 96.4)])
add("efficientnet_b5", width=1.6, depth=2.2, size=456, dropout=0.4, params=30_389_784, gmacs=10.266, taps=(24, 40, 64, 176, 2048), keras="EfficientNetB5", timm="tf_efficientnet_b5", weights=[
    google(5, 456, "ace28f2a6363774853a83a0b21b9421a", 83.6, 96.7)])
add("efficientnet_b6", width=1.8, depth=2.6, size=528, dropout=0.5, params=43_040_704, gmacs=19.068, taps=(32, 40, 72, 200, 2304), keras="EfficientNetB6", timm="tf_efficientnet_b6", weights=[
    google(6, 528, "165f6e37dce68623721b423839de8be5", 84.0, 96.8)])
add("efficientnet_b7", width=2.0, depth=3.1, size=600, dropout=0.5, params=66_347_960, gmacs=37.746, taps=(32, 48, 80, 224, 2560), keras="EfficientNetB7", timm="tf_efficientnet_b7", weights=[
    google(7, 600, "8c03f828fec3ef71311cd463b6759d99", 84.3, 97.0)])
add("efficientnet_b8", width=2.2, depth=3.6, size=672, dropout=0.5, params=87_413_142, gmacs=62.597, taps=(32, 56, 88, 248, 2816), timm="tf_efficientnet_b8")

TORCH = {"padding": "torch", "epsilon": 1e-5}
LARGE = {"padding": "torch"}
add("efficientnet_b0_tv", **TORCH, width=1.0, depth=1.0, size=224, dropout=0.2, params=5_288_548, gmacs=0.386, taps=(16, 24, 40, 112, 1280), torchvision="efficientnet_b0", timm="efficientnet_b0", weights=[
    tv("efficientnet_b0_rwightman-7f5810bc.pth", 224, 77.692, 93.532, 256)])
add("efficientnet_b1_tv", **TORCH, width=1.0, depth=1.1, size=240, dropout=0.2, params=7_794_184, gmacs=0.687, taps=(16, 24, 40, 112, 1280), torchvision="efficientnet_b1", timm="efficientnet_b1", weights=[
    tv("efficientnet_b1-c27df63c.pth", 240, 79.838, 94.934, 255, tag="tv2_in1k", interpolation="bilinear"),
    tv("efficientnet_b1_rwightman-bac287d4.pth", 240, 78.642, 94.186, 256)])
add("efficientnet_b2_tv", **TORCH, width=1.1, depth=1.2, size=288, dropout=0.3, params=9_109_994, gmacs=1.088, taps=(16, 24, 48, 120, 1408), torchvision="efficientnet_b2", timm="efficientnet_b2", weights=[
    tv("efficientnet_b2_rwightman-c35c1473.pth", 288, 80.608, 95.310, 288)])
add("efficientnet_b3_tv", **TORCH, width=1.2, depth=1.4, size=300, dropout=0.3, params=12_233_232, gmacs=1.827, taps=(24, 32, 48, 136, 1536), torchvision="efficientnet_b3", timm="efficientnet_b3", weights=[
    tv("efficientnet_b3_rwightman-b3899882.pth", 300, 82.008, 96.054, 320)])
add("efficientnet_b4_tv", **TORCH, width=1.4, depth=1.8, size=380, dropout=0.4, params=19_341_616, gmacs=4.394, taps=(24, 32, 56, 160, 1792), torchvision="efficientnet_b4", timm="efficientnet_b4", weights=[
    tv("efficientnet_b4_rwightman-23ab8bcd.pth", 380, 83.384, 96.594, 384)])
add("efficientnet_b5_tv", **LARGE, width=1.6, depth=2.2, size=456, dropout=0.4, params=30_389_784, gmacs=10.266, taps=(24, 40, 64, 176, 2048), torchvision="efficientnet_b5", weights=[
    tv("efficientnet_b5_lukemelas-1a07897c.pth", 456, 83.444, 96.628, 456)])
add("efficientnet_b6_tv", **LARGE, width=1.8, depth=2.6, size=528, dropout=0.5, params=43_040_704, gmacs=19.068, taps=(32, 40, 72, 200, 2304), torchvision="efficientnet_b6", weights=[
    tv("efficientnet_b6_lukemelas-24a108a5.pth", 528, 84.008, 96.916, 528)])
add("efficientnet_b7_tv", **LARGE, width=2.0, depth=3.1, size=600, dropout=0.5, params=66_347_960, gmacs=37.746, taps=(32, 48, 80, 224, 2560), torchvision="efficientnet_b7", weights=[
    tv("efficientnet_b7_lukemelas-c5b4e57e.pth", 600, 84.122, 96.908, 600)])
