# %% [markdown]
# # Transfer against training from scratch
# The same network, photos, order and recipe, twice: once from weights trained on ImageNet, once
# from random ones. What transfer may bring: a higher start, a higher slope, a higher asymptote.

# %%
import dlzoo
from dlzoo import course

options = course.options(data="flowers")
found = dlzoo.compare(
    init="imagenet,none",
    data=options.load(),
    backbone="efficientnet_lite0",
    images=options.pick(800, 40),
    plot=options.out / "starts.png",
    **options.pick({}, {"epochs": 2, "size": 64}),
)

# %%
for name, curve in found["curves"].items():
    parts = ", ".join(f"{part} {curve[part]:.1%}" for part in ("start", "slope", "asymptote"))
    print(f"weights {name}: {parts}")
print("higher with:", ", ".join(f"{part}: {name}" for part, name in found["higher"].items()))
options.show("starts.png")
