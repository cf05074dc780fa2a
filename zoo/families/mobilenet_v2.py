"""MobileNetV2: inverted residuals with linear bottlenecks."""

import re

from ..blocks import conv, inverted_residual, make_divisible, norm_act
from ..registry import HALF, family, keras_applications

# (expansion, channels, repeats, stride) of each stage
STAGES = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
    (6, 320, 1, 1),
)  # fmt: skip
EPS = 1e-3


def body(x, alpha):
    x = conv(x, make_divisible(32 * alpha), 3, 2, name="stem_conv")
    x = norm_act(x, "relu6", epsilon=EPS, name="stem")
    taps, level, n = {}, 1, 0
    for expansion, channels, repeats, stride in STAGES:
        level += stride - 1
        for i in range(repeats):
            wide, step = make_divisible(channels * alpha), 1 if i else stride
            x = inverted_residual(x, wide, 3, step, expansion, name=f"block_{n}", epsilon=EPS)
            n += 1
        taps[f"C{level}"] = x
    x = conv(x, make_divisible(1280 * max(alpha, 1.0)), 1, name="top_conv")
    return taps | {"C5": norm_act(x, "relu6", epsilon=EPS, name="top")}


def keras_name(layer, **_):
    fixed = {
        "stem_conv": "Conv1", "stem_bn": "bn_Conv1", "top_conv": "Conv_1", "top_bn": "Conv_1_bn",
        "logits": "predictions",
    }  # fmt: skip
    if layer in fixed:
        return fixed[layer]
    name = re.sub(r"^block_0_", "expanded_conv_", layer).replace("_dw_", "_depthwise_")
    return name.removesuffix("_conv") if name.endswith("_conv") else name[: -len("bn")] + "BN"


add = family(
    "mobilenet_v2", body, dropout=0.2, paper="arXiv:1801.04381", year=2018, keras_name=keras_name
)
add("mobilenet_v2", alpha=1.0, params=3_504_872, gmacs=0.301, taps=(16, 24, 32, 96, 1280), keras="MobileNetV2", weights=[
    keras_applications(
        "mobilenet_v2/mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224.h5",
        "321911b381f6fd09b744356f6796ee18",  # from others' downloads: the origin publishes none
        71.3, 90.1, rule=HALF, origin="Google",
    )
])  # fmt: skip
