"""MobileNetV3: inverted residuals found by search, with gates and the hard swish."""

from functools import partial

from ..blocks import L, conv, inverted_residual, make_divisible, norm_act, parse, squeeze_excite
from ..registry import HALF, family, keras_applications, torchvision, torchvision_v2

# (width of the middle over that of the input, channels, 5 or 3 pixels, stride, gate, hard swish)
LARGE = (
    (1, 16, 3, 1, 0, 0), (4, 24, 3, 2, 0, 0), (3, 24, 3, 1, 0, 0), (3, 40, 5, 2, 1, 0),
    (3, 40, 5, 1, 1, 0), (3, 40, 5, 1, 1, 0), (6, 80, 3, 2, 0, 1), (2.5, 80, 3, 1, 0, 1),
    (2.3, 80, 3, 1, 0, 1), (2.3, 80, 3, 1, 0, 1), (6, 112, 3, 1, 1, 1), (6, 112, 3, 1, 1, 1),
    (6, 160, 5, 2, 1, 1), (6, 160, 5, 1, 1, 1), (6, 160, 5, 1, 1, 1),
)  # fmt: skip
SMALL = (
    (1, 16, 3, 2, 1, 0), (72 / 16, 24, 3, 2, 0, 0), (88 / 24, 24, 3, 1, 0, 0), (4, 40, 5, 2, 1, 1),
    (6, 40, 5, 1, 1, 1), (6, 40, 5, 1, 1, 1), (3, 48, 5, 1, 1, 1), (3, 48, 5, 1, 1, 1),
    (6, 96, 5, 2, 1, 1), (6, 96, 5, 1, 1, 1), (6, 96, 5, 1, 1, 1),
)  # fmt: skip
EPS = 1e-3


def body(x, blocks, alpha=1.0, minimal=False, padding="same"):
    """Build the blocks; `minimal`: ReLU, 3x3 and no gates, for chips that lack the rest."""
    swish = "relu" if minimal else "hard_swish"
    x = norm_act(
        conv(x, 16, 3, 2, name="stem_conv", padding=padding), swish, epsilon=EPS, name="stem"
    )
    taps, level = {}, 1
    for n, (expansion, channels, kernel, stride, gate, hard) in enumerate(blocks):
        level += stride - 1
        width = make_divisible(x.shape[-1] * expansion)
        gated = partial(squeeze_excite, channels=make_divisible(width / 4), gate="hard_sigmoid")
        x = inverted_residual(
            x, make_divisible(channels * alpha), 3 if minimal else kernel, stride, expansion, width=width,
            name=f"block_{n}", epsilon=EPS, activation=swish if hard else "relu", padding=padding,
            squeeze=gated if gate and not minimal else None,
        )  # fmt: skip
        taps[f"C{level}"] = x
    x = conv(x, make_divisible(6 * x.shape[-1]), 1, name="top_conv")
    return taps | {"C5": norm_act(x, swish, epsilon=EPS, name="top")}


def head(taps, dropout, blocks, minimal=False, **_):
    x = L.GlobalAveragePooling2D(name="pool")(taps["C5"])
    x = L.Dense(1280 if blocks is LARGE else 1024, name="fc")(x)
    x = L.Activation("relu" if minimal else "hard_swish", name="fc_act")(x)
    return L.Dropout(dropout, name="dropout")(x)


def keras_name(layer, **_):
    fixed = {"stem_conv": "conv", "stem_bn": "conv_bn", "top_conv": "conv_1", "top_bn": "conv_1_bn",
             "fc": "conv_2", "logits": "logits"}  # fmt: skip
    if layer in fixed:
        return fixed[layer]
    n, part = parse(r"block_(\d+)_(.*)", layer)
    parts = {"se_reduce": "squeeze_excite_conv", "se_expand": "squeeze_excite_conv_1"}
    name = parts.get(part) or part.replace("dw", "depthwise").removesuffix("_conv")
    return f"expanded_conv_{name}" if n == "0" else f"expanded_conv_{n}_{name}"


def torch_name(layer, blocks, **_):
    if layer in (dense := {"fc": "classifier.0", "logits": "classifier.3"}):
        return dense[layer]
    name, kind = layer.rsplit("_", 1)
    norm = int(kind == "bn")
    if name in ("stem", "top"):
        return f"features.{0 if name == 'stem' else len(blocks) + 1}.{norm}"
    n, part = parse(r"block_(\d+)_(.*)", name)
    expansion, *_, gate, _ = blocks[int(n)]
    place = {"expand": 0, "dw": 1, "se": 2, "project": 2 + gate}[part] - (expansion == 1)
    inside = {"reduce": "fc1", "expand": "fc2"}.get(kind) if part == "se" else str(norm)
    return f"features.{int(n) + 1}.block.{place}.{inside}"


def google(name, digest, top1):
    return keras_applications(
        f"mobilenet_v3/weights_mobilenet_v3_{name}_float.h5",
        digest,
        top1,
        None,
        rule=HALF,
        origin="Google",
    )


add = family(
    "mobilenet_v3", body, head=head, dropout=0.2, paper="arXiv:1905.02244", year=2019,
    torch_name=torch_name, keras_name=keras_name,
)  # fmt: skip
# fmt: off
add("mobilenet_v3_large", blocks=LARGE, params=5_483_032, gmacs=0.217, taps=(16, 24, 40, 112, 960), keras="MobileNetV3Large", weights=[
    google("large_224_1.0", "59e551e166be033d707958cf9e29a6a7", 75.6)])
add("mobilenet_v3_large_075", blocks=LARGE, alpha=0.75, params=3_993_528, gmacs=0.155, taps=(16, 24, 32, 88, 720), keras="MobileNetV3Large(alpha=0.75)", weights=[
    google("large_224_0.75", "765b44a33ad4005b3ac83185abf1d0eb", 73.3)])
add("mobilenet_v3_large_minimalistic", blocks=LARGE, minimal=True, params=3_924_288, gmacs=0.209, taps=(16, 24, 40, 112, 960), keras="MobileNetV3Large(minimalistic=True)", weights=[
    google("large_minimalistic_224_1.0", "675e7b876c45c57e9e63e6d90a36599c", 72.3)])
add("mobilenet_v3_small", blocks=SMALL, params=2_542_856, gmacs=0.057, taps={"C2": 16, "C3": 24, "C4": 48, "C5": 576}, keras="MobileNetV3Small", weights=[
    google("small_224_1.0", "8768d4c2e7dee89b9d02b2d03d65d862", 68.1)])
add("mobilenet_v3_small_075", blocks=SMALL, alpha=0.75, params=2_041_872, gmacs=0.043, taps={"C2": 16, "C3": 24, "C4": 40, "C5": 432}, keras="MobileNetV3Small(alpha=0.75)", weights=[
    google("small_224_0.75", "cb65d4e5be93758266aa0a7f2c6708b7", 65.4)])
add("mobilenet_v3_small_minimalistic", blocks=SMALL, minimal=True, params=2_044_736, gmacs=0.052, taps={"C2": 16, "C3": 24, "C4": 48, "C5": 576}, keras="MobileNetV3Small(minimalistic=True)", weights=[
    google("small_minimalistic_224_1.0", "99cd97fb2fcdad2bf028eb838de69e37", 61.9)])
add("mobilenet_v3_large_tv", blocks=LARGE, padding="torch", params=5_483_032, gmacs=0.217, taps=(16, 24, 40, 112, 960), torchvision="mobilenet_v3_large", weights=[
    torchvision_v2("mobilenet_v3_large-5c1a4163.pth", 75.274, 92.566),
    torchvision("mobilenet_v3_large-8738ca79.pth", 74.042, 91.340)])
add("mobilenet_v3_small_tv", blocks=SMALL, padding="torch", params=2_542_856, gmacs=0.057, taps={"C2": 16, "C3": 24, "C4": 48, "C5": 576}, torchvision="mobilenet_v3_small", weights=[
    torchvision("mobilenet_v3_small-047dcff4.pth", 67.668, 87.402)])
