# %% [markdown]
# # A dense and a convolutional net on digits
# Both nets see the same handwritten digits, 28 x 28 pixels. The dense net has one weight for each
# pair of pixel and unit. The convolutional one (LeNet-5, 1998) slides small windows over the image:
# it has a tenth of the weights, and what it learns in one place holds in every other place.

# %%
import dlzoo
import keras
import numpy as np
from dlzoo import course
from dlzoo.callbacks import History
from dlzoo.report import lessons

options = course.options(data="digits")
data = options.load()
train, val, test = (data.arrays(split, 28, channels=1) for split in ("train", "val", "test"))
print(data)

# %% [markdown]
# The digits of the test set are also moved to the right, by up to 4 pixels. Neither net has ever
# seen such images.

# %%
moves = range(5)
curves, moved = {}, {}
for name, title in (("mlp", "dense"), ("lenet5", "convolutional")):
    keras.utils.set_random_seed(0)
    net = course.compiled(dlzoo.create_model(name, num_classes=len(data.classes)))
    history = History()
    net.fit(
        *train,
        validation_data=val,
        epochs=options.pick(20, 1),
        callbacks=[history],
        verbose=0,
    )
    key = f"{title}, {net.count_params():,} weights"
    curves[key] = [row["val_acc"] for row in history.rows]
    moved[key] = [
        net.evaluate(np.roll(test[0], pixels, axis=2), test[1], verbose=0, return_dict=True)["acc"]
        for pixels in moves
    ]
    print(f"{key}: " + ", ".join(f"{acc:.1%} moved by {n}" for n, acc in enumerate(moved[key])))

# %%
lessons.lines(curves, options.out / "digits.png", x="epoch", y="validation accuracy")
lessons.lines(
    moved,
    options.out / "digits_moved.png",
    x="test digits moved to the right, in pixels",
    y="test accuracy",
    at=moves,
)
options.show("digits.png")
options.show("digits_moved.png")
