# %% [markdown]
# # From AlexNet to EfficientNet
# Ten years of networks in one table, from dlzoo's registry: no network is built and nothing is
# downloaded. VGG is AlexNet made deep and even; GoogLeNet does better with a twentieth of the
# weights; ResNet's links let depth pay; MobileNet takes convolutions apart into a spatial and a
# channel part; EfficientNet scales depth, width and image size together.

# %%
import dlzoo
from dlzoo import console, course
from dlzoo.report import lessons

options = course.options()
names = [
    "alexnet", "vgg16", "googlenet", "inception_v3_tv", "resnet18", "resnet50_v1_5",
    "resnet152_v1_5", "densenet121", "resnext50_32x4d", "squeezenet1_1", "mobilenet_v2_tv",
    "mobilenet_v3_large_tv", "efficientnet_b0_tv", "efficientnet_b4_tv", "efficientnet_b7_tv",
]  # fmt: skip

# %% [markdown]
# Accuracies are those that torchvision publishes for its first recipe, the one nearest to each
# paper's; later recipes bring old networks several points further, which says something, too.

# %%
rows = []
for name in names:
    found = dlzoo.info(name)
    top1 = {w["tag"]: w["top1"] for w in found["weights"] if w["top1"]}
    first = top1.get("tv_in1k", next(iter(top1.values())))
    rows.append(found | {"top1": first, "best": max(top1.values())})
rows.sort(key=lambda row: (row["year"], row["name"]))
console.table(
    [
        (r["year"], r["name"], f"{r['params'] / 1e6:.1f}", f"{r['gmacs']:.2f}", r["size"],
         f"{r['top1']:.1f}", f"{r['best']:.1f}")
        for r in rows
    ],
    ["year", "network", ">M weights", ">GMACs", ">px", ">top-1", ">best recipe"],
)  # fmt: skip

# %%
lessons.models(rows, options.out / "models.png")
options.show("models.png")
