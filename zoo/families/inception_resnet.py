"""Inception-ResNet v2: Inception modules whose output is scaled down and added to their input."""

from ..blocks import L, conv
from ..registry import HALF, family, keras_applications
from .inception import STEM, module, names, stem, unit

FIRST = {
    "0": [(96, 1)],
    "1": [(48, 1), (64, 5)],
    "2": [(64, 1), (96, 3), (96, 3)],
    "pool": ["average", (64, 1)],
}
SHRINK_6 = {"0": [(384, 3, 2)], "1": [(256, 1), (256, 3), (384, 3, 2)], "pool": ["max"]}
SHRINK_7 = {
    "0": [(256, 1), (384, 3, 2)],
    "1": [(256, 1), (288, 3, 2)],
    "2": [(256, 1), (288, 3), (320, 3, 2)],
    "pool": ["max"],
}
BLOCK_35 = {"0": [(32, 1)], "1": [(32, 1), (32, 3)], "2": [(32, 1), (48, 3), (64, 3)]}
BLOCK_17 = {"0": [(192, 1)], "1": [(128, 1), (160, (1, 7)), (192, (7, 1))]}
BLOCK_8 = {"0": [(192, 1)], "1": [(192, 1), (224, (1, 3)), (256, (3, 1))]}
# (modules that begin a stage, name of its residual blocks, their branches, how many, scale)
STAGES = (
    ("mixed5b", FIRST, "block35", BLOCK_35, 10, 0.17),
    ("mixed6a", SHRINK_6, "block17", BLOCK_17, 20, 0.1),
    ("mixed7a", SHRINK_7, "block8", BLOCK_8, 10, 0.2),
)


def body(x):
    taps, x = stem(x, scale=False)
    for level, (first, branches, name, inside, count, scale) in enumerate(STAGES, start=3):
        x = module(x, branches, first, scale=False)
        for i in range(1, count + 1):
            last = name == "block8" and i == count  # added whole, and not activated
            at = f"{name}_{i}"
            y = module(x, inside, at, scale=False)
            y = conv(y, x.shape[-1], 1, bias=True, name=f"{at}_up_conv")
            if not last:
                y = L.Rescaling(scale, name=f"{at}_scale")(y)
            x = L.Add(name=f"{at}_add")([x, y])
            x = x if last else L.Activation("relu", name=f"{at}_act")(x)
        taps[f"C{level}"] = x
    return taps | {"C5": unit(x, 1536, 1, name="top", scale=False)}


ORDER = [f"conv{name}" for name in STEM]
for _first, _branches, _name, _inside, _count, _ in STAGES:
    ORDER += [f"{_first}_{part}" for part, _ in names(_branches)]
    ORDER += [f"{_name}_{i}_{part}" for i in range(1, _count + 1) for part, _ in names(_inside)]


def keras_name(layer):
    """There most layers are counted up in the order they are built."""
    if layer in (fixed := {"logits": "predictions", "top_conv": "conv_7b", "top_bn": "conv_7b_bn"}):
        return fixed[layer]
    if layer.endswith("_up_conv"):
        return layer.replace("_up", "")
    name, kind = layer.rsplit("_", 1)
    place = ORDER.index(name) + 1
    return f"conv2d#{place}" if kind == "conv" else f"batch_normalization#{place}"


add = family("inception_resnet", body, paper="arXiv:1602.07261", year=2016, keras_name=keras_name)
# fmt: off
add("inception_resnet_v2", size=299, min_size=75, params=55_813_192, gmacs=13.156, taps=(64, 192, 320, 1088, 1536), keras="InceptionResNetV2", weights=[keras_applications(
    "inception_resnet_v2/inception_resnet_v2_weights_tf_dim_ordering_tf_kernels.h5", "e693bd0210a403b3192acc6073ad2e96", 80.3, 95.3,
    rule=HALF, size=299, origin="Google")])
