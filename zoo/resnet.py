"""ResNet: residual blocks, in the paper's form (Keras) and with the later stride (torchvision).

The paper strides in the first 1x1 convolution of a bottleneck; "v1.5" strides in the 3x3, as
torchvision and most of today's checkpoints do. They are different graphs, so different names.
"""

from .blocks import L, conv, norm_act
from .registry import CAFFE, family, keras_applications, torchvision


def body(x, depths, basic=False, paper=False):
    """Build the stages; `paper`: stride in the 1x1, biases and epsilon as keras.applications."""
    eps = 1.001e-5 if paper else 1e-5

    def unit(x, filters, kernel, strides, name, act="relu"):
        x = conv(x, filters, kernel, strides, name=f"{name}_conv", bias=paper, padding="torch")
        return norm_act(x, act, epsilon=eps, name=name)

    def block(x, width, strides, name):
        out = width if basic else 4 * width
        shortcut = x
        if strides > 1 or x.shape[-1] != out:
            shortcut = unit(x, out, 1, strides, f"{name}_0", act=None)
        if basic:
            x = unit(x, width, 3, strides, f"{name}_1")
            x = unit(x, width, 3, 1, f"{name}_2", act=None)
        else:
            first, second = (strides, 1) if paper else (1, strides)
            x = unit(x, width, 1, first, f"{name}_1")
            x = unit(x, width, 3, second, f"{name}_2")
            x = unit(x, out, 1, 1, f"{name}_3", act=None)
        x = L.Add(name=f"{name}_add")([shortcut, x])
        return L.Activation("relu", name=f"{name}_out")(x)

    x = unit(x, 64, 7, 2, "conv1")
    taps = {"C1": x}
    x = L.ZeroPadding2D(1, name="pool1_pad")(x)  # after a ReLU, zero is as good as -inf
    x = L.MaxPooling2D(3, 2, name="pool1")(x)
    for stage, depth in enumerate(depths, start=2):
        for i in range(1, depth + 1):
            strides = 2 if i == 1 and stage > 2 else 1
            x = block(x, 2 ** (stage + 4), strides, f"conv{stage}_block{i}")
        taps[f"C{stage}"] = x
    return taps


def torch_name(layer, **_):
    if layer == "logits":
        return "fc"
    if layer.startswith("conv1_"):
        return {"conv1_conv": "conv1", "conv1_bn": "bn1"}[layer]
    stage, block, i, kind = layer.split("_")
    prefix = f"layer{int(stage[4:]) - 1}.{int(block[5:]) - 1}"
    if i == "0":
        return f"{prefix}.downsample.{int(kind == 'bn')}"
    return f"{prefix}.{kind}{i}"


def microsoft(n, md5, top1, top5):
    return keras_applications(
        f"resnet/resnet{n}_weights_tf_dim_ordering_tf_kernels.h5",
        md5=md5,
        preprocess=CAFFE,
        licence="MIT",
        origin="Microsoft Research; converted by keras.applications",
        top1=top1,
        top5=top5,
    )


add = family(
    "resnet",
    body,
    paper="arXiv:1512.03385",
    year=2015,
    torch_name=torch_name,
    keras_name=lambda layer, **_: "predictions" if layer == "logits" else layer,
)
TV = torchvision
# fmt: off
add("resnet18", depths=(2, 2, 2, 2), basic=True, params=11_689_512, gmacs=1.814, weights=[
    TV("resnet18-f37072fd.pth", top1=69.758, top5=89.078)])
add("resnet34", depths=(3, 4, 6, 3), basic=True, params=21_797_672, gmacs=3.664, weights=[
    TV("resnet34-b627a593.pth", top1=73.314, top5=91.420)])
add("resnet50", depths=(3, 4, 6, 3), paper=True, params=25_583_592, gmacs=3.858, weights=[
    microsoft(50, "2cb95161c43110f7111970584f804107", 74.9, 92.1)])
add("resnet101", depths=(3, 4, 23, 3), paper=True, params=44_601_832, gmacs=7.570, weights=[
    microsoft(101, "f1aeb4b969a6efcfb50fad2f0c20cfc5", 76.4, 92.8)])
add("resnet152", depths=(3, 8, 36, 3), paper=True, params=60_268_520, gmacs=11.282, weights=[
    microsoft(152, "100835be76be38e30d865e96f2aaae62", 76.6, 93.1)])
add("resnet50_v1_5", depths=(3, 4, 6, 3), params=25_557_032, gmacs=4.089, weights=[
    TV("resnet50-0676ba61.pth", top1=76.130, top5=92.862), TV("resnet50-11ad3fa6.pth", top1=80.858, top5=95.434, v2=True)])
add("resnet101_v1_5", depths=(3, 4, 23, 3), params=44_549_160, gmacs=7.801, weights=[
    TV("resnet101-63fe2227.pth", top1=77.374, top5=93.546), TV("resnet101-cd907fc2.pth", top1=81.886, top5=95.780, v2=True)])
add("resnet152_v1_5", depths=(3, 8, 36, 3), params=60_192_808, gmacs=11.514, weights=[
    TV("resnet152-394f9c45.pth", top1=78.312, top5=94.046), TV("resnet152-f82ba261.pth", top1=82.284, top5=96.002, v2=True)])
