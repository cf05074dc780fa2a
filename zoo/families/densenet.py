"""DenseNet: each layer sees the maps of all layers before it in its block."""

from ..blocks import L, conv, max_pool_padded, norm_act
from ..registry import IMAGENET, family, keras_applications, torchvision

EPS = 1e-5


def body(x, depths, growth=32, stem=64):
    def before(x, filters, kernel, name):
        """Normalise and activate first, then convolve."""
        x = norm_act(x, "relu", epsilon=EPS, name=name)
        return conv(x, filters, kernel, name=f"{name}_conv")

    x = norm_act(
        conv(x, stem, 7, 2, name="conv1_conv", padding="torch"), "relu", epsilon=EPS, name="conv1"
    )
    taps = {"C1": x}
    x = max_pool_padded(x, name="pool1")
    for stage, depth in enumerate(depths, start=2):
        if stage > 2:
            x = before(x, x.shape[-1] // 2, 1, f"pool{stage - 1}")
            x = L.AveragePooling2D(2, name=f"pool{stage - 1}_pool")(x)
        for i in range(1, depth + 1):
            name = f"conv{stage}_block{i}"
            new = before(x, 4 * growth, 1, f"{name}_1")
            new = before(new, growth, 3, f"{name}_2")
            x = L.Concatenate(name=f"{name}_concat")([x, new])
        taps[f"C{stage}"] = x
    return taps | {"C5": norm_act(x, "relu", epsilon=EPS, name="top")}


def torch_name(layer, **_):
    fixed = {
        "conv1_conv": "features.conv0", "conv1_bn": "features.norm0", "top_bn": "features.norm5",
        "logits": "classifier",
    }  # fmt: skip
    if layer in fixed:
        return fixed[layer]
    stage, *block, kind = layer.split("_")
    kind = {"bn": "norm", "conv": "conv"}[kind]
    if not block:
        return f"features.transition{int(stage[4:]) - 1}.{kind}"
    number, i = block
    return f"features.denseblock{int(stage[4:]) - 1}.denselayer{number[5:]}.{kind}{i}"


def keras_name(layer, **_):
    """There the norm before a convolution is counted from 0, the convolution from 1."""
    if layer in (fixed := {"top_bn": "bn", "logits": "predictions"}):
        return fixed[layer]
    for i in ("1", "2"):
        layer = layer.replace(f"_{i}_bn", f"_{int(i) - 1}_bn")
    return layer


def liu(n, digest, top1, top5):
    return keras_applications(
        f"densenet/densenet{n}_weights_tf_dim_ordering_tf_kernels.h5", digest, top1, top5,
        rule=IMAGENET, licence="BSD-3-Clause", origin="Zhuang Liu et al.", epsilon=1.001e-5,
    )  # fmt: skip


add = family(
    "densenet",
    body,
    paper="arXiv:1608.06993",
    year=2016,
    torch_name=torch_name,
    timm_name=torch_name,
    torch_rename=(r"(denselayer\d+\.(?:norm|conv))\.(\d)\.", r"\1\2."),
    keras_name=keras_name,
)
TV = torchvision
# fmt: off
add("densenet121", depths=(6, 12, 24, 16), params=7_978_856, gmacs=2.834, taps=(64, 256, 512, 1024, 1024), keras="DenseNet121", torchvision="densenet121", timm="densenet121", weights=[
    liu(121, "9d60b8095a5708f2dcce2bca79d332c7", 75.0, 92.3), TV("densenet121-a639ec97.pth", 74.434, 91.972)])
add("densenet161", depths=(6, 12, 36, 24), growth=48, stem=96, params=28_681_000, gmacs=7.728, taps=(96, 384, 768, 2112, 2208), torchvision="densenet161", timm="densenet161", weights=[
    TV("densenet161-8d451a50.pth", 77.138, 93.560)])
add("densenet169", depths=(6, 12, 32, 32), params=14_149_480, gmacs=3.360, taps=(64, 256, 512, 1280, 1664), keras="DenseNet169", torchvision="densenet169", timm="densenet169", weights=[
    liu(169, "d699b8f76981ab1b30698df4c175e90b", 76.2, 93.2), TV("densenet169-b2777c0a.pth", 75.600, 92.806)])
add("densenet201", depths=(6, 12, 48, 32), params=20_013_928, gmacs=4.291, taps=(64, 256, 512, 1792, 1920), keras="DenseNet201", torchvision="densenet201", timm="densenet201", weights=[
    liu(201, "1ceb130c1ea1b78c3bf6114dbdfd8807", 77.3, 93.6), TV("densenet201-c1103571.pth", 76.896, 93.370)])
