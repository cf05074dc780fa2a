"""SqueezeNet: few 1x1 channels feed more 1x1 and 3x3 ones; a map for each class is averaged last."""

from ..blocks import L, conv, max_pool_ceil
from ..registry import family, torchvision

FIRST = {"1_0": (96, 7), "1_1": (64, 3)}  # channels and kernel of the first convolution
# (channels squeezed to, channels of each half) of the modules, one row a stride
FIRES = {
    "1_0": [
        [(16, 64), (16, 64), (32, 128)],
        [(32, 128), (48, 192), (48, 192), (64, 256)],
        [(64, 256)],
    ],
    "1_1": [
        [(16, 64), (16, 64)],
        [(32, 128), (32, 128)],
        [(48, 192), (48, 192), (64, 256), (64, 256)],
    ],
}


def unit(x, filters, kernel, name, strides=1, padding="same"):
    x = conv(x, filters, kernel, strides, name=f"{name}_conv", bias=True, padding=padding)
    return L.Activation("relu", name=f"{name}_act")(x)


def body(x, version):
    filters, kernel = FIRST[version]
    x = unit(x, filters, kernel, "conv1", strides=2, padding="valid")
    taps, n = {"C1": x}, 2
    for level, fires in enumerate(FIRES[version], start=2):
        x = max_pool_ceil(x, 3, name=f"pool{level - 1}")
        for squeezed, half in fires:
            x = unit(x, squeezed, 1, f"fire{n}_squeeze")
            halves = [unit(x, half, k, f"fire{n}_expand{k}x{k}") for k in (1, 3)]
            x = L.Concatenate(name=f"fire{n}_concat")(halves)
            n += 1
        taps[f"C{level}"] = x
    return taps


def classifier(taps, dropout, classes, **_):
    x = L.Dropout(dropout, name="dropout")(taps["C4"])
    x = L.Dense(classes, dtype="float32", name="logits")(x)  # at every place of the map
    x = L.Activation("relu", dtype="float32", name="logits_act")(x)
    return L.GlobalAveragePooling2D(dtype="float32", name="average")(x)


def torch_name(layer, version):
    if layer in (ends := {"logits": "classifier.1", "conv1_conv": "features.0"}):
        return ends[layer]
    fire, part, _ = layer.split("_")
    n, place = int(fire[4:]) - 2, 3  # conv, activation and pooling come before
    for row in FIRES[version]:
        if n < len(row):
            return f"features.{place + n}.{part}"
        n, place = n - len(row), place + len(row) + 1


add = family(
    "squeezenet", body, classifier=classifier, dropout=0.5, paper="arXiv:1602.07360", year=2016, torch_name=torch_name,
)  # fmt: skip
# fmt: off
add("squeezenet1_0", version="1_0", params=1_248_424, gmacs=0.819, taps=(96, 256, 512, 512), torchvision="squeezenet1_0", weights=[
    torchvision("squeezenet1_0-b66bff10.pth", 58.092, 80.420)])
add("squeezenet1_1", version="1_1", params=1_235_496, gmacs=0.349, taps=(64, 128, 256, 512), torchvision="squeezenet1_1", weights=[
    torchvision("squeezenet1_1-b8a52dc0.pth", 58.178, 80.624)])
