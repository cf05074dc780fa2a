"""ResNet v2: normalisation and activation come before each convolution, the sum stays bare.

The form of keras.applications, which shrinks the map in the last block of a stage: the last map of
stride 2^i is therefore the output of the block before it.
"""

from ..blocks import L, conv, max_pool_padded, norm_act
from ..registry import HALF, family, keras_applications

EPS = 1.001e-5


def body(x, depths):
    def block(x, width, strides, project, name):
        before = norm_act(x, "relu", epsilon=EPS, name=f"{name}_preact")
        if project:
            shortcut = conv(before, 4 * width, 1, name=f"{name}_0_conv", bias=True)
        else:  # a window of one pixel: every second one is taken
            shortcut = L.MaxPooling2D(1, strides, name=f"{name}_0_pool")(x) if strides > 1 else x
        x = norm_act(
            conv(before, width, 1, name=f"{name}_1_conv"), "relu", epsilon=EPS, name=f"{name}_1"
        )
        x = conv(x, width, 3, strides, name=f"{name}_2_conv", padding="torch")
        x = norm_act(x, "relu", epsilon=EPS, name=f"{name}_2")
        x = conv(x, 4 * width, 1, name=f"{name}_3_conv", bias=True)
        return L.Add(name=f"{name}_out")([shortcut, x])

    x = conv(x, 64, 7, 2, name="conv1_conv", bias=True, padding="torch")
    taps = {"C1": x}
    x = max_pool_padded(x, name="pool1")  # zeros count, since no ReLU comes before
    for stage, depth in enumerate(depths, start=2):
        for i in range(1, depth + 1):
            strides = 2 if i == depth and stage < 5 else 1
            x = block(x, 2 ** (stage + 4), strides, i == 1, f"conv{stage}_block{i}")
            if strides == 1:
                taps[f"C{stage}"] = x
    return taps | {"C5": norm_act(x, "relu", epsilon=EPS, name="post")}


def facebook(n, digest, top1, top5):
    return keras_applications(
        f"resnet/resnet{n}v2_weights_tf_dim_ordering_tf_kernels.h5", digest, top1, top5,
        rule=HALF, licence="BSD-3-Clause", origin="Facebook",
    )  # fmt: skip


add = family(
    "resnet_v2",
    body,
    paper="arXiv:1603.05027",
    year=2016,
)
TAPS = (64, 256, 512, 1024, 2048)
# fmt: off
add("resnet50_v2", depths=(3, 4, 6, 3), params=25_568_360, gmacs=3.482, taps=TAPS, keras="ResNet50V2", weights=[
    facebook(50, "3ef43a0b657b3be2300d5770ece849e0", 76.0, 93.0)])
add("resnet101_v2", depths=(3, 4, 23, 3), params=44_577_896, gmacs=7.194, taps=TAPS, keras="ResNet101V2", weights=[
    facebook(101, "6343647c601c52e1368623803854d971", 77.2, 93.8)])
add("resnet152_v2", depths=(3, 8, 36, 3), params=60_236_904, gmacs=10.907, taps=TAPS, keras="ResNet152V2", weights=[
    facebook(152, "a49b44d1979771252814e80f8ec446f9", 78.0, 94.2)])
