"""VGG: stacks of 3x3 convolutions, each stack followed by a pooling layer."""

from ..blocks import L, average_to, conv
from ..registry import CAFFE, family, keras_applications, torchvision
from ..spec import Preprocess

WIDTHS = (64, 128, 256, 512, 512)


def body(x, depths, norm=False):
    taps = {}
    for i, (width, depth) in enumerate(zip(WIDTHS, depths, strict=True), start=1):
        for j in range(1, depth + 1):
            name = f"block{i}_conv{j}"
            x = conv(x, width, 3, bias=True, name=name)
            if norm:
                x = L.BatchNormalization(epsilon=1e-5, momentum=0.9, name=f"{name}_bn")(x)
            x = L.Activation("relu", name=f"{name}_act")(x)
        taps[f"C{i - 1}"] = x
        x = L.MaxPooling2D(2, name=f"block{i}_pool")(x)
    return taps | {"C5": x}


def head(taps, dropout, **_):
    x = average_to(taps["C5"], 7, name="avgpool")  # torchvision's way of taking other sizes
    x = L.Flatten(name="flatten")(x)
    x = L.Dense(4096, activation="relu", name="fc1")(x)
    x = L.Dropout(dropout, name="fc1_drop")(x)
    x = L.Dense(4096, activation="relu", name="fc2")(x)
    return L.Dropout(dropout, name="fc2_drop")(x)


def torch_name(layer, depths, norm=False):
    """torchvision counts convolution, norm, activation and pooling layers in one sequence."""
    if layer in (dense := {"fc1": "classifier.0", "fc2": "classifier.3", "logits": "classifier.6"}):
        return dense[layer]
    block, j = layer.removeprefix("block").removesuffix("_bn").split("_conv")
    unit = 3 if norm else 2
    before = sum(depth * unit + 1 for depth in depths[: int(block) - 1])
    return f"features.{before + (int(j) - 1) * unit + layer.endswith('_bn')}"


def oxford(n, md5, top1, top5):
    return keras_applications(
        f"vgg{n}/vgg{n}_weights_tf_dim_ordering_tf_kernels.h5", md5, top1, top5,
        rule=CAFFE, licence="CC-BY-4.0", origin="Visual Geometry Group, Oxford",
    )  # fmt: skip


add = family(
    "vgg",
    body,
    head=head,
    dropout=0.5,
    paper="arXiv:1409.1556",
    year=2014,
    torch_name=torch_name,
)
# What the SSD detector starts from: Caffe's features, without the dense layers.
AMDEGROOT = Preprocess((123.0, 117.0, 104.0), (1.0,) * 3)
TAPS = {"C0": 64, "C1": 128, "C2": 256, "C3": 512, "C4": 512, "C5": 512}
D11, D13, D16, D19 = (1, 1, 2, 2, 2), (2,) * 5, (2, 2, 3, 3, 3), (2, 2, 4, 4, 4)
TV = torchvision
# fmt: off
add("vgg11", depths=D11, params=132_863_336, gmacs=7.609, taps=TAPS, torchvision="vgg11", weights=[
    TV("vgg11-8a719046.pth", 69.020, 88.628)])
add("vgg13", depths=D13, params=133_047_848, gmacs=11.308, taps=TAPS, torchvision="vgg13", weights=[
    TV("vgg13-19584684.pth", 69.928, 89.246)])
add("vgg16", depths=D16, params=138_357_544, gmacs=15.470, taps=TAPS, keras="VGG16", torchvision="vgg16", weights=[
    oxford(16, "64373286793e3c8b2b4e3219cbf3544b", 71.3, 90.1), TV("vgg16-397923af.pth", 71.592, 90.382),
    TV("vgg16_features-amdegroot-88682ab5.pth", None, None, tag="tv_features", rule=AMDEGROOT, classes=0, licence="CC-BY-4.0",
       origin="Visual Geometry Group, Oxford, converted by Max deGroot; published by torchvision")])
add("vgg19", depths=D19, params=143_667_240, gmacs=19.632, taps=TAPS, keras="VGG19", torchvision="vgg19", weights=[
    oxford(19, "cbe5617147190e668d6c5d5026f83318", 71.3, 90.0), TV("vgg19-dcbb9e9d.pth", 72.376, 90.876)])
add("vgg11_bn", depths=D11, norm=True, params=132_868_840, gmacs=7.609, taps=TAPS, torchvision="vgg11_bn", weights=[
    TV("vgg11_bn-6002323d.pth", 70.370, 89.810)])
add("vgg13_bn", depths=D13, norm=True, params=133_053_736, gmacs=11.308, taps=TAPS, torchvision="vgg13_bn", weights=[
    TV("vgg13_bn-abd245e5.pth", 71.586, 90.374)])
add("vgg16_bn", depths=D16, norm=True, params=138_365_992, gmacs=15.470, taps=TAPS, torchvision="vgg16_bn", weights=[
    TV("vgg16_bn-6c64b313.pth", 73.360, 91.516)])
add("vgg19_bn", depths=D19, norm=True, params=143_678_248, gmacs=19.632, taps=TAPS, torchvision="vgg19_bn", weights=[
    TV("vgg19_bn-c79401a0.pth", 74.218, 91.842)])
