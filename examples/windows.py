# %% [markdown]
# # How large a map is, and how much of the image it sees
# A window of K pixels that moves by S over W pixels with P pixels of padding fits
# (W + P - K) / S + 1 times, rounded down. Each layer also widens the part of the image that one
# number of its output depends on, its receptive field, by (K - 1) times the distance between
# neighbours in its input.

# %%
import dlzoo
import numpy as np
import tensorflow as tf
from dlzoo import console, course
from dlzoo.report import lessons
from dlzoo.zoo import anatomy

options = course.options()
model = dlzoo.create_model("vgg16", input_shape=224)
rows = anatomy.layers(model)
console.table(
    [
        (row.name, row.kind, row.formula, f"{row.field[0]} px", f"{row.params:,}")
        for row in rows
        if row.formula
    ],
    ["layer", "kind", "(W + P - K) / S + 1", ">sees", ">weights"],
)

# %% [markdown]
# The same for several networks: how the receptive field of the last map compares with the image.

# %%
for name in ("alexnet", "vgg16", "resnet50", "efficientnet_b0"):
    last = [row for row in anatomy.layers(dlzoo.create_model(name)) if row.tap][-1]
    size = dlzoo.info(name)["size"]
    side = f"{last.shape[0]} x {last.shape[1]}"
    print(f"{name}: {side} numbers, each sees {last.field[0]} px of {size}")

# %% [markdown]
# Is that true? The gradient of one number in the middle of a map tells which pixels it depends
# on. It fills the box and never leaves it; and most of it lies in the middle, so the part that
# counts is smaller than the box.

# %%
size, taps = 224, ("C1", "C2", "C3", "C4")
maps = dlzoo.create_model("vgg16", input_shape=size, features_only=True)
fields = {row.tap: row.field[0] for row in rows if row.tap}
image = tf.constant(np.random.default_rng(0).uniform(0, 255, (1, size, size, 3)), tf.float32)
with tf.GradientTape(persistent=True) as tape:
    tape.watch(image)
    found = maps(image)
    middle = {tap: tf.reduce_sum(found[tap][0, found[tap].shape[1] // 2, found[tap].shape[2] // 2])
              for tap in taps}  # fmt: skip
seen = {tap: tf.reduce_sum(tf.abs(tape.gradient(middle[tap], image)[0]), -1).numpy()
        for tap in taps}  # fmt: skip

# %%
lessons.fields(seen, fields, options.out / "fields.png")
options.show("fields.png")
