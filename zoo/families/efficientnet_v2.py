"""EfficientNetV2: EfficientNet with plain convolutions in its first stages, for faster training."""

from functools import partial

from ..registry import HALF, IMAGENET, family, keras_applications, torchvision
from ..spec import Preprocess
from .efficientnet import body, keras_name, timm_name, torch_name

# (repeats, channels, kernel, stride, expansion, fused) of each stage
B = (
    (1, 16, 3, 1, 1, 1), (2, 32, 3, 2, 4, 1), (2, 48, 3, 2, 4, 1), (3, 96, 3, 2, 4, 0),
    (5, 112, 3, 1, 6, 0), (8, 192, 3, 2, 6, 0),
)  # fmt: skip
S = (
    (2, 24, 3, 1, 1, 1), (4, 48, 3, 2, 4, 1), (4, 64, 3, 2, 4, 1), (6, 128, 3, 2, 4, 0),
    (9, 160, 3, 1, 6, 0), (15, 256, 3, 2, 6, 0),
)  # fmt: skip
M = (
    (3, 24, 3, 1, 1, 1), (5, 48, 3, 2, 4, 1), (5, 80, 3, 2, 4, 1), (7, 160, 3, 2, 4, 0),
    (14, 176, 3, 1, 6, 0), (18, 304, 3, 2, 6, 0), (5, 512, 3, 1, 6, 0),
)  # fmt: skip
LARGE = (
    (4, 32, 3, 1, 1, 1), (7, 64, 3, 2, 4, 1), (7, 96, 3, 2, 4, 1), (10, 192, 3, 2, 4, 0),
    (19, 224, 3, 1, 6, 0), (25, 384, 3, 2, 6, 0), (7, 640, 3, 1, 6, 0),
)  # fmt: skip
HALF_128 = Preprocess((128.0,) * 3, (128.0,) * 3)  # of the Keras files of S, M and L


def google(name, size, digest, top1, top5, rule=IMAGENET):
    return keras_applications(
        f"efficientnet_v2/efficientnetv2-{name}.h5", digest, top1, top5, rule=rule, size=size, origin="Google",
    )  # fmt: skip


add = family(
    "efficientnet_v2", body, dropout=0.2, paper="arXiv:2104.00298", year=2021, torch_name=torch_name, timm_name=timm_name,
    keras_name=partial(keras_name, dw="dwconv2"), unread="^(normalization|rescaling)",
)  # fmt: skip
# fmt: off
add("efficientnet_v2_b0", stages=B, least=0, width=1.0, depth=1.0, size=224, params=7_139_704, gmacs=0.718, taps=(16, 32, 48, 112, 1280), keras="EfficientNetV2B0", timm="tf_efficientnetv2_b0", weights=[
    google("b0", 224, "21ecbf6da12460d5c40bb2f29ceb2188", 78.7, 94.3)])
add("efficientnet_v2_b1", stages=B, least=0, width=1.0, depth=1.1, size=240, params=8_141_052, gmacs=1.197, taps=(16, 32, 48, 112, 1280), keras="EfficientNetV2B1", timm="tf_efficientnetv2_b1", weights=[
    google("b1", 240, "069f0534ff22adf035c89e2d9547a9dc", 79.8, 95.0)])
add("efficientnet_v2_b2", stages=B, least=0, width=1.1, depth=1.2, size=260, params=10_096_086, gmacs=1.698, taps=(16, 32, 56, 120, 1408), keras="EfficientNetV2B2", timm="tf_efficientnetv2_b2", weights=[
    google("b2", 260, "424e49f28180edbde1e94797771950a7", 80.5, 95.1)])
add("efficientnet_v2_b3", stages=B, least=0, width=1.2, depth=1.4, size=300, params=14_358_406, gmacs=3.011, taps=(16, 40, 56, 136, 1536), keras="EfficientNetV2B3", timm="tf_efficientnetv2_b3", weights=[
    google("b3", 300, "1f1fc43bd98a6e4fd8fdfd551e02c7a0", 82.0, 95.8)])
ONE = {"width": 1.0, "depth": 1.0}
add("efficientnet_v2_s", stages=S, **ONE, stem=24, size=384, params=21_458_488, gmacs=8.366, taps=(24, 48, 64, 160, 1280), keras="EfficientNetV2S", timm="tf_efficientnetv2_s", weights=[
    google("s", 384, "e1d88a8495beba45748fedd0cecbe016", 83.9, 96.7, HALF_128)])
add("efficientnet_v2_m", stages=M, **ONE, stem=24, size=480, params=54_139_356, gmacs=24.582, taps=(24, 48, 80, 176, 1280), keras="EfficientNetV2M", timm="tf_efficientnetv2_m", weights=[
    google("m", 480, "a3bf6aa3276309f4fc6a34aa114c95cd", 85.3, 97.4, HALF_128)])
add("efficientnet_v2_l", stages=LARGE, **ONE, stem=32, size=480, params=118_515_272, gmacs=56.08, taps=(32, 64, 96, 224, 1280), keras="EfficientNetV2L", timm="tf_efficientnetv2_l", weights=[
    google("l", 480, "27e6d408b53c7ebc868fefa357689935", 85.7, 97.5, HALF_128)])
TV = {**ONE, "padding": "torch", "min_size": 33}
add("efficientnet_v2_s_tv", stages=S, **TV, stem=24, size=384, params=21_458_488, gmacs=8.366, taps=(24, 48, 64, 160, 1280), torchvision="efficientnet_v2_s", weights=[
    torchvision("efficientnet_v2_s-dd5fe13b.pth", 84.228, 96.878, size=384, resize=384)])
add("efficientnet_v2_m_tv", stages=M, **TV, dropout=0.3, stem=24, size=480, params=54_139_356, gmacs=24.582, taps=(24, 48, 80, 176, 1280), torchvision="efficientnet_v2_m", weights=[
    torchvision("efficientnet_v2_m-dc08266a.pth", 85.112, 97.156, size=480, resize=480)])
add("efficientnet_v2_l_tv", stages=LARGE, **TV, dropout=0.4, stem=32, size=480, params=118_515_272, gmacs=56.08, taps=(32, 64, 96, 224, 1280), torchvision="efficientnet_v2_l", weights=[
    torchvision("efficientnet_v2_l-59c71312.pth", 85.808, 97.788, size=480, resize=480, interpolation="bicubic", rule=HALF)])
