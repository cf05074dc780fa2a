"""ConvNeXt: a ResNet made over after vision transformers, with 7x7 depthwise convolutions."""

from ..blocks import L, depthwise, drop_branch, layer_scale, parse
from ..registry import IMAGENET, family, keras_applications, torchvision

EPS = 1e-6


def norm(x, name):
    return L.LayerNormalization(epsilon=EPS, name=name)(x)


def patches(x, channels, size, name):
    """Convolve without overlap."""
    return L.Conv2D(channels, size, size, name=name)(x)


def body(x, depths, widths, drop_path):
    def block(x, rate, name):
        y = norm(depthwise(x, 7, bias=True, name=f"{name}_dw_conv"), f"{name}_norm")
        y = L.Dense(4 * x.shape[-1], name=f"{name}_pw1")(y)
        y = L.Dense(x.shape[-1], name=f"{name}_pw2")(L.Activation("gelu", name=f"{name}_act")(y))
        y = drop_branch(layer_scale(y, 1e-6, name=f"{name}_scale"), rate, name=f"{name}_drop")
        return L.Add(name=f"{name}_add")([x, y])

    taps, n = {}, 0
    for stage, (depth, width) in enumerate(zip(depths, widths, strict=True), start=1):
        if stage == 1:
            x = norm(patches(x, width, 4, "stem_conv"), "stem_norm")
        else:
            x = patches(norm(x, f"down{stage}_norm"), width, 2, f"down{stage}_conv")
        for i in range(1, depth + 1):
            x = block(x, drop_path * n / (sum(depths) - 1), f"stage{stage}_block{i}")
            n += 1
        taps[f"C{stage + 1}"] = x
    return taps


def head(taps, dropout, **_):
    x = norm(L.GlobalAveragePooling2D(name="pool")(taps["C5"]), "head_norm")
    return L.Dropout(dropout, name="dropout")(x) if dropout else x


def place(layer):
    """Return (stage, block, part) of a layer; the block is None between stages."""
    stage, _, block, part = parse(r"(?:stage|down)(\d)(_block(\d+))?_(.*)", layer)
    return int(stage), block and int(block), part


def keras_name(layer, **_):
    fixed = {"stem_conv": "stem_conv", "stem_norm": "stem_layernorm", "head_norm": "head_layernorm",
             "logits": "head_dense"}  # fmt: skip
    if layer in fixed:
        return fixed[layer]
    stage, block, part = place(layer)
    if block is None:
        return f"downsampling_{part.replace('norm', 'layernorm')}_{stage - 2}"
    parts = {"dw_conv": "depthwise_conv", "norm": "layernorm", "pw1": "pointwise_conv_1",
             "pw2": "pointwise_conv_2", "scale": "layer_scale"}  # fmt: skip
    return f"stage_{stage - 1}_block_{block - 1}_{parts[part]}"


def torch_name(layer, **_):
    fixed = {"stem_conv": "features.0.0", "stem_norm": "features.0.1", "head_norm": "classifier.0",
             "logits": "classifier.2"}  # fmt: skip
    if layer in fixed:
        return fixed[layer]
    stage, block, part = place(layer)
    if block is None:
        return f"features.{2 * stage - 2}.{int(part == 'conv')}"
    parts = {
        "dw_conv": "block.0",
        "norm": "block.2",
        "pw1": "block.3",
        "pw2": "block.5",
        "scale": "layer_scale",
    }
    return f"features.{2 * stage - 1}.{block - 1}.{parts[part]}"


def timm_name(layer, **_):
    fixed = {
        "stem_conv": "stem.0",
        "stem_norm": "stem.1",
        "head_norm": "head.norm",
        "logits": "head.fc",
    }
    if layer in fixed:
        return fixed[layer]
    stage, block, part = place(layer)
    if block is None:
        return f"stages.{stage - 1}.downsample.{int(part == 'conv')}"
    parts = {
        "dw_conv": "conv_dw",
        "norm": "norm",
        "pw1": "mlp.fc1",
        "pw2": "mlp.fc2",
        "scale": "gamma",
    }
    return f"stages.{stage - 1}.blocks.{block - 1}.{parts[part]}"


def facebook(name, digest, top1):
    return keras_applications(
        f"convnext/convnext_{name}.h5",
        digest,
        top1,
        None,
        rule=IMAGENET,
        licence="MIT",
        origin="Meta",
    )


add = family(
    "convnext", body, head=head, paper="arXiv:2201.03545", year=2022, torch_name=torch_name, timm_name=timm_name,
    keras_name=keras_name, unread="normalization$",
)  # fmt: skip
TV = torchvision
# fmt: off
add("convnext_tiny", depths=(3, 3, 9, 3), widths=(96, 192, 384, 768), drop_path=0.1, params=28_589_128, gmacs=4.456, taps={"C2": 96, "C3": 192, "C4": 384, "C5": 768}, keras="ConvNeXtTiny", torchvision="convnext_tiny", timm="convnext_tiny", weights=[
    TV("convnext_tiny-983f1562.pth", 82.520, 96.146, resize=236), facebook("tiny", "8ae6e78ce2933352b1ef4008e6dd2f17bc40771563877d156bc6426c7cf503ff", 81.3)])
add("convnext_small", depths=(3, 3, 27, 3), widths=(96, 192, 384, 768), drop_path=0.4, params=50_223_688, gmacs=8.684, taps={"C2": 96, "C3": 192, "C4": 384, "C5": 768}, keras="ConvNeXtSmall", torchvision="convnext_small", timm="convnext_small", weights=[
    TV("convnext_small-0c510722.pth", 83.616, 96.650, resize=230), facebook("small", "ce1277d8f1ee5a0ef0e171469089c18f5233860ceaf9b168049cb9263fd7483c", 82.3)])
add("convnext_base", depths=(3, 3, 27, 3), widths=(128, 256, 512, 1024), drop_path=0.5, params=88_591_464, gmacs=15.355, taps={"C2": 128, "C3": 256, "C4": 512, "C5": 1024}, keras="ConvNeXtBase", torchvision="convnext_base", timm="convnext_base", weights=[
    facebook("base", "52cbb006d3dadd03f6e095a8ca1aca47aecdd75acb4bc74bce1f5c695d0086e6", 85.3), TV("convnext_base-6075fbad.pth", 84.062, 96.870, resize=232)])
add("convnext_large", depths=(3, 3, 27, 3), widths=(192, 384, 768, 1536), drop_path=0.5, params=197_767_336, gmacs=34.361, taps={"C2": 192, "C3": 384, "C4": 768, "C5": 1536}, keras="ConvNeXtLarge", torchvision="convnext_large", timm="convnext_large", weights=[
    facebook("large", "070c5ed9ed289581e477741d3b34beffa920db8cf590899d6d2c67fba2a198a6", 86.3), TV("convnext_large-ea097f82.pth", 84.414, 96.976, resize=232)])
add("convnext_xlarge", depths=(3, 3, 27, 3), widths=(256, 512, 1024, 2048), drop_path=0.5, params=350_196_968, gmacs=60.921, taps={"C2": 256, "C3": 512, "C4": 1024, "C5": 2048}, keras="ConvNeXtXLarge", timm="convnext_xlarge", weights=[
    facebook("xlarge", "c1f5ccab661354fc3a79a10fa99af82f0fbf10ec65cb894a3ae0815f17a889ee", 86.7)])
