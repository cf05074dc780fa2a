"""MobileNet: each convolution in two, one pixel pattern for every channel, then 1x1 over all of them."""

from ..blocks import L, conv, depthwise, norm_act, parse
from ..registry import HALF, family, keras_by_size

# (channels, stride) of each block
BLOCKS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *[(512, 1)] * 5,
    (1024, 2),
    (1024, 1),
)
EPS = 1e-3


def body(x, alpha=1.0):
    def unit(x, name):
        return norm_act(x, "relu6", epsilon=EPS, name=name)

    x = unit(conv(x, int(32 * alpha), 3, 2, name="stem_conv"), "stem")
    taps, level = {}, 1
    for i, (channels, strides) in enumerate(BLOCKS, start=1):
        padding = "same"
        if strides == 2:  # Keras pads below and right whatever the size: not "same" if it is odd
            x, padding = L.ZeroPadding2D(((0, 1), (0, 1)), name=f"block{i}_dw_pad")(x), "valid"
        x = depthwise(x, 3, strides, name=f"block{i}_dw_conv", padding=padding)
        x = unit(x, f"block{i}_dw")
        x = unit(conv(x, int(channels * alpha), 1, name=f"block{i}_pw_conv"), f"block{i}_pw")
        level += strides - 1
        taps[f"C{level}"] = x
    return taps


def keras_name(layer, **_):
    fixed = {"stem_conv": "conv1", "stem_bn": "conv1_bn", "logits": "conv_preds"}
    if layer in fixed:
        return fixed[layer]
    block, part, kind = parse(r"block(\d+)_(dw|pw)_(conv|bn)", layer)
    return f"conv_{part}_{block}" + "_bn" * (kind == "bn")


def howard(alpha, *accuracies):
    """Return the rows of one width, by image size; the origin publishes no hashes."""
    by_size = dict(zip((224, 192, 160, 128), accuracies, strict=True))
    path = f"mobilenet/mobilenet_{alpha}_{{size}}_tf.h5"
    return keras_by_size(path, by_size, rule=HALF, origin="Google")


add = family(
    "mobilenet", body, dropout=1e-3, paper="arXiv:1704.04861", year=2017, keras_name=keras_name
)
# fmt: off
add("mobilenet", params=4_231_976, gmacs=0.569, taps=(64, 128, 256, 512, 1024), keras="MobileNet", weights=howard(
    "1_0", (70.4, 89.5), (70.0, 89.2), (68.0, 87.7), (65.2, 85.8)))
add("mobilenet_075", alpha=0.75, params=2_585_560, gmacs=0.325, taps=(48, 96, 192, 384, 768), keras="MobileNet(alpha=0.75)", weights=howard(
    "7_5", (68.4, 88.2), (67.2, 87.3), (65.3, 86.0), (62.1, 83.9)))
add("mobilenet_050", alpha=0.50, params=1_331_592, gmacs=0.149, taps=(32, 64, 128, 256, 512), keras="MobileNet(alpha=0.5)", weights=howard(
    "5_0", (63.3, 84.9), (61.7, 83.6), (59.1, 81.9), (56.3, 79.4)))
add("mobilenet_025", alpha=0.25, params=470_072, gmacs=0.041, taps=(16, 32, 64, 128, 256), keras="MobileNet(alpha=0.25)", weights=howard(
    "2_5", (49.8, 74.2), (47.7, 72.3), (45.5, 70.3), (41.5, 66.3)))
