"""GoogLeNet: modules of parallel convolutions, with BatchNorm as torchvision has it."""

from ..blocks import L, average_to, conv, max_pool_ceil, norm_act
from ..registry import HALF, family, torchvision

# channels of the branches: 1x1; 1x1 then 3x3; 1x1 then 3x3 (5x5 in the paper); pooling then 1x1
MODULES = {
    "3a": (64, (96, 128), (16, 32), 32),
    "3b": (128, (128, 192), (32, 96), 64),
    "4a": (192, (96, 208), (16, 48), 64),
    "4b": (160, (112, 224), (24, 64), 64),
    "4c": (128, (128, 256), (24, 64), 64),
    "4d": (112, (144, 288), (32, 64), 64),
    "4e": (256, (160, 320), (32, 128), 128),
    "5a": (256, (160, 320), (32, 128), 128),
    "5b": (384, (192, 384), (48, 128), 128),
}


def unit(x, filters, kernel, name, strides=1):
    x = conv(x, filters, kernel, strides, name=f"{name}_conv", padding="torch")
    return norm_act(x, "relu", epsilon=1e-3, name=name)


def body(x):
    x = unit(x, 64, 7, "conv1", strides=2)
    taps = {"C1": x}
    x = max_pool_ceil(x, 3, name="pool1")
    x = unit(unit(x, 64, 1, "conv2"), 192, 3, "conv3")
    taps["C2"] = x
    for name, (one, (three_in, three), (five_in, five), pooled) in MODULES.items():
        if name in ("3a", "4a", "5a"):
            x = max_pool_ceil(x, 2 if name == "5a" else 3, name=f"pool{name[0]}")
        at = f"inception{name}"
        y = unit(x, one, 1, f"{at}_branch1")
        z = unit(unit(x, three_in, 1, f"{at}_branch2_0"), three, 3, f"{at}_branch2_1")
        v = unit(unit(x, five_in, 1, f"{at}_branch3_0"), five, 3, f"{at}_branch3_1")
        w = L.MaxPooling2D(3, 1, padding="same", name=f"{at}_pool")(x)
        w = unit(w, pooled, 1, f"{at}_branch4_1")
        x = L.Concatenate(name=f"{at}_concat")([y, z, v, w])
        taps[f"C{name[0]}"] = x
    return taps


def aux(layers, dropout, classes):
    """Two classifiers on the way, which the paper weighs 0.3 in its loss."""
    found = {}
    for name, module in (("aux1", "4a"), ("aux2", "4d")):
        x = average_to(layers(f"inception{module}_concat"), 4, name=f"{name}_pool")
        x = unit(x, 128, 1, f"{name}_conv")
        x = L.Dense(1024, name=f"{name}_fc1")(L.Flatten(name=f"{name}_flatten")(x))
        x = L.Activation("relu", name=f"{name}_fc1_act")(x)
        x = L.Dropout(0.7, name=f"{name}_drop")(x)
        found[name] = L.Dense(classes, dtype="float32", name=f"{name}_logits")(x)
    return found


def torch_name(layer):
    if layer == "logits":
        return "fc"
    for ours, theirs in (("_logits", "_fc2"), ("_branch", ".branch")):
        layer = layer.replace(ours, theirs)
    head, _, part = layer.rpartition("_")
    if ".branch" in head:  # branch2_0 is the first of a sequence
        head = head.replace("_", ".")
    return f"{head.replace('_', '.')}.{part}"


add = family(
    "googlenet",
    body,
    aux=aux,
    dropout=0.2,
    paper="arXiv:1409.4842",
    year=2014,
    torch_name=torch_name,
    unread=r"^aux\d",
)
add(
    "googlenet",
    params=6_624_904,
    gmacs=1.498,
    taps=(64, 192, 480, 832, 1024),
    torchvision="googlenet",
    weights=[torchvision("googlenet-1378be20.pth", 69.778, 89.530, rule=HALF)],
)
