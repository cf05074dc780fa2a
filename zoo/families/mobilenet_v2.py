"""MobileNetV2: inverted residuals with linear bottlenecks, in TensorFlow's form and torchvision's."""

import re

from ..blocks import conv, inverted_residual, make_divisible, norm_act
from ..registry import HALF, family, keras_by_size, torchvision, torchvision_v2

# (expansion, channels, repeats, stride) of each stage
STAGES = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
    (6, 320, 1, 1),
)  # fmt: skip


def body(x, alpha=1.0, padding="same", epsilon=1e-3):
    x = conv(x, make_divisible(32 * alpha), 3, 2, name="stem_conv", padding=padding)
    x = norm_act(x, "relu6", epsilon=epsilon, name="stem")
    taps, level, n = {}, 1, 0
    for expansion, channels, repeats, stride in STAGES:
        level += stride - 1
        for i in range(repeats):
            wide, step = make_divisible(channels * alpha), 1 if i else stride
            x = inverted_residual(
                x, wide, 3, step, expansion, name=f"block_{n}", epsilon=epsilon, padding=padding
            )
            n += 1
        taps[f"C{level}"] = x
    x = conv(x, make_divisible(1280 * max(alpha, 1.0)), 1, name="top_conv")
    return taps | {"C5": norm_act(x, "relu6", epsilon=epsilon, name="top")}


def keras_name(layer, **_):
    fixed = {
        "stem_conv": "Conv1", "stem_bn": "bn_Conv1", "top_conv": "Conv_1", "top_bn": "Conv_1_bn",
        "logits": "predictions",
    }  # fmt: skip
    if layer in fixed:
        return fixed[layer]
    name = re.sub(r"^block_0_", "expanded_conv_", layer).replace("_dw_", "_depthwise_")
    return name.removesuffix("_conv") if name.endswith("_conv") else name[: -len("bn")] + "BN"


def torch_name(layer, **_):
    fixed = {"stem": "features.0", "top": "features.18"}
    if layer == "logits":
        return "classifier.1"
    name, kind = layer.rsplit("_", 1)
    norm = int(kind == "bn")
    if name in fixed:
        return f"{fixed[name]}.{norm}"
    _, n, part = name.split("_")
    place = {"expand": 0, "dw": 1, "project": 2}[part] - (n == "0")  # the first does not widen
    inside = str(place + norm) if part == "project" else f"{place}.{norm}"
    return f"features.{int(n) + 1}.conv.{inside}"


def google(alpha, *accuracies, digests=None):
    """Return the rows of one width, by image size; the origin publishes no hashes."""
    by_size = dict(zip((224, 192, 160, 128, 96), accuracies, strict=False))
    path = f"mobilenet_v2/mobilenet_v2_weights_tf_dim_ordering_tf_kernels_{alpha}_{{size}}.h5"
    return keras_by_size(path, by_size, digests, rule=HALF, origin="Google")


add = family(
    "mobilenet_v2", body, dropout=0.2, paper="arXiv:1801.04381", year=2018, torch_name=torch_name, keras_name=keras_name,
)  # fmt: skip
# fmt: off
add("mobilenet_v2", params=3_504_872, gmacs=0.301, taps=(16, 24, 32, 96, 1280), keras="MobileNetV2", weights=google(
    "1.0", (71.3, 90.1), (70.7, 90.1), (68.8, 89.0), (65.3, 86.9), (60.3, 83.2),
    digests={224: "321911b381f6fd09b744356f6796ee18"}))  # as others report of their downloads
add("mobilenet_v2_035", alpha=0.35, params=1_677_128, gmacs=0.059, taps=(8, 8, 16, 32, 1280), keras="MobileNetV2(alpha=0.35)", weights=google(
    "0.35", (60.3, 82.9), (58.2, 81.2), (55.7, 79.1), (50.8, 75.0), (45.5, 70.4)))
add("mobilenet_v2_050", alpha=0.5, params=1_968_680, gmacs=0.097, taps=(8, 16, 16, 48, 1280), keras="MobileNetV2(alpha=0.5)", weights=google(
    "0.5", (65.4, 86.4), (63.9, 85.4), (61.0, 83.2), (57.7, 80.8), (51.2, 75.8)))
add("mobilenet_v2_075", alpha=0.75, params=2_636_424, gmacs=0.209, taps=(16, 24, 24, 72, 1280), keras="MobileNetV2(alpha=0.75)", weights=google(
    "0.75", (69.8, 89.6), (68.7, 88.9), (66.4, 87.3), (63.2, 85.3), (58.8, 81.6)))
add("mobilenet_v2_130", alpha=1.3, params=5_386_792, gmacs=0.509, taps=(24, 32, 40, 128, 1664), keras="MobileNetV2(alpha=1.3)", weights=google(
    "1.3", (74.4, 92.1)))
add("mobilenet_v2_140", alpha=1.4, params=6_108_776, gmacs=0.582, taps=(24, 32, 48, 136, 1792), keras="MobileNetV2(alpha=1.4)", weights=google(
    "1.4", (75.0, 92.5)))
add("mobilenet_v2_tv", padding="torch", epsilon=1e-5, params=3_504_872, gmacs=0.301, taps=(16, 24, 32, 96, 1280), torchvision="mobilenet_v2", weights=[
    torchvision_v2("mobilenet_v2-7ebf99e0.pth", 72.154, 90.822),
    torchvision("mobilenet_v2-b0353104.pth", 71.878, 90.286)])
