"""NASNet-A: two kinds of cells found by search; each takes the outputs of the two cells before it."""

import re

from ...errors import UsageError
from ..blocks import L, conv, depthwise, norm_act, parse
from ..registry import HALF, family, keras_applications


def norm(x, name):
    return norm_act(x, None, epsilon=1e-3, momentum=0.9997, name=name)


def relu(x, name):
    return L.Activation("relu", name=f"{name}_act")(x)


def point(x, filters, name):
    """Activate, then convolve 1x1."""
    return conv(relu(x, name), filters, 1, name=f"{name}_conv")


def separable(x, filters, kernel, name, strides=1):
    """Do twice: activate, convolve each channel, convolve 1x1, normalise."""
    for i in (1, 2):
        at = f"{name}_{i}"
        x = depthwise(relu(x, at), kernel, strides if i == 1 else 1, name=f"{at}_dw_conv")
        x = norm(conv(x, filters, 1, name=f"{at}_pw_conv"), at)
    return x


def halved(x, filters, name):
    """Take every second pixel, in two ways that are one pixel apart, each to half of the channels."""
    x = relu(x, f"{name}_0")
    shifted = L.ZeroPadding2D(((0, 1), (0, 1)), name=f"{name}_pad")(x)
    shifted = L.Cropping2D(((1, 0), (1, 0)), name=f"{name}_crop")(shifted)
    parts = []
    for i, y in enumerate((x, shifted), start=1):
        y = L.AveragePooling2D(1, 2, name=f"{name}_{i}_pool")(y)
        parts.append(conv(y, filters // 2, 1, name=f"{name}_{i}_conv"))
    return norm(L.Concatenate(name=f"{name}_concat")(parts), name)


def adjusted(before, filters, name, halve):
    """Bring the output of the cell before the last to the size and channels of this cell."""
    if halve:
        return halved(before, filters, f"{name}_adjust")
    if before.shape[-1] != filters:
        return norm(point(before, filters, f"{name}_adjust"), f"{name}_adjust")
    return before


def normal(x, before, filters, name, halve):
    p = adjusted(before, filters, name, halve)
    h = norm(point(x, filters, f"{name}_in"), f"{name}_in")

    def add(i, one, other):
        return L.Add(name=f"{name}_add{i}")([one, other])

    def average(y, side):
        return L.AveragePooling2D(3, 1, padding="same", name=f"{name}_{side}")(y)

    parts = [
        p,
        add(
            1, separable(h, filters, 5, f"{name}_left1"), separable(p, filters, 3, f"{name}_right1")
        ),
        add(
            2, separable(p, filters, 5, f"{name}_left2"), separable(p, filters, 3, f"{name}_right2")
        ),
        add(3, average(h, "left3"), p),
        add(4, average(p, "left4"), average(p, "right4")),
        add(5, separable(h, filters, 3, f"{name}_left5"), h),
    ]
    return L.Concatenate(name=f"{name}_concat")(parts)


def reduction(x, before, filters, name, halve):
    p = x if before is None else adjusted(before, filters, name, halve)
    h = norm(point(x, filters, f"{name}_in"), f"{name}_in")
    # Zeros around the map count in these poolings; they lie where TensorFlow would pad, by size.
    if None in h.shape[1:3]:
        raise UsageError("model.size", "NASNet needs a fixed image size", fix="input_shape=224")
    pads = [(1, 1) if n % 2 else (0, 1) for n in h.shape[1:3]]
    padded = L.ZeroPadding2D(tuple(pads), name=f"{name}_pad")(h)

    def add(i, one, other):
        return L.Add(name=f"{name}_add{i}")([one, other])

    def shrunk(y, kernel, side):
        return separable(y, filters, kernel, f"{name}_{side}", strides=2)

    one = add(1, shrunk(h, 5, "left1"), shrunk(p, 7, "right1"))
    two = add(2, L.MaxPooling2D(3, 2, name=f"{name}_left2")(padded), shrunk(p, 7, "right2"))
    three = add(3, L.AveragePooling2D(3, 2, name=f"{name}_left3")(padded), shrunk(p, 5, "right3"))
    averaged = L.AveragePooling2D(3, 1, padding="same", name=f"{name}_average4")(one)
    last = L.MaxPooling2D(3, 2, name=f"{name}_right5")(padded)
    five = add(5, separable(one, filters, 3, f"{name}_left4"), last)
    return L.Concatenate(name=f"{name}_concat")([two, three, add(4, two, averaged), five])


def body(x, filters, count, stem, skip):
    """Build stem and stages.

    Args:
        filters: of a cell in the first stage. count: of normal cells a stage. stem: channels.
        skip: the first cell of a stage sees the cell before the one that shrank the map.
    """
    x = conv(x, stem, 3, 2, name="stem_conv", padding="valid")
    x = norm(x, "stem")
    taps = {"C1": x}
    taps["C2"] = y = reduction(x, None, filters // 4, "cell_stem_1", halve=False)
    before, x = y, reduction(y, x, filters // 2, "cell_stem_2", halve=True)
    for stage in range(3):
        halve = True
        if stage:
            kept = before
            wide = filters * 2**stage
            before, x = x, reduction(x, before, wide, f"cell_reduce_{stage * count}", halve=False)
            before = kept if skip else before
        for i in range(count):
            name = f"cell_{stage * count + i + (stage > 0)}"
            before, x = x, normal(x, before, filters * 2**stage, name, halve)
            halve = False
        taps[f"C{stage + 3}"] = x
    return taps | {"C5": relu(x, "top")}


def keras_name(layer, **_):
    fixed = {"stem_conv": "stem_conv1", "stem_bn": "stem_bn1", "logits": "predictions"}
    if layer in fixed:
        return fixed[layer]
    cell, part = parse(r"cell_((?:stem_|reduce_)?\d+)_(.*)", layer)
    kind = "normal" if cell.isdigit() else "reduction"
    if found := re.fullmatch(r"(\w+\d)_([12])_(bn|dw_conv|pw_conv)", part):
        side, i, what = found.groups()
        if what == "bn":
            return f"separable_conv_{i}_bn_{kind}_{side}_{cell}"
        return f"separable_conv_{i}_{kind}_{side}_{cell}:{int(what == 'pw_conv')}"
    names = {
        "in_conv": f"{kind}_conv_1", "in_bn": f"{kind}_bn_1", "adjust_bn": "adjust_bn",
        "adjust_1_conv": "adjust_conv_1", "adjust_2_conv": "adjust_conv_2", "adjust_conv": "adjust_conv_projection",
    }  # fmt: skip
    return f"{names[part]}_{cell}"


def google(name, size, digest, top1, top5):
    return keras_applications(
        f"nasnet/NASNet-{name}.h5", digest, top1, top5, rule=HALF, size=size, origin="Google"
    )


add = family("nasnet", body, paper="arXiv:1707.07012", year=2017, keras_name=keras_name)
# fmt: off
add("nasnet_mobile", filters=44, count=4, stem=32, skip=False, size=224, params=5_289_978, gmacs=0.564, taps=(32, 44, 264, 528, 1056), keras="NASNetMobile", weights=[
    google("mobile", 224, "020fb642bf7360b370c678b08e0adf61", 74.4, 91.9)])
add("nasnet_large", filters=168, count=6, stem=96, skip=True, size=331, params=88_753_150, gmacs=23.783, taps=(96, 168, 1008, 2016, 4032), keras="NASNetLarge", weights=[
    google("large", 331, "11577c9a518f0070763c2b964a382f17", 82.5, 96.0)])
