"""ResNet, ResNeXt and Wide ResNet: residual blocks.

ResNet stands here in the paper's form (Keras) and with the later stride (torchvision).
The paper strides in the first 1x1 convolution of a bottleneck; "v1.5" strides in the 3x3, as
torchvision and most of today's checkpoints do. They are different graphs, so different names.
"""

from ..blocks import L, conv, max_pool_padded, norm_act
from ..registry import CAFFE, family, keras_applications, torchvision, torchvision_v2


def body(x, depths, basic=False, paper=False, groups=1, width=64):
    """Build the stages.

    Args:
        basic: two 3x3 convolutions a block, no bottleneck.
        paper: stride in the 1x1, biases and epsilon as keras.applications.
        groups, width: of the 3x3 convolutions, and channels a group in the first stage.
    """
    eps = 1.001e-5 if paper else 1e-5

    def unit(x, filters, kernel, strides, name, act="relu", groups=1):
        x = conv(
            x, filters, kernel, strides,
            name=f"{name}_conv", bias=paper, padding="torch", groups=groups,
        )  # fmt: skip
        return norm_act(x, act, epsilon=eps, name=name)

    def block(x, base, strides, name):
        out, inner = base if basic else 4 * base, base * groups * width // 64
        shortcut = x
        if strides > 1 or x.shape[-1] != out:
            shortcut = unit(x, out, 1, strides, f"{name}_0", act=None)
        if basic:
            x = unit(x, out, 3, strides, f"{name}_1")
            x = unit(x, out, 3, 1, f"{name}_2", act=None)
        else:
            first, second = (strides, 1) if paper else (1, strides)
            x = unit(x, inner, 1, first, f"{name}_1")
            x = unit(x, inner, 3, second, f"{name}_2", groups=groups)
            x = unit(x, out, 1, 1, f"{name}_3", act=None)
        x = L.Add(name=f"{name}_add")([shortcut, x])
        return L.Activation("relu", name=f"{name}_out")(x)

    x = unit(x, 64, 7, 2, "conv1")
    taps = {"C1": x}
    x = max_pool_padded(x, name="pool1")
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
        f"resnet/resnet{n}_weights_tf_dim_ordering_tf_kernels.h5", md5, top1, top5,
        rule=CAFFE, licence="MIT", origin="Microsoft Research",
    )  # fmt: skip


add = family(
    "resnet",
    body,
    paper="arXiv:1512.03385",
    year=2015,
    torch_name=torch_name,
    timm_name=torch_name,
)
TV, TV2 = torchvision, torchvision_v2
BASIC, DEEP = (64, 64, 128, 256, 512), (64, 256, 512, 1024, 2048)  # channels of C1 to C5
# fmt: off
add("resnet18", depths=(2, 2, 2, 2), basic=True, params=11_689_512, gmacs=1.814, taps=BASIC, torchvision="resnet18", timm="resnet18", weights=[
    TV("resnet18-f37072fd.pth", 69.758, 89.078)])
add("resnet34", depths=(3, 4, 6, 3), basic=True, params=21_797_672, gmacs=3.664, taps=BASIC, torchvision="resnet34", timm="resnet34", weights=[
    TV("resnet34-b627a593.pth", 73.314, 91.420)])
add("resnet50", depths=(3, 4, 6, 3), paper=True, params=25_583_592, gmacs=3.858, taps=DEEP, keras="ResNet50", weights=[
    microsoft(50, "2cb95161c43110f7111970584f804107", 74.9, 92.1)])
add("resnet101", depths=(3, 4, 23, 3), paper=True, params=44_601_832, gmacs=7.570, taps=DEEP, keras="ResNet101", weights=[
    microsoft(101, "f1aeb4b969a6efcfb50fad2f0c20cfc5", 76.4, 92.8)])
add("resnet152", depths=(3, 8, 36, 3), paper=True, params=60_268_520, gmacs=11.282, taps=DEEP, keras="ResNet152", weights=[
    microsoft(152, "100835be76be38e30d865e96f2aaae62", 76.6, 93.1)])
add("resnet26_v1_5", depths=(2, 2, 2, 2), params=15_995_176, gmacs=2.342, taps=DEEP, timm="resnet26")
add("resnet50_v1_5", depths=(3, 4, 6, 3), params=25_557_032, gmacs=4.089, taps=DEEP, torchvision="resnet50", timm="resnet50", weights=[
    TV("resnet50-0676ba61.pth", 76.130, 92.862), TV2("resnet50-11ad3fa6.pth", 80.858, 95.434)])
add("resnet101_v1_5", depths=(3, 4, 23, 3), params=44_549_160, gmacs=7.801, taps=DEEP, torchvision="resnet101", timm="resnet101", weights=[
    TV("resnet101-63fe2227.pth", 77.374, 93.546), TV2("resnet101-cd907fc2.pth", 81.886, 95.780)])
add("resnet152_v1_5", depths=(3, 8, 36, 3), params=60_192_808, gmacs=11.514, taps=DEEP, torchvision="resnet152", timm="resnet152", weights=[
    TV("resnet152-394f9c45.pth", 78.312, 94.046), TV2("resnet152-f82ba261.pth", 82.284, 96.002)])

# Grouped 3x3 convolutions (ResNeXt), and wider ones (Wide ResNet).
next_ = family("resnext", body, paper="arXiv:1611.05431", year=2016, torch_name=torch_name, timm_name=torch_name)
wide = family("wide_resnet", body, paper="arXiv:1605.07146", year=2016, torch_name=torch_name, timm_name=torch_name)
next_("resnext50_32x4d", depths=(3, 4, 6, 3), groups=32, width=4, params=25_028_904, gmacs=4.23, taps=DEEP, torchvision="resnext50_32x4d", timm="resnext50_32x4d", weights=[
    TV("resnext50_32x4d-7cdf4587.pth", 77.618, 93.698), TV2("resnext50_32x4d-1a0047aa.pth", 81.198, 95.340)])
next_("resnext101_32x4d", depths=(3, 4, 23, 3), groups=32, width=4, params=44_177_704, gmacs=7.97, taps=DEEP, timm="resnext101_32x4d")
next_("resnext101_32x8d", depths=(3, 4, 23, 3), groups=32, width=8, params=88_791_336, gmacs=16.414, taps=DEEP, torchvision="resnext101_32x8d", timm="resnext101_32x8d", weights=[
    TV("resnext101_32x8d-8ba56ff5.pth", 79.312, 94.526), TV2("resnext101_32x8d-110c445d.pth", 82.834, 96.228)])
next_("resnext101_32x16d", depths=(3, 4, 23, 3), groups=32, width=16, params=194_026_792, gmacs=36.163, taps=DEEP, timm="resnext101_32x16d")
next_("resnext101_64x4d", depths=(3, 4, 23, 3), groups=64, width=4, params=83_455_272, gmacs=15.46, taps=DEEP, torchvision="resnext101_64x4d", timm="resnext101_64x4d", weights=[
    TV("resnext101_64x4d-173b62eb.pth", 83.246, 96.454, resize=232)])
wide("wide_resnet50_2", depths=(3, 4, 6, 3), width=128, params=68_883_240, gmacs=11.398, taps=DEEP, torchvision="wide_resnet50_2", timm="wide_resnet50_2", weights=[
    TV("wide_resnet50_2-95faca4d.pth", 78.468, 94.086), TV2("wide_resnet50_2-9ba9bcbe.pth", 81.602, 95.758)])
wide("wide_resnet101_2", depths=(3, 4, 23, 3), width=128, params=126_886_696, gmacs=22.753, taps=DEEP, torchvision="wide_resnet101_2", timm="wide_resnet101_2", weights=[
    TV("wide_resnet101_2-32ee1156.pth", 78.848, 94.284), TV2("wide_resnet101_2-d733dc28.pth", 82.510, 96.020)])
