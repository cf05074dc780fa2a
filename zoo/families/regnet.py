"""RegNet: networks of a design space in which the widths of the blocks lie on a line."""

from collections import Counter
from math import log

from ..blocks import L, conv, make_divisible, norm_act, parse, squeeze_excite
from ..registry import family, torchvision, torchvision_v2


def stages(depth, start, slope, steps, group, least):
    """Return (width, number of blocks, width of a group) of each stage.

    The widths of the blocks, `start + slope * i`, are rounded to powers of `steps`, then to
    multiples of 8, then so that groups of `group` channels fill them (section 3.3 of the paper);
    torchvision does not let that take away more than a tenth (`least`), the paper does.
    """
    line = (start + slope * i for i in range(depth))
    powers = (round(log(width / start) / log(steps)) for width in line)
    counts = Counter(round(start * steps**power / 8) * 8 for power in powers)
    found = []
    for width, count in sorted(counts.items()):
        inside = min(group, width)
        found.append((make_divisible(width, inside, least), count, inside))
    return found


def body(x, gate, **line):
    def unit(x, filters, kernel, strides, name, act="relu", groups=1):
        x = conv(x, filters, kernel, strides, name=f"{name}_conv", padding="torch", groups=groups)
        return norm_act(x, act, name=name)

    x = unit(x, 32, 3, 2, "stem")
    taps = {"C1": x}
    for stage, (width, count, group) in enumerate(stages(**line), start=1):
        for i in range(1, count + 1):
            name, strides, shortcut = f"stage{stage}_block{i}", 1 if i > 1 else 2, x
            if i == 1:
                shortcut = unit(x, width, 1, 2, f"{name}_0", act=None)
            y = unit(x, width, 1, 1, f"{name}_1")
            y = unit(y, width, 3, strides, f"{name}_2", groups=width // group)
            if gate:
                y = squeeze_excite(y, round(0.25 * x.shape[-1]), name=f"{name}_se")
            y = unit(y, width, 1, 1, f"{name}_3", act=None)
            x = L.Activation("relu", name=f"{name}_out")(L.Add(name=f"{name}_add")([shortcut, y]))
        taps[f"C{stage + 1}"] = x
    return taps


def place(layer):
    """Return stage, block, and what the layer is in it: `2_conv`, `se_reduce`."""
    return parse(r"stage(\d)_block(\d+)_(.*)", layer)


def torch_name(layer, **_):
    if layer in (fixed := {"stem_conv": "stem.0", "stem_bn": "stem.1", "logits": "fc"}):
        return fixed[layer]
    stage, block, part = place(layer)
    parts = {"0_conv": "proj.0", "0_bn": "proj.1", "se_reduce": "f.se.fc1", "se_expand": "f.se.fc2"}
    inside = parts.get(part) or f"f.{'?abc'[int(part[0])]}.{int(part.endswith('bn'))}"
    return f"trunk_output.block{stage}.block{stage}-{int(block) - 1}.{inside}"


def timm_name(layer, **_):
    if layer in (fixed := {"stem_conv": "stem.conv", "stem_bn": "stem.bn", "logits": "head.fc"}):
        return fixed[layer]
    stage, block, part = place(layer)
    parts = {
        "0_conv": "downsample.conv",
        "0_bn": "downsample.bn",
        "se_reduce": "se.fc1",
        "se_expand": "se.fc2",
    }
    return f"s{stage}.b{block}.{parts.get(part) or f'conv{part[0]}.{part[2:]}'}"


add = family(
    "regnet", body, paper="arXiv:2003.13678", year=2020, torch_name=torch_name, timm_name=timm_name
)


def row(gate):
    """Return a function that adds one variant: name and the five numbers of its line."""

    def one(name, depth, start, slope, steps, group, least=0.9, **more):
        line = {
            "depth": depth,
            "start": start,
            "slope": slope,
            "steps": steps,
            "group": group,
            "least": least,
        }
        return add(name, gate=gate, **line, taps=(32, *(w for w, *_ in stages(**line))), **more)

    return one


def swag_e2e(file, top1, top5, size=384, tag="swag_e2e_in1k"):
    return torchvision(
        file, top1, top5, tag=tag, size=size, resize=size, interpolation="bicubic", licence="CC-BY-NC-4.0",
        origin="Meta, pretrained on 3.6 billion tagged photos (SWAG); published by torchvision",
    )  # fmt: skip


def swag_linear(file, top1, top5):
    return swag_e2e(file, top1, top5, size=224, tag="swag_linear_in1k")


TV, TV2, X, Y = torchvision, torchvision_v2, row(gate=False), row(gate=True)
# fmt: off
X("regnet_x_200mf", 13, 24, 36.44, 2.49, 8, params=2_684_792, gmacs=0.199, timm="regnetx_002")
X("regnet_x_400mf", 22, 24, 24.48, 2.54, 16, params=5_495_976, gmacs=0.414, timm="regnetx_004_tv", torchvision="regnet_x_400mf", weights=[
    TV2("regnet_x_400mf-62229a5f.pth", 74.864, 92.322), TV("regnet_x_400mf-adf1edd5.pth", 72.834, 90.95)])
X("regnet_x_600mf", 16, 48, 36.97, 2.24, 24, params=6_196_040, gmacs=0.601, timm="regnetx_006")
X("regnet_x_800mf", 16, 56, 35.73, 2.28, 16, params=7_259_656, gmacs=0.8, timm="regnetx_008", torchvision="regnet_x_800mf", weights=[
    TV2("regnet_x_800mf-94a99ebd.pth", 77.522, 93.826), TV("regnet_x_800mf-ad17e45c.pth", 75.212, 92.348)])
X("regnet_x_1_6gf", 18, 80, 34.01, 2.25, 24, params=9_190_136, gmacs=1.603, timm="regnetx_016", torchvision="regnet_x_1_6gf", weights=[
    TV2("regnet_x_1_6gf-a12f2b72.pth", 79.668, 94.922), TV("regnet_x_1_6gf-e3633e7f.pth", 77.04, 93.44)])
X("regnet_x_3_2gf", 25, 88, 26.31, 2.25, 48, params=15_296_552, gmacs=3.177, timm="regnetx_032", torchvision="regnet_x_3_2gf", weights=[
    TV2("regnet_x_3_2gf-7071aa85.pth", 81.196, 95.43), TV("regnet_x_3_2gf-f342aeae.pth", 78.364, 93.992)])
X("regnet_x_4gf", 23, 96, 38.65, 2.43, 40, params=22_118_248, gmacs=3.964, least=0, timm="regnetx_040")
X("regnet_x_6_4gf", 17, 184, 60.83, 2.07, 56, params=26_209_256, gmacs=6.46, timm="regnetx_064")
X("regnet_x_8gf", 23, 80, 49.56, 2.88, 120, params=39_572_648, gmacs=7.995, timm="regnetx_080", torchvision="regnet_x_8gf", weights=[
    TV2("regnet_x_8gf-2b70d774.pth", 81.682, 95.678), TV("regnet_x_8gf-03ceed89.pth", 79.344, 94.686)])
X("regnet_x_12gf", 19, 168, 73.36, 2.37, 112, params=46_106_056, gmacs=12.087, timm="regnetx_120")
X("regnet_x_16gf", 22, 216, 55.59, 2.1, 128, params=54_278_536, gmacs=15.941, timm="regnetx_160", torchvision="regnet_x_16gf", weights=[
    TV2("regnet_x_16gf-ba3796d7.pth", 82.716, 96.196), TV("regnet_x_16gf-2007eb11.pth", 80.058, 94.944)])
X("regnet_x_32gf", 23, 320, 69.86, 2.0, 168, params=107_811_560, gmacs=31.736, timm="regnetx_320", torchvision="regnet_x_32gf", weights=[
    TV2("regnet_x_32gf-6eb8fdc6.pth", 83.014, 96.288), TV("regnet_x_32gf-9d47f8d0.pth", 80.622, 95.248)])
Y("regnet_y_200mf", 13, 24, 36.44, 2.49, 8, params=3_162_996, gmacs=0.2, timm="regnety_002")
Y("regnet_y_400mf", 16, 48, 27.89, 2.09, 8, params=4_344_144, gmacs=0.402, timm="regnety_004", torchvision="regnet_y_400mf", weights=[
    TV2("regnet_y_400mf-e6988f5f.pth", 75.804, 92.742), TV("regnet_y_400mf-c65dace8.pth", 74.046, 91.716)])
Y("regnet_y_600mf", 15, 48, 32.54, 2.32, 16, params=6_055_160, gmacs=0.601, timm="regnety_006")
Y("regnet_y_800mf", 14, 56, 38.84, 2.4, 16, params=6_432_512, gmacs=0.834, timm="regnety_008_tv", torchvision="regnet_y_800mf", weights=[
    TV2("regnet_y_800mf-58fc7688.pth", 78.828, 94.502), TV("regnet_y_800mf-1b27b58c.pth", 76.42, 93.136)])
Y("regnet_y_1_6gf", 27, 48, 20.71, 2.65, 24, params=11_202_430, gmacs=1.612, timm="regnety_016", torchvision="regnet_y_1_6gf", weights=[
    TV2("regnet_y_1_6gf-0d7bc02a.pth", 80.876, 95.444), TV("regnet_y_1_6gf-b11a554e.pth", 77.95, 93.966)])
Y("regnet_y_3_2gf", 21, 80, 42.63, 2.66, 24, params=19_436_338, gmacs=3.176, timm="regnety_032", torchvision="regnet_y_3_2gf", weights=[
    TV2("regnet_y_3_2gf-9180c971.pth", 81.982, 95.972), TV("regnet_y_3_2gf-b5a9779c.pth", 78.948, 94.576)])
Y("regnet_y_4gf", 22, 96, 31.41, 2.24, 64, params=20_646_656, gmacs=3.973, least=0, timm="regnety_040")
Y("regnet_y_6_4gf", 25, 112, 33.22, 2.27, 72, params=30_583_252, gmacs=6.355, timm="regnety_064")
Y("regnet_y_8gf", 17, 192, 76.82, 2.19, 56, params=39_381_472, gmacs=8.473, timm="regnety_080_tv", torchvision="regnet_y_8gf", weights=[
    TV2("regnet_y_8gf-dc2b1b54.pth", 82.828, 96.33), TV("regnet_y_8gf-d0d0e4a8.pth", 80.032, 95.048)])
Y("regnet_y_12gf", 19, 168, 73.36, 2.37, 112, params=51_822_544, gmacs=12.092, timm="regnety_120")
Y("regnet_y_16gf", 18, 200, 106.23, 2.48, 112, params=83_590_140, gmacs=15.912, timm="regnety_160", torchvision="regnet_y_16gf", weights=[
    TV2("regnet_y_16gf-3e4a00f9.pth", 82.886, 96.328), TV("regnet_y_16gf-9e6ed7dd.pth", 80.424, 95.24), swag_e2e("regnet_y_16gf_swag-43afe44d.pth", 86.012, 98.054), swag_linear("regnet_y_16gf_lc_swag-f3ec0043.pth", 83.976, 97.244)])
Y("regnet_y_32gf", 20, 232, 115.89, 2.53, 232, params=145_046_770, gmacs=32.28, timm="regnety_320", torchvision="regnet_y_32gf", weights=[
    TV2("regnet_y_32gf-8db6d4b5.pth", 83.368, 96.498), TV("regnet_y_32gf-4dee3f7a.pth", 80.878, 95.34), swag_e2e("regnet_y_32gf_swag-04fdfa75.pth", 86.838, 98.362), swag_linear("regnet_y_32gf_lc_swag-e1583746.pth", 84.622, 97.48)])
Y("regnet_y_128gf", 27, 456, 160.83, 2.52, 264, params=644_812_894, gmacs=127.518, timm="regnety_1280", torchvision="regnet_y_128gf", weights=[
    swag_e2e("regnet_y_128gf_swag-c8ce3e52.pth", 88.228, 98.682), swag_linear("regnet_y_128gf_lc_swag-cbe8ce12.pth", 86.068, 97.844)])
