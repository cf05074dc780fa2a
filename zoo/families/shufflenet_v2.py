"""ShuffleNet v2: half of the channels pass by each block, and the halves are interleaved after it.

A tap is the output of the last block before its channels are interleaved: the same maps as
torchvision's, in another order.
"""

from ..blocks import L, Ops, conv, depthwise, max_pool_padded, norm_act
from ..registry import family, torchvision


def interleaved(x, half=None):
    """Return the channels of both halves by turns; `half` 0 or 1: only the first or second half."""
    middle = x.shape[-1] // 2
    order = [
        channel
        for pair in zip(range(middle), range(middle, 2 * middle), strict=True)
        for channel in pair
    ]
    if half is not None:
        order = order[half * middle :][:middle]
    return Ops.take(x, order, axis=-1)  # no layer does it with an image size left open


def unit(x, filters, name, act="relu"):
    return norm_act(conv(x, filters, 1, name=f"{name}_conv"), act, name=name)


def filtered(x, strides, name):
    x = depthwise(x, 3, strides, name=f"{name}_conv", padding="torch")
    return norm_act(x, None, name=name)


def body(x, widths):
    x = norm_act(conv(x, 24, 3, 2, name="conv1_conv", padding="torch"), "relu", name="conv1")
    taps = {"C1": x}
    x = max_pool_padded(x, name="pool1")
    taps["C2"] = x
    for stage, (width, depth) in enumerate(zip(widths, (4, 8, 4), strict=False), start=2):
        for i in range(depth):
            name, strides = f"stage{stage}_block{i}", 1 if i else 2
            if i:
                left, right = interleaved(x, 0), interleaved(x, 1)
            else:
                whole = x if stage == 2 else interleaved(x)
                left = unit(filtered(whole, 2, f"{name}_left_1"), width // 2, f"{name}_left_2")
                right = whole
            right = unit(right, width // 2, f"{name}_right_1")
            right = filtered(right, strides, f"{name}_right_2")
            right = unit(right, width // 2, f"{name}_right_3")
            x = L.Concatenate(name=f"{name}_concat")([left, right])
        taps[f"C{stage + 1}"] = x
    return taps | {"C5": unit(interleaved(x), widths[-1], "conv5")}


def torch_name(layer, **_):
    if layer == "logits":
        return "fc"
    name, kind = layer.rsplit("_", 1)
    norm = int(kind == "bn")
    if name in ("conv1", "conv5"):
        return f"{name}.{norm}"
    stage, block, side, i = name.split("_")
    branch, first = {"left": (1, (0, 2)), "right": (2, (0, 3, 5))}[side]
    return f"{stage}.{block[5:]}.branch{branch}.{first[int(i) - 1] + norm}"


add = family("shufflenet_v2", body, paper="arXiv:1807.11164", year=2018, torch_name=torch_name)
TV = torchvision
# fmt: off
add("shufflenet_v2_x0_5", widths=(48, 96, 192, 1024), params=1_366_792, gmacs=0.040, taps=(24, 24, 48, 96, 1024), torchvision="shufflenet_v2_x0_5", weights=[
    TV("shufflenetv2_x0.5-f707e7126e.pth", 60.552, 81.746)])
add("shufflenet_v2_x1_0", widths=(116, 232, 464, 1024), params=2_278_604, gmacs=0.145, taps=(24, 24, 116, 232, 1024), torchvision="shufflenet_v2_x1_0", weights=[
    TV("shufflenetv2_x1-5666bf0f80.pth", 69.362, 88.316)])
add("shufflenet_v2_x1_5", widths=(176, 352, 704, 1024), params=3_503_624, gmacs=0.296, taps=(24, 24, 176, 352, 1024), torchvision="shufflenet_v2_x1_5", weights=[
    TV("shufflenetv2_x1_5-3c479a10.pth", 72.996, 91.086, resize=232)])
add("shufflenet_v2_x2_0", widths=(244, 488, 976, 2048), params=7_393_996, gmacs=0.583, taps=(24, 24, 244, 488, 2048), torchvision="shufflenet_v2_x2_0", weights=[
    TV("shufflenetv2_x2_0-8be3c8ee.pth", 76.230, 93.006, resize=232)])
