"""MNASNet: inverted residuals found by search for speed on a phone, as torchvision has them."""

from ..blocks import conv, depthwise, inverted_residual, make_divisible, norm_act, parse
from ..registry import family, torchvision

# (channels, kernel, stride, expansion, repeats) of each stage
STAGES = (
    (24, 3, 2, 3, 3),
    (40, 5, 2, 3, 3),
    (80, 5, 2, 6, 3),
    (96, 3, 1, 6, 2),
    (192, 5, 2, 6, 4),
    (320, 3, 1, 6, 1),
)
EPS = 1e-5


def body(x, alpha, padding="torch"):
    def unit(x, name):
        return norm_act(x, "relu", epsilon=EPS, momentum=0.9997, name=name)

    x = unit(conv(x, make_divisible(32 * alpha), 3, 2, name="stem_conv", padding=padding), "stem")
    x = unit(depthwise(x, 3, name="first_dw_conv"), "first_dw")
    x = conv(x, make_divisible(16 * alpha), 1, name="first_pw_conv")
    x = norm_act(x, None, epsilon=EPS, momentum=0.9997, name="first_pw")
    taps, level = {"C1": x}, 1
    for stage, (channels, kernel, stride, expansion, repeats) in enumerate(STAGES, start=1):
        level += stride - 1
        for i in range(repeats):
            x = inverted_residual(
                x, make_divisible(channels * alpha), kernel, 1 if i else stride, expansion,
                name=f"block{stage}_{i}", epsilon=EPS, activation="relu", padding=padding,
            )  # fmt: skip
        taps[f"C{level}"] = x
    return taps | {"C5": unit(conv(x, 1280, 1, name="top_conv"), "top")}


def torch_name(layer, **_):
    if layer == "logits":
        return "classifier.1"
    name, kind = layer.rsplit("_", 1)
    norm = int(kind == "bn")
    if name in (single := {"stem": 0, "first_dw": 3, "first_pw": 6, "top": 14}):
        return f"layers.{single[name] + norm}"
    stage, i, part = parse(r"block(\d)_(\d)_(.*)", name)
    place = {"expand": 0, "dw": 3, "project": 6}[part] + norm
    return f"layers.{int(stage) + 7}.{i}.layers.{place}"


add = family(
    "mnasnet", body, dropout=0.2, paper="arXiv:1807.11626", year=2018, torch_name=torch_name
)
TV = torchvision
# fmt: off
add("mnasnet0_5", alpha=0.5, params=2_218_512, gmacs=0.104, taps=(8, 16, 24, 48, 1280), torchvision="mnasnet0_5", weights=[
    TV("mnasnet0.5_top1_67.823-3ffadce67e.pth", 67.734, 87.490)])
add("mnasnet0_75", alpha=0.75, params=3_170_208, gmacs=0.215, taps=(16, 24, 32, 72, 1280), torchvision="mnasnet0_75", weights=[
    TV("mnasnet0_75-7090bc5f.pth", 71.180, 90.496, resize=232)])
add("mnasnet1_0", alpha=1.0, params=4_383_312, gmacs=0.314, taps=(16, 24, 40, 96, 1280), torchvision="mnasnet1_0", weights=[
    TV("mnasnet1.0_top1_73.512-f206786ef8.pth", 73.456, 91.510)])
add("mnasnet1_3", alpha=1.3, params=6_282_256, gmacs=0.526, taps=(24, 32, 56, 128, 1280), torchvision="mnasnet1_3", weights=[
    TV("mnasnet1_3-a4c69d6f.pth", 76.506, 93.522, resize=232)])
