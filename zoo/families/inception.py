"""Inception v3: modules of parallel convolutions, factorised, in Keras' form and torchvision's."""

from ..blocks import L, conv, norm_act, parse
from ..registry import HALF, family, keras_applications, torchvision


def module_a(pooled):
    return {
        "1x1": [(64, 1)],
        "5x5": [(48, 1), (64, 5)],
        "3x3dbl": [(64, 1), (96, 3), (96, 3)],
        "pool": ["average", (pooled, 1)],
    }


def module_c(width):
    along, across = (width, (1, 7)), (width, (7, 1))
    return {
        "1x1": [(192, 1)],
        "7x7": [(width, 1), along, (192, (7, 1))],
        "7x7dbl": [(width, 1), across, along, across, (192, (1, 7))],
        "pool": ["average", (192, 1)],
    }


MODULE_B = {
    "3x3": [(384, 3, 2)],
    "3x3dbl": [(64, 1), (96, 3), (96, 3, 2)],
    "pool": ["max"],
}
MODULE_D = {
    "3x3": [(192, 1), (320, 3, 2)],
    "7x7x3": [(192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3, 2)],
    "pool": ["max"],
}
FORK = [(384, (1, 3)), (384, (3, 1))]  # side by side
MODULE_E = {
    "1x1": [(320, 1)],
    "3x3": [(384, 1), FORK],
    "3x3dbl": [(448, 1), (384, 3), FORK],
    "pool": ["average", (192, 1)],
}
MODULES = {
    **{"5b": module_a(32), "5c": module_a(64), "5d": module_a(64), "6a": MODULE_B},
    **{"6b": module_c(128), "6c": module_c(160), "6d": module_c(160), "6e": module_c(192)},
    **{"7a": MODULE_D, "7b": MODULE_E, "7c": MODULE_E},
}
STEM = ("1a_3x3", "2a_3x3", "2b_3x3", "3b_1x1", "4a_3x3")


def unit(x, filters, kernel, strides=1, *, name, padding="same", scale=True):
    x = conv(x, filters, kernel, strides, name=f"{name}_conv", padding=padding)
    return norm_act(x, "relu", epsilon=1e-3, scale=scale, name=name)


def average(x, name, padded=False):
    """Average 3x3; `padded`: the zeros around the map count, as torch has it by default."""
    if padded:
        x = L.ZeroPadding2D(1, name=f"{name}_pad")(x)
    return L.AveragePooling2D(3, 1, padding="valid" if padded else "same", name=name)(x)


def names(branches):
    """Yield the name of each convolution of a module, as built, and its (filters, kernel, ...)."""
    for branch, steps in branches.items():
        specs = [step for step in steps if not isinstance(step, str)]
        for i, spec in enumerate(specs, start=1):
            name = branch if len(specs) == 1 else f"{branch}_{i}"
            if isinstance(spec, list):
                yield from (
                    (f"{name}{letter}", one) for letter, one in zip("ab", spec, strict=True)
                )
            else:
                yield name, spec


def module(x, branches, name, *, padded=False, scale=True):
    """Build the branches on `x` and join them."""

    def one(y, part, filters, kernel, strides=1):
        padding = "valid" if strides == 2 else "same"
        return unit(
            y, filters, kernel, strides, name=f"{name}_{part}", padding=padding, scale=scale
        )

    called = iter(names(branches))
    ends = []
    for steps in branches.values():
        y = x
        for step in steps:
            if step == "average":
                y = average(y, f"{name}_average", padded)
            elif step == "max":
                y = L.MaxPooling2D(3, 2, name=f"{name}_max")(y)
            elif isinstance(step, list):
                two = [one(y, part, *spec) for part, spec in (next(called), next(called))]
                y = L.Concatenate(name=f"{name}_{steps.index(step)}_fork{len(steps)}")(two)
            else:
                part, spec = next(called)
                y = one(y, part, *spec)
        ends.append(y)
    return L.Concatenate(name=f"{name}_concat")(ends)


def stem(x, scale=True):
    """Build the five convolutions before the modules; return the taps C1 and C2, and the end."""
    x = unit(x, 32, 3, 2, name="conv1a_3x3", padding="valid", scale=scale)
    x = unit(x, 32, 3, name="conv2a_3x3", padding="valid", scale=scale)
    x = unit(x, 64, 3, name="conv2b_3x3", scale=scale)
    taps = {"C1": x}
    x = L.MaxPooling2D(3, 2, name="pool1")(x)
    x = unit(x, 80, 1, name="conv3b_1x1", padding="valid", scale=scale)
    x = unit(x, 192, 3, name="conv4a_3x3", padding="valid", scale=scale)
    return taps | {"C2": x}, L.MaxPooling2D(3, 2, name="pool2")(x)


def body(x, tv=False):
    """Build Keras' form or, with `tv`, torchvision's: norms with a scale, padding averaged in."""
    taps, x = stem(x, scale=tv)
    for name, branches in MODULES.items():
        x = module(x, branches, f"mixed{name}", padded=tv, scale=tv)
        taps[f"C{int(name[0]) - 2}"] = x
    return taps


def aux(layers, dropout, classes, **_):
    x = L.AveragePooling2D(5, 3, name="aux1_pool")(layers("mixed6e_concat"))
    x = unit(x, 128, 1, name="aux1_conv0")
    x = unit(x, 768, 5, name="aux1_conv1", padding="valid")
    x = L.GlobalAveragePooling2D(name="aux1_average")(x)
    return {"aux1": L.Dense(classes, dtype="float32", name="aux1_logits")(x)}


ORDER = [f"conv{name}" for name in STEM]
ORDER += [f"mixed{at}_{part}" for at, branches in MODULES.items() for part, _ in names(branches)]


def keras_name(layer, **_):
    """There the layers are counted up in the order they are built."""
    if layer == "logits":
        return "predictions"
    name, kind = layer.rsplit("_", 1)
    place = ORDER.index(name) + 1
    return f"conv2d#{place}" if kind == "conv" else f"batch_normalization#{place}"


def torch_name(layer, **_):
    fixed = {"logits": "fc", "aux1_logits": "AuxLogits.fc"}
    if layer in fixed:
        return fixed[layer]
    name, kind = layer.rsplit("_", 1)
    if name.startswith("aux1_"):
        return f"AuxLogits.{name.removeprefix('aux1_')}.{kind}"
    if name.startswith("conv"):
        return f"Conv2d_{name.removeprefix('conv')}.{kind}"
    at, part = parse(r"mixed(\d.)_(.*)", name)
    return f"Mixed_{at}.branch{'_' * (part == 'pool')}{part}.{kind}"


add = family(
    "inception", body, aux=aux, paper="arXiv:1512.00567", year=2015, torch_name=torch_name,
    timm_name=torch_name, keras_name=keras_name, unread="^AuxLogits",
)  # fmt: skip
TAPS = (64, 192, 288, 768, 2048)
# fmt: off
add("inception_v3", size=299, min_size=75, params=23_817_352, gmacs=5.713, taps=TAPS, keras="InceptionV3", weights=[keras_applications(
    "inception_v3/inception_v3_weights_tf_dim_ordering_tf_kernels.h5", "9a0d58056eeedaa3f26cb7ebd46da564", 77.9, 93.7,
    rule=HALF, size=299, origin="Google")])
add("inception_v3_tv", tv=True, dropout=0.5, size=299, min_size=75, params=23_834_568, gmacs=5.713, taps=TAPS, torchvision="inception_v3", timm="inception_v3", weights=[
    torchvision("inception_v3_google-0cc3c7bd.pth", 77.294, 93.450, rule=HALF, size=299, resize=342)])
